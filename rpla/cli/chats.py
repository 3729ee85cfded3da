"""`rpla chats`: what was said, as lists, files and search."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rpla.cli.output import date, escaped, excerpt, print_json, print_table, say

if TYPE_CHECKING:
    from rpla.core.chatlog import ChatInfo, Turn
    from rpla.core.transcript import Names

app = typer.Typer(help="List, show, search, export and import chats.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="A chat's id, or how it begins (at least 4 digits).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
User = Annotated[str | None, typer.Option(help="Whose chats; the user of the settings where not given.")]
OfCharacter = Annotated[str | None, typer.Option("--character", help="Only chats with this character.")]

_SHORTEST_PREFIX = 4


@app.command("list")
def list_chats(
    character: OfCharacter = None,
    user: User = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="Those that were deleted.")] = False,
    as_json: Json = False,
) -> None:
    """List your chats, the most recently used first."""
    with _Cast() as cast:
        infos = cast.log.chats(user=cast.user_id(user), character=cast.character_id(character), deleted=deleted)
        if as_json:
            print_json([cast.facts(info) for info in infos])
            return
        rows = [(info.id[:8], cast.name(info), date(info.updated), info.turns, info.title) for info in infos]
        print_table(("chat", "character", "last used", "turns", "title"), rows)


@app.command()
def show(id: Id, as_json: Json = False) -> None:
    """Print the open branch of a chat."""
    from rpla.core.terminal import terminal_safe

    with _Cast() as cast:
        info = cast.chat(id)
        turns = cast.log.branch(info.head)
        if as_json:
            print_json({**cast.facts(info), "turns": [_turn_facts(turn) for turn in turns]})
            return
        names = cast.names(info)
        print("\n\n".join(terminal_safe(f"{names.of(turn.role)}: {turn.text.strip()}") for turn in turns))


@app.command()
def search(
    words: Annotated[list[str], typer.Argument(metavar="WORDS", help="Turns that hold all of these are found.")],
    character: OfCharacter = None,
    user: User = None,
    limit: Annotated[int, typer.Option(min=1, help="Most turns to show.")] = 20,
    as_json: Json = False,
) -> None:
    """Search all your chats."""
    with _Cast() as cast:
        hits = cast.log.search(
            " ".join(words), user=cast.user_id(user), character=cast.character_id(character), limit=limit
        )
        if as_json:
            print_json([{"chat": cast.facts(hit.chat), "turn": _turn_facts(hit.turn)} for hit in hits])
            return
        if not hits:
            say("Nothing was found.")
            return
        rows = [
            (hit.chat.id[:8], date(hit.turn.created), cast.names(hit.chat).of(hit.turn.role), excerpt(hit.turn.text))
            for hit in hits
        ]
        print_table(("chat", "said", "by", "text"), rows)


@app.command()
def export(
    id: Id,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to write it; - is stdout.")] = "-",
    format: Annotated[str, typer.Option(help="md, json or sillytavern; after the file's ending where not given.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write a chat as Markdown, as JSON with all its branches, or as SillyTavern's JSONL."""
    from rpla.core.errors import RplaError
    from rpla.core.transcript import export_json, export_markdown, export_sillytavern

    writers = {"md": export_markdown, "json": export_json, "sillytavern": export_sillytavern}
    chosen = format or {".json": "json", ".jsonl": "sillytavern"}.get(Path(file).suffix.lower(), "md")
    if chosen not in writers:
        raise RplaError(f"Unknown format {format!r}.", f"Formats: {', '.join(writers)}.")
    with _Cast() as cast:
        info = cast.chat(id)
        text = writers[chosen](info, cast.log.turns(info.id), cast.names(info))
    if file == "-":
        from rpla.core.terminal import terminal_safe

        sys.stdout.write(terminal_safe(text) if chosen == "md" else escaped(text))
        return
    try:
        with Path(file).open("w" if overwrite else "x", encoding="utf-8", newline="\n") as opened:
            opened.write(text)
    except FileExistsError as error:
        raise RplaError(f"{file} is there already.", "--overwrite replaces it.") from error
    except OSError as error:
        raise RplaError(f"{file} could not be written: {error.strerror}.") from error
    say(f"Wrote {file}.")


@app.command("import")
def import_file(
    file: Path,
    character: Annotated[str, typer.Option(help="Who it was with, and whom it goes on with.")],
    user: User = None,
) -> None:
    """Import a chat from SillyTavern's JSONL or our own JSON, as a new chat of yours."""
    from rpla.core.errors import RplaError
    from rpla.core.transcript import import_chat

    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise RplaError(f"{file} is not text in UTF-8.") from error
    except OSError as error:
        raise RplaError(f"{file} cannot be read: {error.strerror}.") from error
    with _Cast() as cast:
        user_id, character_id = cast.user_id(user), cast.character_id(character)
        assert character_id is not None
        imported = import_chat(text, cast.log, user=user_id, character=character_id)
    for note in imported.notes:
        say(note)
    say(f"Imported {imported.chat.turns} turns. Go on: rpla chat {character} --chat {imported.chat.id}")
    print(imported.chat.id)


@app.command()
def rename(id: Id, title: str) -> None:
    """Give a chat another title."""
    with _Cast() as cast:
        info = cast.chat(id)
        cast.log.rename(info.id, title.strip())
        say(f"{info.id[:8]} is now called {cast.log.chat(info.id).title}.")


@app.command()
def delete(id: Id) -> None:
    """Put a chat away; `undelete` brings it back."""
    with _Cast() as cast:
        info = cast.chat(id)
        cast.log.delete(info.id)
        say(f"Deleted {info.id[:8]}. To bring it back: rpla chats undelete {info.id[:8]}")


@app.command()
def undelete(id: Id) -> None:
    """Bring a deleted chat back."""
    with _Cast() as cast:
        info = cast.chat(id)
        cast.log.undelete(info.id)
        say(f"{info.id[:8]} is back.")


class _Cast:
    """The open chat log, and what ids in it are called."""

    def __init__(self) -> None:
        from rpla.core.chatlog import ChatLog
        from rpla.core.home import find_home
        from rpla.core.library import CharacterLibrary
        from rpla.core.settings import load_settings

        home = find_home()
        self._settings = load_settings(home)
        self._library = CharacterLibrary(home)
        self._names: dict[str, str] = {}
        self.log = ChatLog(home.chats)

    def __enter__(self) -> "_Cast":
        return self

    def __exit__(self, *error: object) -> None:
        self.log.close()

    def user_id(self, user: str | None) -> str:
        from rpla.core.ids import id_of

        return id_of("user", user or self._settings.user)

    def character_id(self, character: str | None) -> str | None:
        return self._library.find(character).id if character else None

    def chat(self, id: str) -> "ChatInfo":
        """The chat whose id begins so, deleted or not."""
        from rpla.core.errors import RplaError

        wanted = id.strip().lower()
        if len(wanted) < _SHORTEST_PREFIX:
            raise RplaError(f"{id!r} is too short for an id.", f"Give at least {_SHORTEST_PREFIX} digits of it.")
        infos = [*self.log.chats(), *self.log.chats(deleted=True)]
        found = [info for info in infos if info.id.startswith(wanted)]
        if not found:
            raise RplaError(f"There is no chat {id}.", "`rpla chats list` shows them.")
        if len(found) > 1:
            raise RplaError(
                f"{len(found)} chats have ids that begin with {id}.", "Give more digits; `--json` lists whole ids."
            )
        return found[0]

    def name(self, info: "ChatInfo") -> str:
        """What the chat's character is called; the beginning of its id where it is not known any more."""
        from rpla.core.errors import RplaError

        if info.character not in self._names:
            try:
                character = self._library.get_by_id(info.character)
            except RplaError:
                character = None
            self._names[info.character] = character.spoken_name if character else info.character[:8]
        return self._names[info.character]

    def names(self, info: "ChatInfo") -> "Names":
        from rpla.core.transcript import Names

        return Names(user=self._settings.persona.name, character=self.name(info))

    def facts(self, info: "ChatInfo") -> dict[str, Any]:
        from dataclasses import asdict

        return {**asdict(info), "character_name": self.name(info)}


def _turn_facts(turn: "Turn") -> dict[str, Any]:
    return {"id": turn.id, "parent": turn.parent, "role": turn.role, "text": turn.text, "created": turn.created}
