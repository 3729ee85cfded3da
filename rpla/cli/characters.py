"""`rpla characters`: the cast."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rpla.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from rpla.core.library import CharacterLibrary

app = typer.Typer(help="List, show, make, import, export and remove characters.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_characters(as_json: Json = False) -> None:
    """List the characters."""
    entries = _library().entries()
    if as_json:
        print_json(
            [
                {
                    "slug": e.slug,
                    "name": e.name,
                    "line": e.line,
                    "tags": list(e.tags),
                    "bundled": e.bundled,
                    "broken": e.broken,
                }
                for e in entries
            ]
        )
        return
    print_table(
        ("character", "name", "who"),
        [(e.slug, e.name, f"damaged: {e.broken}" if e.broken else e.line) for e in entries],
    )


@app.command()
def show(name: str, as_json: Json = False) -> None:
    """Show a character's card."""
    from rpla.core.card import card_json
    from rpla.core.terminal import terminal_safe

    character = _library().find(name)
    if as_json:
        print_json(card_json(character))
        return
    parts = [
        (character.name, character.line),
        ("Description", character.description),
        ("Personality", character.personality),
        ("Scenario", character.scenario),
        *((f"Greeting {n}", greeting) for n, greeting in enumerate(character.greetings, 1)),
        ("Lore", ", ".join(entry.name or ", ".join(entry.keys) for entry in character.lore.entries)),
        ("Tags", ", ".join(character.tags)),
        ("Creator's notes (never shown to a model)", character.creator_notes),
    ]
    print(terminal_safe("\n\n".join(f"## {title}\n{text.strip()}" for title, text in parts if text.strip())))


@app.command()
def new(
    name: str,
    description: Annotated[str, typer.Option(help="Who this is, in a few sentences.")] = "",
    greeting: Annotated[str, typer.Option(help="How the character opens a chat.")] = "",
) -> None:
    """Make a character; edit its card.json to say more."""
    from rpla.core.character import Character
    from rpla.core.ids import new_id

    library = _library()
    added = library.add(
        Character(
            id=new_id(), slug="new", name=name, description=description, greetings=(greeting,) if greeting else ()
        )
    )
    say(f"Made {added.slug}. Its card: {library.home.characters / added.slug / 'card.json'}")
    print(added.slug)


@app.command("import")
def import_character(file: Path) -> None:
    """Import a card (V1, V2 or V3, as JSON). A character of the same name stays as it is."""
    character, repairs = _library().import_file(file)
    for repair in repairs:
        say(f"Mended: {repair}")
    say(f"Imported {character.name}. Talk: rpla chat {character.slug}")
    print(character.slug)


@app.command()
def export(
    name: str,
    file: Path,
    spec: Annotated[str, typer.Option(help="v1, v2 or v3; the format it was read in where not given.")] = "",
    overwrite: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
) -> None:
    """Write a character's card to a file."""
    from rpla.core.card import card_losses
    from rpla.core.errors import RplaError

    if spec not in ("", "v1", "v2", "v3"):
        raise RplaError(f"Unknown card format {spec!r}.", "Formats: v1, v2, v3.")
    library = _library()
    character = library.find(name)
    chosen = spec or None
    library.export(character, file, chosen, overwrite=overwrite)  # type: ignore[arg-type]
    if losses := card_losses(character, chosen) if chosen else []:  # type: ignore[arg-type]
        say(f"{spec} has no place for: {', '.join(losses)}.")
    say(f"Wrote {file}.")


@app.command()
def remove(name: str) -> None:
    """Remove a character of your own; its chats stay, and its folder goes to the trash beside the others."""
    library = _library()
    character = library.find(name)
    library.remove(character.slug)
    say(f"Removed {character.slug}. It is in {library.home.characters / '.trash'} until you delete it there.")


def _library() -> "CharacterLibrary":
    from rpla.core.home import find_home
    from rpla.core.library import CharacterLibrary

    return CharacterLibrary(find_home())
