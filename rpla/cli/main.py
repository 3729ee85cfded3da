"""The commands, put together. Each imports what it needs when it runs, so that help stays quick."""

import sys
from typing import Annotated

import typer

from rpla.cli import bench, characters, chats, config, knowledge, memory, models
from rpla.cli.chat import chat
from rpla.cli.doctor import doctor
from rpla.core.errors import RplaError

app = typer.Typer(
    name="rpla",
    help="Talk with characters. `rpla chat` begins; `rpla COMMAND --help` tells more.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(chat)
app.add_typer(chats.app, name="chats")
app.add_typer(characters.app, name="characters")
app.add_typer(knowledge.app, name="knowledge")
app.add_typer(models.app, name="models")
app.add_typer(memory.app, name="memory")
app.add_typer(config.app, name="config")
app.add_typer(bench.app, name="bench")
app.command()(doctor)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and stop.")] = False,
) -> None:
    """Talk with characters. `rpla chat` begins; `rpla COMMAND --help` tells more."""
    if version:
        from importlib.metadata import version as installed

        print(installed("rpla"))
        raise typer.Exit


def main() -> None:
    """Run the command line; what the user can mend is told in two lines, without a traceback."""
    try:
        app()
    except RplaError as error:
        from rpla.core.terminal import terminal_safe

        print(f"rpla: {terminal_safe(str(error))}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has left; Python would complain once more when it closes stdout.
        sys.stdout = None
        sys.exit(141)
