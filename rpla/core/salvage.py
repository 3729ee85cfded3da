"""What can still be read of a damaged chat log, row by row."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rpla.core.ids import new_id

NOBODY = "0" * 32
"""User and character of a salvaged chat of which neither could be read."""

_LATEST_MS = 10**14
_LONGEST_GAP = 100_000
"""Row numbers are dense: after so many in a row that cannot be read there is nothing more."""


@dataclass
class Salvage:
    """What came over from the damaged log."""

    new_chats: list[int] = field(default_factory=list)
    turns: int = 0
    unread_chats: list[int] = field(default_factory=list)
    """Those whose row cannot be read, in numbers of the damaged log."""
    unread_turns: int = 0
    rejoined: int = 0
    ownerless: list[str] = field(default_factory=list)
    chat_of: dict[int, int] = field(default_factory=dict)
    """A chat's number in the damaged log to its number in the restored one."""
    turn_of: dict[int, int] = field(default_factory=dict)
    """The same for turns."""
    newest: dict[int, int] = field(default_factory=dict)
    """A chat's turn that was salvaged last, in numbers of the restored log."""
    rows: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    """The chats' rows by their numbers in the restored log."""


def salvage_into(restored: Path, damaged: Path) -> Salvage:
    """Bring over what `damaged`, a copy that may be changed, has and `restored` has not."""
    salvage = Salvage()
    if not _has_tables(damaged):
        give_first_page(damaged, restored)
        if not _has_tables(damaged):
            return salvage
    with contextlib.closing(connect(restored)) as target, contextlib.closing(connect(damaged)) as source:
        target.execute("BEGIN IMMEDIATE")
        _salvage_chats(source, target, salvage)
        _salvage_turns(source, target, salvage)
        _set_heads(source, target, salvage)
        # All words are indexed anew at the next search: the index may be what was damaged.
        target.execute("INSERT INTO words (words) VALUES ('delete-all')")
        target.execute("UPDATE indexed SET up_to = 0")
        target.execute("COMMIT")
    return salvage


def _has_tables(file: Path) -> bool:
    with contextlib.suppress(sqlite3.Error), contextlib.closing(connect(file)) as db:
        for table in ("chats", "turns"):
            db.execute(f"SELECT num FROM {table} WHERE FALSE")
        return True
    return False


def give_first_page(damaged: Path, sound: Path) -> None:
    """Every log begins with the same page but for counters: where that one is lost, another log's serves."""
    with sound.open("rb") as file:
        page = bytearray(file.read(4096))
    pages = damaged.stat().st_size // len(page)
    page[28:32] = pages.to_bytes(4, "big")
    page[32:40] = bytes(8)  # no list of free pages
    with damaged.open("r+b") as file:
        file.write(page)


def _salvage_chats(source: sqlite3.Connection, target: sqlite3.Connection, salvage: Salvage) -> None:
    known = {id: num for num, id in target.execute("SELECT num, id FROM chats")}
    columns = "num, id, user, character, title, created, updated, deleted, head"
    for num, row in read_rows(source, "chats", columns):
        if row is None or not _is_chat(row):
            salvage.unread_chats.append(num)
            continue
        _, id, *values = row
        if id in known:
            place = known[id]
        else:
            place = _insert(target, "chats", "id, user, character, title, created, updated, deleted", num, row[1:-1])
            salvage.new_chats.append(place)
        known[id] = place
        salvage.chat_of[num] = place
        salvage.rows[place] = tuple(values)
    # Numbers stand for the same chats in both logs, unless these have been put together from others before.
    same = all(num == place for num, place in salvage.chat_of.items())
    there = {num for (num,) in target.execute("SELECT num FROM chats")} if same else set()
    salvage.chat_of.update((num, num) for num in salvage.unread_chats if num in there)


def _salvage_turns(source: sqlite3.Connection, target: sqlite3.Connection, salvage: Salvage) -> None:
    known = {id: (num, chat) for num, id, chat in target.execute("SELECT num, id, chat FROM turns")}
    newest = dict(target.execute("SELECT chat, max(num) FROM turns GROUP BY chat"))
    lost: list[int] = []
    for num, row in read_rows(source, "turns", "num, id, chat, parent, role, created, text, meta"):
        if row is None or not _is_turn(row):
            lost.append(num)
            continue
        _, id, chat, parent, role, created, text, meta = row
        if id in known:
            salvage.turn_of[num], place = known[id]
            salvage.chat_of.setdefault(chat, place)
            continue
        if chat not in salvage.chat_of:
            salvage.chat_of[chat] = _chat_of_nobody(source, target, salvage, chat, created)
        place = salvage.chat_of[chat]
        under = None if parent is None else salvage.turn_of.get(parent)
        if parent is not None and under is None:
            under = newest.get(place)
            salvage.rejoined += 1
        values = (id, place, under, role, created, text, _meta(meta))
        new = _insert(target, "turns", "id, chat, parent, role, created, text, meta", num, values)
        known[id] = (new, place)
        salvage.turn_of[num] = new
        newest[place] = salvage.newest[place] = new
        salvage.turns += 1
    kept = {num for (num,) in target.execute("SELECT num FROM turns")}
    salvage.unread_turns = sum(num not in kept for num in lost)


def _chat_of_nobody(
    source: sqlite3.Connection, target: sqlite3.Connection, salvage: Salvage, num: int, created: int
) -> int:
    """A chat for turns whose chat's row is lost. Its owner may still stand in an index of the damaged log."""
    owner = None
    with contextlib.suppress(sqlite3.Error):
        owner = source.execute(
            "SELECT user, character FROM chats INDEXED BY chats_of WHERE +num = ?", (num,)
        ).fetchone()
    id = new_id()
    if owner is None or not all(_is_id(part) for part in owner):
        owner = (bytes.fromhex(NOBODY), bytes.fromhex(NOBODY))
        salvage.ownerless.append(id)
    values = (bytes.fromhex(id), *owner, "", created, created, None)
    place = _insert(target, "chats", "id, user, character, title, created, updated, deleted", num, values)
    salvage.new_chats.append(place)
    return place


def _set_heads(source: sqlite3.Connection, target: sqlite3.Connection, salvage: Salvage) -> None:
    """Heads, titles and the like change, so the damaged log's are the later ones where they can be read."""
    for place, (_, _, title, _, updated, deleted, _) in salvage.rows.items():
        target.execute(
            "UPDATE chats SET title = ?, updated = ?, deleted = ? WHERE num = ?", (title, updated, deleted, place)
        )
    for place in sorted({*salvage.chat_of.values(), *salvage.newest}):
        head = salvage.rows[place][-1] if place in salvage.rows else None
        new = salvage.turn_of.get(head, salvage.newest.get(place)) if head is not None else salvage.newest.get(place)
        if place in salvage.rows and head is None:
            target.execute("UPDATE chats SET head = NULL WHERE num = ?", (place,))
        elif new is not None:
            target.execute(
                "UPDATE chats SET head = ? WHERE num = ? AND EXISTS (SELECT 1 FROM turns WHERE num = ? AND chat = ?)",
                (new, place, new, place),
            )


def read_rows(db: sqlite3.Connection, table: str, columns: str) -> Iterator[tuple[int, tuple[Any, ...] | None]]:
    """Row by row by number, so that one that cannot be read (None) takes no other with it."""
    try:
        last = db.execute(f"SELECT max(num) FROM {table}").fetchone()[0] or 0
    except sqlite3.Error:
        last = None
    failed: list[int] = []
    num = gap = 0
    while gap < _LONGEST_GAP and (last is None or num < last):
        num += 1
        gap += 1
        try:
            row = db.execute(f"SELECT {columns} FROM {table} WHERE num = ?", (num,)).fetchone()
        except (sqlite3.Error, UnicodeDecodeError):
            failed.append(num)
            continue
        if row is not None:
            yield from ((before, None) for before in failed)
            failed.clear()
            yield num, row
            gap = 0
    if last is not None:
        yield from ((before, None) for before in failed)


def _insert(db: sqlite3.Connection, table: str, columns: str, num: int, values: tuple[Any, ...]) -> int:
    """Insert under the same number where it is free."""
    taken = db.execute(f"SELECT 1 FROM {table} WHERE num = ?", (num,)).fetchone()
    marks = ", ".join("?" * (len(values) + 1))
    cursor = db.execute(f"INSERT INTO {table} (num, {columns}) VALUES ({marks})", (None if taken else num, *values))
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _is_id(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == 16


def _is_date(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < _LATEST_MS


def _is_chat(row: tuple[Any, ...]) -> bool:
    _, id, user, character, title, created, updated, deleted, head = row
    return (
        _is_id(id)
        and _is_id(user)
        and _is_id(character)
        and isinstance(title, str)
        and _is_date(created)
        and _is_date(updated)
        and isinstance(deleted, int | None)
        and isinstance(head, int | None)
    )


def _is_turn(row: tuple[Any, ...]) -> bool:
    _, id, chat, parent, role, created, text, meta = row
    return (
        _is_id(id)
        and isinstance(chat, int)
        and isinstance(parent, int | None)
        and role in (0, 1)
        and _is_date(created)
        and isinstance(text, str)
        and isinstance(meta, str | None)
    )


def _meta(meta: str | None) -> str | None:
    with contextlib.suppress(ValueError):
        if meta is not None and isinstance(json.loads(meta), dict):
            return meta
    return None


def connect(file: Path, how: str = "mode=rw") -> sqlite3.Connection:
    """Open a file that is there, with no more than SQLite's own checks."""
    db = sqlite3.connect(f"{file.absolute().as_uri()}?{how}", uri=True, isolation_level=None)
    db.execute("PRAGMA foreign_keys=ON")
    return db
