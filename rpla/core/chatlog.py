"""The chat log: an append-only tree of turns in SQLite, and the truth of what was said.

Every change of a conversation (regenerate, edit, branch, rewind) adds turns or moves the chat's head; no operation
takes a turn away. A turn counts once its commit is on the disk (WAL, ``synchronous=FULL``).
"""

import json
import re
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rpla.core.database import Database, Schema, id_bytes, require_whole
from rpla.core.errors import RplaError
from rpla.core.ids import new_id

Role = Literal["user", "character"]

SCHEMA_VERSION = 1
_ROLES: tuple[Role, ...] = ("user", "character")
_TABLES = """
CREATE TABLE chats (
    num INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    user BLOB NOT NULL,
    character BLOB NOT NULL,
    title TEXT NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    deleted INTEGER,
    head INTEGER REFERENCES turns(num)
);
CREATE INDEX chats_of ON chats(user, character);
CREATE TABLE turns (
    num INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    chat INTEGER NOT NULL REFERENCES chats(num),
    parent INTEGER REFERENCES turns(num),
    role INTEGER NOT NULL,
    created INTEGER NOT NULL,
    text TEXT NOT NULL,
    meta TEXT
);
CREATE INDEX turns_under ON turns(chat, parent);
CREATE VIRTUAL TABLE words USING fts5(text, content='', tokenize='unicode61 remove_diacritics 2');
CREATE TABLE indexed (up_to INTEGER NOT NULL);
INSERT INTO indexed VALUES (0);
"""
_SCHEMA = Schema(
    noun="chat log",
    application_id=0x52504C41,
    version=SCHEMA_VERSION,
    tables=_TABLES,
    mend="`rpla doctor --mend` restores it from a snapshot.",
)
_TURN = (
    "SELECT t.num, lower(hex(t.id)), lower(hex(c.id)), lower(hex(p.id)), t.role, t.created, t.text, t.meta "
    "FROM turns t JOIN chats c ON c.num = t.chat LEFT JOIN turns p ON p.num = t.parent "
)
_CHAT = (
    "SELECT lower(hex(c.id)), lower(hex(c.user)), lower(hex(c.character)), "
    "coalesce(nullif(c.title, ''), "
    "(SELECT substr(text, 1, 60) FROM turns WHERE chat = c.num AND role = 0 AND text <> '' LIMIT 1), ''), "
    "c.created, c.updated, c.deleted, lower(hex(h.id)), (SELECT count(*) FROM turns WHERE chat = c.num) "
    "FROM chats c LEFT JOIN turns h ON h.num = c.head "
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message of a chat."""

    id: str
    chat: str
    parent: str | None
    """The turn it follows; None for a chat's first."""
    role: Role
    text: str
    created: float
    """Seconds since the epoch."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What is known of how it came about: finish, flags, sections of the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatInfo:
    """A chat without its turns."""

    id: str
    user: str
    character: str
    title: str
    """As given, else how the user's first message begins."""
    created: float
    updated: float
    deleted: bool
    head: str | None
    """The newest turn of the branch that is open."""
    turns: int
    """All turns, on every branch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A turn that a search found."""

    turn: Turn
    chat: ChatInfo


class ChatLog:
    """All chats of one home. Safe to use from several threads and processes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(path, _SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def create_chat(self, *, user: str, character: str, title: str = "") -> ChatInfo:
        """A new, empty chat."""
        chat, now = new_id(), _now()
        require_whole(title)
        with self._database.writing() as db:
            db.execute(
                "INSERT INTO chats (id, user, character, title, created, updated) VALUES (?, ?, ?, ?, ?, ?)",
                (id_bytes(chat), id_bytes(user), id_bytes(character), title, now, now),
            )
        return self.chat(chat)

    def append(
        self, chat: str, parent: str | None, role: Role, text: str, *, meta: Mapping[str, Any] | None = None
    ) -> Turn:
        """Add a turn under `parent` and make it the chat's head. Durable once this returns.

        Raises RplaError where chat or parent is unknown, the text cannot be stored, or the disk is full.
        """
        return self.append_all(chat, parent, [(role, text, meta or {})])[0]

    def append_all(
        self, chat: str, parent: str | None, said: Sequence[tuple[Role, str, Mapping[str, Any]]]
    ) -> list[Turn]:
        """Add turns, each under the one before, and make the last the chat's head: all of them, or none."""
        now, turns = _now(), list[Turn]()
        with self._database.writing() as db:
            chat_num = self._num("chats", chat)
            parent_num = None
            if parent is not None:
                row = db.execute(
                    "SELECT num FROM turns WHERE id = ? AND chat = ?", (id_bytes(parent), chat_num)
                ).fetchone()
                if row is None:
                    raise RplaError(f"Turn {parent} is not in chat {chat}.")
                parent_num = row[0]
            for role, text, meta in said:
                require_whole(text)
                turn = new_id()
                parent_num = db.execute(
                    "INSERT INTO turns (id, chat, parent, role, created, text, meta) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (id_bytes(turn), chat_num, parent_num, _ROLES.index(role), now, text, _packed(meta)),
                ).lastrowid
                turns.append(
                    Turn(id=turn, chat=chat, parent=parent, role=role, text=text, created=now / 1000, meta=dict(meta))
                )
                parent = turn
            db.execute("UPDATE chats SET head = ?, updated = ? WHERE num = ?", (parent_num, now, chat_num))
        return turns

    def add_chat(
        self, *, user: str, character: str, title: str = "", turns: Sequence[Turn], head: str | None
    ) -> ChatInfo:
        """A new chat with turns that were kept elsewhere, parents before children: all of it, durable, or nothing.

        The turns name one another by ids of any kind, which are replaced by new ones, and their `chat` is not looked
        at; `head` is one of those ids. Raises RplaError where one names a turn that is not before it, or a text cannot
        be stored.
        """
        chat, now, nums = new_id(), _now(), dict[str, int]()
        with self._database.writing() as db:
            chat_num = db.execute(
                "INSERT INTO chats (id, user, character, title, created, updated) VALUES (?, ?, ?, ?, ?, ?)",
                (
                    id_bytes(chat),
                    id_bytes(user),
                    id_bytes(character),
                    title,
                    _milliseconds(turns[0]) if turns else now,
                    now,
                ),
            ).lastrowid
            try:
                for turn in turns:
                    parent = None if turn.parent is None else nums[turn.parent]
                    values = (id_bytes(new_id()), chat_num, parent, _ROLES.index(turn.role), _milliseconds(turn))
                    num = db.execute(
                        "INSERT INTO turns (id, chat, parent, role, created, text, meta) VALUES (?, ?, ?, ?, ?, ?, ?)",
                        (*values, turn.text, _packed(turn.meta)),
                    ).lastrowid
                    assert num is not None
                    nums[turn.id] = num
                head_num = None if head is None else nums[head]
            except KeyError as error:
                raise RplaError(f"Turn {error.args[0]} is named before it comes.") from error
            except UnicodeEncodeError as error:
                raise RplaError(f"Turn {turn.id} holds half a character (a lone surrogate).") from error
            db.execute("UPDATE chats SET head = ? WHERE num = ?", (head_num, chat_num))
        return self.chat(chat)

    @property
    def empty(self) -> bool:
        """Whether nothing was said yet."""
        with self._database.reading() as db:
            return db.execute("SELECT 1 FROM turns LIMIT 1").fetchone() is None

    def set_head(self, chat: str, turn: str | None) -> None:
        """Open the branch that ends in `turn`."""
        with self._database.writing() as db:
            chat_num, head = self._num("chats", chat), None if turn is None else self._num("turns", turn)
            if db.execute("SELECT 1 FROM turns WHERE num = ? AND chat <> ?", (head, chat_num)).fetchone():
                raise RplaError(f"Turn {turn} is not in chat {chat}.")
            db.execute("UPDATE chats SET head = ? WHERE num = ?", (head, chat_num))

    def rename(self, chat: str, title: str) -> None:
        """Give a chat another title."""
        require_whole(title)
        with self._database.writing() as db:
            db.execute("UPDATE chats SET title = ? WHERE num = ?", (title, self._num("chats", chat)))

    def delete(self, chat: str) -> None:
        """Put a chat away; `undelete` brings it back."""
        with self._database.writing() as db:
            db.execute("UPDATE chats SET deleted = ? WHERE num = ?", (_now(), self._num("chats", chat)))

    def undelete(self, chat: str) -> None:
        """Bring a deleted chat back."""
        with self._database.writing() as db:
            db.execute("UPDATE chats SET deleted = NULL WHERE num = ?", (self._num("chats", chat),))

    def erase(self, turns: Iterable[str]) -> None:
        """Overwrite what was said in these turns. They stay where they are, empty, so that no chat gets shorter.

        `scrub` takes the old text out of the file's free pages and of the write-ahead log.
        """
        with self._database.writing() as db:
            db.executemany(
                "UPDATE turns SET text = '', meta = ? WHERE num = ?",
                [(_packed({"erased": True}), self._num("turns", turn)) for turn in turns],
            )
            self._forget_words()

    def erase_chat(self, chat: str) -> None:
        """Overwrite all that was said in a chat, and its title; then `remove` takes away its rows."""
        with self._database.writing() as db:
            num = self._num("chats", chat)
            db.execute("UPDATE turns SET text = '', meta = ? WHERE chat = ?", (_packed({"erased": True}), num))
            db.execute("UPDATE chats SET title = '' WHERE num = ?", (num,))
            self._forget_words()

    def remove(self, chat: str) -> None:
        """Take away the rows of an erased chat. Raises RplaError for one that was not erased."""
        with self._database.reading() as db:
            # For each row taken away SQLite would look through all turns for one that follows it.
            db.execute("PRAGMA foreign_keys=OFF")
            try:
                with self._database.writing():
                    num = self._num("chats", chat)
                    if db.execute("SELECT 1 FROM turns WHERE chat = ? AND text <> '' LIMIT 1", (num,)).fetchone():
                        raise RplaError(f"Chat {chat} was not erased.")
                    db.execute("DELETE FROM turns WHERE chat = ?", (num,))
                    db.execute("DELETE FROM chats WHERE num = ?", (num,))
            finally:
                db.execute("PRAGMA foreign_keys=ON")

    def scrub(self) -> None:
        """Overwrite what was erased wherever the file still holds it.

        Raises RplaError where another process is reading the file.
        """
        self._database.scrub()

    def chat(self, chat: str) -> ChatInfo:
        """One chat. Raises RplaError where it is unknown."""
        with self._database.reading() as db:
            row = db.execute(_CHAT + "WHERE c.id = ?", (id_bytes(chat),)).fetchone()
        if row is None:
            raise RplaError(f"There is no chat {chat}.", "`rpla chats list` shows them.")
        return _chat(row)

    def head(self, chat: str) -> str | None:
        """The newest turn of the branch that is open."""
        with self._database.reading() as db:
            row = db.execute(
                "SELECT lower(hex(t.id)) FROM chats c JOIN turns t ON t.num = c.head WHERE c.id = ?", (id_bytes(chat),)
            ).fetchone()
        return row[0] if row else None

    def chats(self, *, user: str | None = None, character: str | None = None, deleted: bool = False) -> list[ChatInfo]:
        """Chats, the most recently used first; of deleted ones the most recently deleted."""
        conditions, values = ["c.deleted IS NOT NULL" if deleted else "c.deleted IS NULL"], []
        for column, value in (("user", user), ("character", character)):
            if value is not None:
                conditions.append(f"c.{column} = ?")
                values.append(id_bytes(value))
        with self._database.reading() as db:
            order = "c.deleted" if deleted else "c.updated"
            rows = db.execute(_CHAT + f"WHERE {' AND '.join(conditions)} ORDER BY {order} DESC, c.num DESC", values)
            return [_chat(row) for row in rows]

    def turn(self, turn: str) -> Turn:
        """One turn. Raises RplaError where it is unknown."""
        with self._database.reading() as db:
            row = db.execute(_TURN + "WHERE t.id = ?", (id_bytes(turn),)).fetchone()
        if row is None:
            raise RplaError(f"There is no turn {turn}.")
        return _turn(row)

    def branch(self, leaf: str | None) -> list[Turn]:
        """The branch that ends in `leaf`, oldest turn first."""
        if leaf is None:
            return []
        with self._database.reading() as db:
            rows = db.execute(
                "WITH RECURSIVE branch(num, depth) AS ("
                "  SELECT num, 0 FROM turns WHERE id = ?"
                "  UNION ALL SELECT t.parent, depth + 1 FROM turns t JOIN branch b ON t.num = b.num"
                "  WHERE t.parent IS NOT NULL"
                ") " + _TURN + "JOIN branch b ON b.num = t.num ORDER BY b.depth DESC",
                (id_bytes(leaf),),
            ).fetchall()
        return [_turn(row) for row in rows]

    def open_turns(self, chat: str) -> frozenset[str]:
        """Ids of the turns on a chat's open branch, and of those that are said again on it after an edit.

        None for a chat that is put away, or not there.
        """
        with self._database.reading() as db:
            rows = db.execute(
                "WITH RECURSIVE branch(num) AS ("
                "  SELECT head FROM chats WHERE id = ? AND deleted IS NULL AND head IS NOT NULL"
                "  UNION ALL SELECT t.parent FROM turns t JOIN branch b ON t.num = b.num WHERE t.parent IS NOT NULL"
                ") SELECT lower(hex(t.id)), json_extract(t.meta, '$.same') FROM branch b JOIN turns t ON t.num = b.num",
                (id_bytes(chat),),
            ).fetchall()
        return frozenset(id for row in rows for id in row if id)

    def open_head(self, chat: str) -> str | None:
        """The last turn of a chat's open branch; None for a chat that is put away, empty, or not there."""
        with self._database.reading() as db:
            row = db.execute(
                "SELECT lower(hex(t.id)) FROM chats c JOIN turns t ON t.num = c.head "
                "WHERE c.id = ? AND c.deleted IS NULL",
                (id_bytes(chat),),
            ).fetchone()
        return row[0] if row else None

    def turns_after(self, chat: str, num: int) -> list[tuple[int, Turn]]:
        """A chat's turns from the number `num` on, all branches, in the order they were added, with their numbers."""
        with self._database.reading() as db:
            rows = db.execute(
                _TURN + "WHERE t.chat = ? AND t.num > ? ORDER BY t.num", (self._num("chats", chat), num)
            ).fetchall()
        return [(row[0], _turn(row)) for row in rows]

    def children(self, chat: str, turn: str | None) -> list[Turn]:
        """The turns that follow `turn` (None: the chat's first), oldest first: alternatives of one another."""
        with self._database.reading() as db:
            parent = None if turn is None else self._num("turns", turn)
            rows = db.execute(
                _TURN + "WHERE t.chat = ? AND t.parent IS ? ORDER BY t.num", (self._num("chats", chat), parent)
            )
            return [_turn(row) for row in rows]

    def turns(self, chat: str) -> list[Turn]:
        """Every turn of a chat, on all its branches, in the order they were added."""
        with self._database.reading() as db:
            return [
                _turn(row) for row in db.execute(_TURN + "WHERE t.chat = ? ORDER BY t.num", (self._num("chats", chat),))
            ]

    def leaves(self, chat: str) -> list[Turn]:
        """The last turn of every branch, the newest first."""
        with self._database.reading() as db:
            rows = db.execute(
                _TURN
                + "WHERE t.chat = ? AND NOT EXISTS (SELECT 1 FROM turns n WHERE n.chat = t.chat AND n.parent = t.num) "
                "ORDER BY t.num DESC",
                (self._num("chats", chat),),
            )
            return [_turn(row) for row in rows]

    def search(
        self, query: str, *, user: str | None = None, character: str | None = None, limit: int = 20
    ) -> list[Hit]:
        """Turns that hold all the words of `query` (the last as a prefix), best first. Deleted chats are left out."""
        words = _segmented(query).replace("\0", " ").split()
        if not words:
            return []
        match = " ".join('"' + word.replace('"', '""') + '"' for word in words) + "*"
        conditions, values = ["c.deleted IS NULL"], []
        for column, value in (("user", user), ("character", character)):
            if value is not None:
                conditions.append(f"c.{column} = ?")
                values.append(id_bytes(value))
        self._index()
        with self._database.reading() as db:
            rows = db.execute(
                _TURN + f"JOIN words w ON w.rowid = t.num WHERE w.text MATCH ? AND {' AND '.join(conditions)} "
                "ORDER BY w.rank LIMIT ?",
                (match, *values, limit),
            ).fetchall()
        return [Hit(turn=turn, chat=self.chat(turn.chat)) for turn in map(_turn, rows)]

    def verify(self) -> list[str]:
        """What is wrong with the file; empty where it is sound."""
        faults = self._database.faults()
        with self._database.reading() as db:
            try:
                db.execute("INSERT INTO words (words) VALUES ('integrity-check')")
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                faults.append(f"the index of words: {error}")
        return faults

    def backup(self, target: Path) -> None:
        """Write a consistent copy of the log, while it is in use."""
        self._database.backup(target)

    def checkpoint(self) -> None:
        """Fold the write-ahead log into the file."""
        self._database.checkpoint()

    def _index(self) -> None:
        """Bring the word index up to the newest turn: it is kept off the path of a turn."""
        with self._database.writing() as db:
            (up_to,) = db.execute("SELECT up_to FROM indexed").fetchone()
            rows = db.execute("SELECT num, text FROM turns WHERE num > ? ORDER BY num", (up_to,)).fetchall()
            if rows:
                db.executemany(
                    "INSERT INTO words (rowid, text) VALUES (?, ?)", [(num, _segmented(text)) for num, text in rows]
                )
                db.execute("UPDATE indexed SET up_to = ?", (rows[-1][0],))

    def _forget_words(self) -> None:
        """Empty the word index, which is made anew at the next search: it keeps removed words until it is merged."""
        self._database.connection.execute("INSERT INTO words (words) VALUES ('delete-all')")
        self._database.connection.execute("UPDATE indexed SET up_to = 0")

    def _num(self, table: Literal["chats", "turns"], id: str) -> int:
        row = self._database.connection.execute(f"SELECT num FROM {table} WHERE id = ?", (id_bytes(id),)).fetchone()
        if row is None:
            raise RplaError(f"There is no {table.removesuffix('s')} {id}.")
        return int(row[0])


def _now() -> int:
    return time.time_ns() // 1_000_000


def _milliseconds(turn: Turn) -> int:
    return round(turn.created * 1000)


def _packed(meta: Mapping[str, Any] | None) -> str | None:
    return json.dumps(meta, ensure_ascii=False, separators=(",", ":")) if meta else None


def _segmented(text: str) -> str:
    """Text for the word index: SQLite's tokenizer takes a run of CJK characters for one word, so each stands alone."""
    return re.sub("([\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff])", r" \1 ", text)


def _turn(row: Sequence[Any]) -> Turn:
    _, id, chat, parent, role, created, text, meta = row
    return Turn(
        id=id,
        chat=chat,
        parent=parent or None,
        role=_ROLES[role],
        text=text,
        created=created / 1000,
        meta=json.loads(meta) if meta else {},
    )


def _chat(row: Sequence[Any]) -> ChatInfo:
    id, user, character, title, created, updated, deleted, head, turns = row
    return ChatInfo(
        id=id,
        user=user,
        character=character,
        title=title,
        created=created / 1000,
        updated=updated / 1000,
        deleted=deleted is not None,
        head=head or None,
        turns=turns,
    )
