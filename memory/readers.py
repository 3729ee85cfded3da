"""Files to text: which kind a file is, and how plain text and Markdown are read."""

import re
from dataclasses import dataclass
from pathlib import Path

from rpla.core.errors import RplaError
from rpla.memory.passages import Kind

LARGEST_FILE = 64 * 1024 * 1024
"""Most bytes of one file."""
LONGEST_TEXT = 20_000_000
"""Most characters of one file's text: some thirty long novels."""

KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".epub": "epub",
}
"""What is read, by how the file's name ends."""

_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_CHAPTER = re.compile(
    r"[ \t]*(?:(?:chapter|book|part|volume|letter|act|scene|canto|section|stave)[ \t]+"
    r"(?:[ivxlcdm]+|\d+|the[ \t]\w+|(?:twenty|thirty|forty|fifty)?-?\w{3,10})|prologue|epilogue|preface)"
    r"(?:[ \t]*[.:—–-].{0,80})?[ \t]*",
    re.IGNORECASE,
)
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*")
_FENCE = re.compile(r" {0,3}(```|~~~)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stretch of a file with a place of its own: a chapter, a page, what stands under a heading."""

    text: str
    place: str = ""
    """How it is cited; where it is empty, by the lines of the file."""
    heading: str = ""
    """The headings above it, outermost first, joined by `` > ``."""
    first_line: int = 0
    """The line of the file that it begins on; 0 where lines say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a file holds."""

    kind: Kind
    parts: tuple[Part, ...]
    title: str = ""
    """What the file says it is called."""
    note: str = ""
    """What the user should know of how it was read."""


def read_source(data: bytes, name: str, kind: Kind | None = None) -> Reading:
    """Read a file's bytes, by what they are rather than by what the name says.

    Raises RplaError where they are not text of a kind that is read: binary, encrypted, damaged, too long or empty.
    """
    if len(data) > LARGEST_FILE:
        raise RplaError(f"{name} is larger than {LARGEST_FILE >> 20} MiB.", "Split it, or leave out what is no text.")
    if not data.strip():
        raise RplaError(f"{name} is empty.", "There is nothing to add.")
    kind = kind or KINDS.get(Path(name).suffix.lower())
    note = ""
    if b"%PDF-" in data[:1024]:
        from rpla.memory.pdf import read_pdf

        kind, title, parts = "pdf", "", read_pdf(data, name)
    elif data.startswith(b"PK\x03\x04"):
        from rpla.memory.epub import read_epub

        kind, (title, parts) = "epub", read_epub(data, name)
    elif kind in ("pdf", "epub"):
        raise RplaError(f"{name} is damaged, or no {kind.upper()} file.", "Open it in a reader to see.")
    else:
        kind = kind or "text"
        text, note = decoded(data, name)
        if kind == "html":
            from rpla.memory.html import read_html

            title, parts = read_html(text)
        else:
            title, parts = "", markdown_parts(text) if kind == "markdown" else text_parts(text)
    parts = [part for part in parts if part.text.strip()]
    if not parts:
        raise RplaError(f"{name} holds no text.", "There is nothing to add.")
    if sum(len(part.text) for part in parts) > LONGEST_TEXT:
        raise RplaError(f"{name} holds more than {LONGEST_TEXT:,} characters.", "Split it.")
    return Reading(kind=kind, parts=tuple(parts), title=title, note=note)


def decoded(data: bytes, name: str) -> tuple[str, str]:
    """Text from bytes, and a note where they are not UTF-8. Raises RplaError where they are no text."""
    note = ""
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        try:
            text = data.decode("cp1252")
        except UnicodeDecodeError:
            raise RplaError(f"{name} is not text in UTF-8.", "Save it as UTF-8, or leave it out.") from None
        note = f"{name} is not UTF-8; it was read as Windows-1252. Save it as UTF-8 where letters came out wrong."
    if "\0" in text or len(_CONTROL.findall(text)) * 20 > len(text):
        raise RplaError(f"{name} is not a text file.", f"These are read: {', '.join(KINDS)}.")
    return text.replace("\r\n", "\n").replace("\r", "\n"), note


def text_parts(text: str) -> list[Part]:
    """Plain text by its chapters, where lines of their own begin them."""
    marks: list[tuple[int, str, int]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) <= 120 and _CHAPTER.fullmatch(line):
            marks.append((1, " ".join(line.split()), number))
    return _parts(text, marks, cited=False)


def markdown_parts(text: str) -> list[Part]:
    """Markdown by its headings; what looks like one within a code block is none."""
    marks: list[tuple[int, str, int]] = []
    fence = ""
    for number, line in enumerate(text.split("\n"), 1):
        if found := _FENCE.match(line):
            fence = "" if fence == found[1] else fence or found[1]
        elif not fence and (heading := _HEADING.fullmatch(line)):
            marks.append((len(heading[1]), heading[2], number))
    return _parts(text, marks, cited=True)


def _parts(text: str, marks: list[tuple[int, str, int]], *, cited: bool) -> list[Part]:
    """The stretches between headings, each with the headings above it."""
    lines = text.split("\n")
    parts = [Part(text="\n".join(lines[: marks[0][2] - 1] if marks else lines), first_line=1)]
    above: list[tuple[int, str]] = []
    for place, (level, title, number) in enumerate(marks):
        end = marks[place + 1][2] - 1 if place + 1 < len(marks) else len(lines)
        above = [*((depth, name) for depth, name in above if depth < level), (level, title)]
        heading = " > ".join(name for _, name in above if name)
        # The first heading alone names the whole file; deeper ones say where in it.
        where = " > ".join(name for _, name in above[1:] if name) or heading
        parts.append(
            Part(
                text="\n".join(lines[number:end]),
                heading=heading,
                place=where if cited else "",
                first_line=number + 1,
            )
        )
    return parts
