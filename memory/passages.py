"""What characters look up: sources, the passages they are made of, and what adding them did."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "markdown", "html", "pdf", "epub"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file, or a text with a name, that passages come from."""

    id: str
    character: str
    path: str
    """Where the file is; empty for a text that came without one."""
    name: str
    """What it is cited as."""
    kind: Kind
    hash: str
    """Of its content, and of how it was cut into passages."""
    in_folder: bool = False
    """Whether it was added with the folder it is in, and goes when it is gone from there."""
    story: bool = False
    """Whether passages carry how far into it they stand, from 0 to 1."""
    story_time: float | None = None
    """The time of all its passages, where one was given."""
    added: float = 0.0
    """Seconds since the epoch."""
    passages: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A passage as it is stored."""

    id: str
    place: str
    """Where in its source it stands, such as ``chapter 3`` or ``page 12``."""
    heading: str
    """The headings above it, outermost first, joined by `` > ``."""
    text: str
    fresh: int = 0
    """Where what it does not share with the passage before it begins."""
    story_time: float | None = None
    num: int = 0
    """Grows in the order of writing; 0 before it is written."""
    source: str = ""
    """Its source's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A stretch of a source, and where it is found."""

    id: str
    source: str
    """The source's name."""
    place: str
    """Where in the source: the heading, the page, the lines."""
    text: str
    score: float
    """How well it fits, from 0 to 1; comparable within one search."""
    story_time: float | None
    """How far the story is told where it ends; None for what belongs to no story."""
    reason: str
    """Why it was found, such as ``words 0.41, meaning 0.72``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddReport:
    """What adding did; sources by name."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    """Gone from an added folder, and so from here."""
    failed: tuple[str, ...] = ()
    """Files of a folder that could not be read, with why; what was there of them before stays."""
    notes: tuple[str, ...] = ()
    """What the user should know of how files were read."""
    passages: int = 0
    """Passages of what was added or changed."""
