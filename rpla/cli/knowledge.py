"""`rpla knowledge`: what characters can look up."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rpla.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from rpla.memory.knowledge import Knowledge
    from rpla.memory.passages import AddReport

app = typer.Typer(help="Give characters documents to know from.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Of = Annotated[str, typer.Argument(metavar="CHARACTER", help="The character's short name, or its name.")]


@app.command()
def add(
    character: Of,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders.")],
    story: Annotated[
        bool | None, typer.Option("--story/--no-story", help="A story, told in order: a cut-off can end it.")
    ] = None,
    story_time: Annotated[float | None, typer.Option(help="One time in the story for all of it.")] = None,
    as_json: Json = False,
) -> None:
    """Add text, Markdown, HTML, PDF and EPUB files; a folder added again is followed, with what is gone from it."""
    failed = False
    reports: dict[str, AddReport] = {}
    with _opened(character) as (knowledge, id):
        for path in paths:
            with _progress() as progress:
                report = knowledge.add(id, path, story=story, story_time=story_time, progress=progress)
            reports[str(path)] = report
            for text in (*report.notes, *report.failed):
                say(text)
            failed = failed or bool(report.failed)
            if not as_json:
                _tell(path, report)
    if as_json:
        from dataclasses import asdict

        print_json({path: asdict(report) for path, report in reports.items()})
    if failed:
        raise typer.Exit(1)


@app.command("list")
def list_sources(character: Of, as_json: Json = False) -> None:
    """List a character's sources."""
    with _opened(character) as (knowledge, id):
        sources, cutoff = knowledge.sources(id), knowledge.cutoff(id)
    if as_json:
        rows = [
            {
                "id": source.id,
                "name": source.name,
                "path": source.path,
                "kind": source.kind,
                "passages": source.passages,
                "story": source.story,
                "story_time": source.story_time,
                "added": source.added,
            }
            for source in sources
        ]
        print_json({"sources": rows, "cutoff": cutoff})
        return
    print_table(
        ("source", "kind", "passages", "story", "path"),
        [
            (
                s.name,
                s.kind,
                s.passages,
                "in order" if s.story else "" if s.story_time is None else s.story_time,
                s.path,
            )
            for s in sources
        ],
    )
    if cutoff is not None:
        say(f"Told up to {cutoff:g} of the story.")


@app.command()
def search(
    character: Of,
    words: Annotated[list[str], typer.Argument(metavar="WORDS...")],
    limit: Annotated[int, typer.Option(min=1, max=64, help="Most passages.")] = 5,
    cutoff: Annotated[float | None, typer.Option(help="How far the story is told, in place of the kept one.")] = None,
    words_only: Annotated[bool, typer.Option("--words-only", help="Do not load the embedder.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a character would find."""
    from rpla.core.terminal import terminal_safe

    with _opened(character) as (knowledge, id):
        if knowledge.embedder is not None and not words_only and knowledge.sources(id):
            from rpla.core.errors import RplaError

            try:
                knowledge.embedder.wait()
            except RplaError as error:
                say(f"Searching by words alone: {error}")
        found = knowledge.search(id, " ".join(words), limit=limit, cutoff=cutoff)
    if as_json:
        from dataclasses import asdict

        print_json([asdict(passage) for passage in found])
    elif not found:
        say("Nothing fits.")
    else:
        parts = [
            f"{passage.source}, {passage.place}  ({passage.reason})\n{passage.text.strip()}"
            if passage.place
            else f"{passage.source}  ({passage.reason})\n{passage.text.strip()}"
            for passage in found
        ]
        print(terminal_safe("\n\n".join(parts)))


@app.command()
def remove(character: Of, source: Annotated[str, typer.Argument(help="Its name, path or id.")]) -> None:
    """Take a source out; the file stays where it is."""
    with _opened(character) as (knowledge, id):
        gone = knowledge.remove(id, source)
    say(f"Removed {gone.name}, {gone.passages} passages.")


@app.command()
def cutoff(
    character: Of,
    time: Annotated[str, typer.Argument(help="Such as 0.5 for half the book; none for all of it.")] = "",
) -> None:
    """Show or set how far a character knows the story."""
    from rpla.core.errors import RplaError

    with _opened(character) as (knowledge, id):
        if time:
            try:
                knowledge.set_cutoff(id, None if time == "none" else float(time))
            except ValueError:
                raise RplaError(f"{time!r} is not a time in a story.", "Give a number, or none.") from None
        told = knowledge.cutoff(id)
    print("none" if told is None else f"{told:g}")


@app.command()
def reindex(
    character: Annotated[str, typer.Argument(metavar="[CHARACTER]", help="All of them where none is given.")] = "",
) -> None:
    """Make vectors that are missing or another embedder's, and the index over them anew."""
    with _opened(character) as (knowledge, id), _progress() as progress:
        made = knowledge.reindex(id or None, progress)
        faults = knowledge.check()
    for fault in faults:
        say(fault)
    say(f"Made {made} vectors, and the index anew.")
    if faults:
        raise typer.Exit(1)


@contextmanager
def _opened(character: str) -> Iterator[tuple["Knowledge", str]]:
    """The knowledge there is and the id of a character, where one is named; what the user should know is said."""
    from rpla.core.home import find_home
    from rpla.core.library import CharacterLibrary
    from rpla.core.settings import load_settings
    from rpla.memory.embedder import lazy_embedder
    from rpla.memory.knowledge import Knowledge

    home = find_home()
    id = CharacterLibrary(home).find(character).id if character else ""
    settings = load_settings(home)
    knowledge = Knowledge(home, lazy_embedder(settings.memory.embedder), settings.knowledge)
    try:
        yield knowledge, id
        for notice in knowledge.take_notices():
            say(notice)
    finally:
        knowledge.close()


@contextmanager
def _progress() -> Iterator[Any]:
    """One line on stderr that is drawn over; nothing where that is no terminal."""
    from rpla.core.terminal import terminal_safe

    def draw(name: str, done: int, whole: int) -> None:
        line = terminal_safe(f"{name}: {done} of {whole}").replace("\n", " ")[:76]
        print(f"\r{line:<76}", end="", file=sys.stderr, flush=True)

    if not sys.stderr.isatty():
        yield None
        return
    try:
        yield draw
    finally:
        print(f"\r{'':<76}\r", end="", file=sys.stderr, flush=True)


def _tell(path: Path, report: "AddReport") -> None:
    parts = [
        f"{len(names)} {what}"
        for what, names in (
            ("added", report.added),
            ("changed", report.changed),
            ("unchanged", report.unchanged),
            ("removed", report.removed),
            ("failed", report.failed),
        )
        if names
    ]
    say(f"{path}: {', '.join(parts) or 'nothing'}; {report.passages} new passages.")
