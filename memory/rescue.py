"""A damaged memory.db is moved aside and begun anew.

What was said is in the chat log, and is remembered from there. What is nowhere else (notes, pins, what was forgotten)
is brought over where it can be read.
"""

import contextlib
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpla.core.database import alone
from rpla.core.errors import RplaError
from rpla.core.home import Home
from rpla.core.salvage import connect, give_first_page, read_rows
from rpla.core.snapshot import move_aside
from rpla.memory.memories import PROVENANCES, Memory
from rpla.memory.store import LONGEST, MemoryStore

_LATEST_MS = 10**14
_COLUMNS = (
    "num, id, user, character, kind, provenance, chat, turn, text, created, renewed, importance, present, story_time, "
    "pinned, mentions"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescue:
    """What came over from a damaged memory.db."""

    aside: Path
    """Where the damaged file is now."""
    kept: int
    """Memories that were noted by hand or pinned, and could be read."""
    unread: int
    """Memories that could not be read: of these nobody knows whether they were noted or pinned."""
    insights: int
    """Pinned insights that were read, but have lost the episodes they stood on."""
    readable: bool
    """Whether anything could be read at all."""
    forgotten: bool
    """Whether all that was forgotten stays forgotten; else it may be remembered again from the chats."""


def rescue(home: Home) -> Rescue:
    """Move memory.db aside, open a new one, and bring over what the chat log does not have.

    Everything else is remembered at the next start. Raises RplaError, and changes nothing, where another process has
    the file open or the disk is full. No MemoryStore of this process may be open on it.
    """
    try:
        with alone(home.memory), tempfile.TemporaryDirectory(dir=home.root, prefix=".restore-") as name:
            return _rescue(home, Path(name))
    except OSError as error:
        raise RplaError(
            f"{home.memory} could not be begun anew: {error.strerror}.", "Check the folder's permissions and the disk."
        ) from error


def _rescue(home: Home, folder: Path) -> Rescue:
    copy, fresh = folder / "damaged.db", folder / "memory.db"
    for ending in ("", "-wal"):
        file = home.memory.with_name(home.memory.name + ending)
        if file.exists():
            shutil.copyfile(file, copy.with_name(copy.name + ending))
    store = MemoryStore(fresh)
    store.checkpoint()
    if not _has_memories(copy):
        give_first_page(copy, fresh)
    kept: list[Memory] = []
    unread = insights = 0
    readable, digests, whole = _has_memories(copy), list[tuple[bytes, bytes]](), False
    with contextlib.closing(store):
        if readable:
            with contextlib.closing(connect(copy)) as damaged:
                for _, row in read_rows(damaged, "memories", _COLUMNS):
                    memory = _memory(row) if row is not None else None
                    if memory is None:
                        unread += 1
                    elif memory.kind == "insight":
                        insights += memory.pinned
                    elif memory.pinned or memory.provenance == "noted":
                        kept.append(memory)
                with contextlib.suppress(sqlite3.Error):
                    for chat, digest in damaged.execute("SELECT chat, digest FROM forgotten"):
                        if isinstance(chat, bytes) and isinstance(digest, bytes) and len(chat) == len(digest) == 16:
                            digests.append((chat, digest))
                    whole = True
        store.add(list({memory.id: memory for memory in kept}.values()))
        store.pass_over(kept)
        store.keep_forgotten(digests)
        store.checkpoint()
    aside = move_aside(home.memory)
    fresh.replace(home.memory)
    return Rescue(aside=aside, kept=len(kept), unread=unread, insights=insights, readable=readable, forgotten=whole)


def _has_memories(file: Path) -> bool:
    with contextlib.suppress(sqlite3.Error), contextlib.closing(connect(file)) as db:
        db.execute(f"SELECT {_COLUMNS} FROM memories WHERE FALSE")
        return True
    return False


def _memory(row: tuple[Any, ...]) -> Memory | None:
    """A row as a memory; None where a field cannot be what was written."""
    (
        *_,
        id,
        user,
        character,
        kind,
        provenance,
        chat,
        turn,
        text,
        created,
        renewed,
        importance,
        present,
        story_time,
        pinned,
        mentions,
    ) = row
    ids = all(isinstance(one, bytes) and len(one) == 16 for one in (id, user, character))
    places = all(one is None or (isinstance(one, bytes) and len(one) == 16) for one in (chat, turn))
    times = all(isinstance(one, int) and 0 <= one < _LATEST_MS for one in (created, renewed))
    numbers = isinstance(importance, float) and isinstance(mentions, int) and isinstance(story_time, float | None)
    sorts = kind in (0, 1) and pinned in (0, 1) and provenance in range(len(PROVENANCES))
    texts = isinstance(text, str) and 0 < len(text.strip()) <= len(text) <= LONGEST
    if not (ids and places and times and numbers and sorts and texts and isinstance(present, bytes)):
        return None
    return Memory(
        id=id.hex(),
        user=user.hex(),
        character=character.hex(),
        kind="insight" if kind else "episode",
        provenance=PROVENANCES[provenance],
        chat=chat.hex() if chat else None,
        turn=turn.hex() if turn else None,
        text=text,
        created=created / 1000,
        renewed=renewed / 1000,
        importance=importance,
        present=tuple(present[at : at + 16].hex() for at in range(0, len(present) - 15, 16)),
        story_time=story_time,
        pinned=bool(pinned),
        mentions=mentions,
    )
