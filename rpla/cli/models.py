"""`rpla models`: the models at hand."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rpla.cli.output import megabytes, print_json, print_table, say

if TYPE_CHECKING:
    from rpla.core.models.shelf import Shelf

app = typer.Typer(help="List, pull, look at and choose models.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models in RPLA_HOME, and those that can be pulled."""
    models = _shelf().models()
    if as_json:
        print_json(
            [
                {"name": m.name, "path": m.path, "size_bytes": m.size_bytes, "sha256": m.sha256, "pulled": m.pulled}
                for m in models
            ]
        )
        return
    rows = [(m.name, megabytes(m.size_bytes), m.path if m.pulled else f"rpla models pull {m.name}") for m in models]
    print_table(("model", "size", "where"), rows)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name from `rpla models list`, or the URL of a GGUF file.")] = "",
    sha256: Annotated[str, typer.Option(help="The file's hash; needed with a URL.")] = "",
    save_as: Annotated[str, typer.Option("--as", help="The name to keep a URL's file under.")] = "",
) -> None:
    """Bring a model here and verify its hash. Without a name: the default model."""
    from rpla.core.models.shelf import DEFAULT_MODEL

    name = name or DEFAULT_MODEL
    shelf = _shelf()
    with typer.progressbar(length=1, label=f"{name}", file=sys.stderr, show_percent=True) as bar:
        done_before = 0

        def progress(done: int, total: int) -> None:
            nonlocal done_before
            bar.length = total or None
            bar.update(done - done_before)
            done_before = done

        if name.startswith(("http://", "https://")):
            from rpla.core.errors import RplaError

            if not (sha256 and save_as):
                raise RplaError("A URL needs a hash and a name.", "rpla models pull URL --sha256 HASH --as NAME")
            path = shelf.pull_url(name, save_as, sha256, progress)
        else:
            path = shelf.pull(name, progress)
    say(f"{path} is here, and its hash is right.")


@app.command()
def info(name: str, as_json: Json = False) -> None:
    """Show what a model's file says of itself."""
    from dataclasses import asdict

    facts = asdict(_shelf().info(name))
    if as_json:
        print_json(facts)
        return
    print_table(("what", "value"), [(key.replace("_", " "), value) for key, value in facts.items()])


@app.command()
def use(model: Annotated[str, typer.Argument(help="auto, a name, llamacpp:…, hf:…, openai:…")]) -> None:
    """Make a model the one to talk with from now on."""
    from rpla.core.home import find_home
    from rpla.core.models.open import open_model
    from rpla.core.settings import load_settings, write_setting

    home = find_home()
    if model != "auto":
        open_model(model, load_settings(home), home)
    write_setting(home, "model", model)
    say(f"The model is now {model}.")


def _shelf() -> "Shelf":
    from rpla.core.home import find_home
    from rpla.core.models.shelf import Shelf

    return Shelf(find_home())
