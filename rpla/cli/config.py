"""`rpla config`: every setting and where it comes from."""

from typing import Annotated

import typer

from rpla.cli.output import print_json, print_table, say

app = typer.Typer(help="Show every setting with its origin, or set one.", invoke_without_command=True)


@app.callback()
def show(context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show every setting with its origin."""
    if context.invoked_subcommand:
        return
    from rpla.core.home import find_home
    from rpla.core.settings import resolve_settings

    home = find_home()
    _, settings = resolve_settings(home)
    if as_json:
        print_json({s.key: {"value": s.value, "origin": s.origin, "description": s.description} for s in settings})
        return
    say(f"RPLA_HOME: {home.root}")
    print_table(
        ("setting", "value", "from", "what it is"),
        [(s.key, "" if s.value is None else s.value, s.origin, s.description) for s in settings],
    )


@app.command("set")
def set_setting(key: str, value: str) -> None:
    """Write a setting into config.toml."""
    from rpla.core.home import find_home
    from rpla.core.settings import parse_setting, write_setting

    home = find_home()
    write_setting(home, key, parse_setting(key, value))
    say(f"{key} is now {value}.")
