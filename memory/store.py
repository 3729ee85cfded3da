"""Memories on the disk: SQLite, vectors included. This file is the truth; indexes in memory are made from it."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from rpla.core.database import Database, Schema, id_bytes, require_whole
from rpla.core.errors import RplaError
from rpla.memory.embedder import Vectors
from rpla.memory.memories import KINDS, PROVENANCES, Memory

LONGEST = 4_000
"""Most characters of one memory: it is to fit into a prompt beside others."""

_SCHEMA = Schema(
    noun="memory",
    application_id=0x52504C4D,
    version=1,
    tables="""
CREATE TABLE memories (
    num INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    user BLOB NOT NULL,
    character BLOB NOT NULL,
    kind INTEGER NOT NULL,
    provenance INTEGER NOT NULL,
    chat BLOB,
    turn BLOB,
    text TEXT NOT NULL,
    context TEXT NOT NULL,
    created INTEGER NOT NULL,
    renewed INTEGER NOT NULL,
    importance REAL NOT NULL,
    present BLOB NOT NULL,
    story_time REAL,
    pinned INTEGER NOT NULL,
    mentions INTEGER NOT NULL,
    superseded_by BLOB,
    embedder INTEGER REFERENCES embedders(num),
    vector BLOB
);
CREATE INDEX memories_of ON memories(user, character, num);
CREATE INDEX memories_from ON memories(chat, turn);
CREATE TABLE evidence (
    insight INTEGER NOT NULL REFERENCES memories(num) ON DELETE CASCADE,
    episode INTEGER NOT NULL REFERENCES memories(num) ON DELETE CASCADE,
    PRIMARY KEY (insight, episode)
) WITHOUT ROWID;
CREATE INDEX evidence_for ON evidence(episode);
CREATE TABLE embedders (num INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE remembered (chat BLOB PRIMARY KEY, up_to INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE reflected (user BLOB, character BLOB, up_to INTEGER NOT NULL, PRIMARY KEY (user, character)) WITHOUT ROWID;
CREATE TABLE revisions (
    user BLOB,
    character BLOB,
    number INTEGER NOT NULL,
    PRIMARY KEY (user, character)
) WITHOUT ROWID;
CREATE TABLE forgotten (chat BLOB NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (chat, digest)) WITHOUT ROWID;
CREATE TABLE summaries (
    chat BLOB NOT NULL,
    first BLOB NOT NULL,
    last BLOB NOT NULL,
    turns INTEGER NOT NULL,
    text TEXT NOT NULL,
    created INTEGER NOT NULL,
    PRIMARY KEY (chat, last)
);
""",
    mend="`rpla memory doctor --mend` moves it aside and remembers the chats anew.",
)
_MEMORY = (
    "SELECT m.num, lower(hex(m.id)), lower(hex(m.user)), lower(hex(m.character)), m.kind, m.provenance, "
    "lower(hex(m.chat)), lower(hex(m.turn)), m.text, m.context, m.created, m.renewed, m.importance, m.present, "
    "m.story_time, m.pinned, m.mentions, lower(hex(m.superseded_by)), "
    "(SELECT group_concat(lower(hex(e.id))) FROM evidence v JOIN memories e ON e.num = v.episode "
    "WHERE v.insight = m.num)"
)
_INSERT = (
    "INSERT INTO memories (id, user, character, kind, provenance, chat, turn, text, context, created, renewed, "
    "importance, present, story_time, pinned, mentions, superseded_by, embedder, vector) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


@dataclass(frozen=True, slots=True)
class Row:
    """A memory with its number, which grows in the order of writing, and its vector where it has one."""

    num: int
    memory: Memory
    vector: Vectors | None = None


class MemoryStore:
    """All memories of one home. Safe to use from several threads and processes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(path, _SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def transaction(self) -> AbstractContextManager[object]:
        """Several writes that are on the disk together, or not at all."""
        return self._database.writing()

    # Writing

    def add(
        self,
        memories: Sequence[Memory],
        vectors: Sequence[Vectors | None] | None = None,
        *,
        embedder: str = "",
        remembered: Mapping[str, int] | None = None,
    ) -> list[Row]:
        """Add memories; all are on the disk once this returns, or none is.

        `vectors` stand in the order of `memories` and come from the embedder of that name. `remembered` maps chats to
        the newest turn (its number in the chat log) that was gone through, in the same transaction: a turn is
        remembered once, whenever the process dies. Raises RplaError where a text is empty, too long or cannot be
        stored, or evidence is not there.
        """
        for memory in memories:
            _require_fit(memory.text)
        rows: list[Row] = []
        with self._database.writing() as db:
            number = self._embedder(embedder) if embedder and vectors is not None else None
            for place, memory in enumerate(memories):
                vector = vectors[place] if vectors is not None else None
                num = db.execute(_INSERT, _values(memory, number if vector is not None else None, vector)).lastrowid
                assert num is not None
                for episode in memory.evidence:
                    db.execute("INSERT INTO evidence VALUES (?, ?)", (num, self._num(episode)))
                rows.append(Row(num, memory, vector))
            for chat, up_to in (remembered or {}).items():
                db.execute(
                    "INSERT INTO remembered VALUES (?, ?) ON CONFLICT DO UPDATE SET up_to = max(up_to, excluded.up_to)",
                    (id_bytes(chat), up_to),
                )
        return rows

    def change(self, id: str, **fields: Any) -> Memory:
        """Change fields of a memory; returns it changed. They are text, provenance, importance, pinned, renewed,
        mentions and superseded_by.

        A changed text loses its vector, which is made anew; the old one is not remembered again from the same chat.
        Raises RplaError where there is no such memory.
        """
        with self._database.writing() as db:
            before = self.get(id)
            changed = replace(before, **fields)
            _require_fit(changed.text)
            if changed.text != before.text:
                self._bury(before)
            db.execute(
                "UPDATE memories SET text = ?, provenance = ?, importance = ?, pinned = ?, renewed = ?, mentions = ?, "
                "superseded_by = ?"
                + (", vector = NULL, embedder = NULL" if "text" in fields else "")
                + " WHERE id = ?",
                (
                    changed.text,
                    PROVENANCES.index(changed.provenance),
                    changed.importance,
                    changed.pinned,
                    round(changed.renewed * 1000),
                    changed.mentions,
                    _blob(changed.superseded_by),
                    id_bytes(id),
                ),
            )
            self._revise([(changed.user, changed.character)])
        return changed

    def set_vectors(self, rows: Sequence[Row], vectors: Sequence[Vectors], embedder: str) -> None:
        """Keep vectors that were made later, or by another embedder; not of what was edited meanwhile."""
        with self._database.writing() as db:
            number = self._embedder(embedder)
            db.executemany(
                "UPDATE memories SET vector = ?, embedder = ? WHERE num = ? AND text = ?",
                [
                    (_packed(vector), number, row.num, row.memory.text)
                    for row, vector in zip(rows, vectors, strict=True)
                ],
            )

    def unmark(self) -> None:
        """Have every chat gone through anew: its turns have other numbers after the log was restored."""
        with self._database.writing() as db:
            db.execute("DELETE FROM remembered")

    def forget(self, ids: Iterable[str]) -> list[str]:
        """Take memories away for good, and the insights that then stand on fewer than two episodes; the ids gone.

        The same words are not remembered from the same chat again, however often it is gone through. Raises RplaError
        where one is not there; then none is taken.
        """
        with self._database.writing():
            memories = [self.get(id) for id in dict.fromkeys(ids)]
            for memory in memories:
                self._bury(memory)
            gone = self._take_away([memory.id for memory in memories])
            self._revise({(memory.user, memory.character) for memory in memories})
        return gone

    def erase(self, chat: str, turns: Sequence[str] | None, words: Iterable[str], quoting: Sequence[str]) -> list[str]:
        """Overwrite what is remembered of some turns of a chat, or of all; the ids gone, insights on them included.

        `words` are the texts that were remembered from them, or may have been. `quoting` are the turns that answer
        them: their memories stay, without what was said before.
        """
        with self._database.writing() as db:
            memories = self.find(self.from_turns(chat, turns))
            standing = self.standing_on([memory.id for memory in memories])
            gone = self._take_away([*(memory.id for memory in memories), *(insight.id for insight in standing)])
            db.executemany(
                "DELETE FROM forgotten WHERE chat = ? AND digest = ?",
                [(id_bytes(chat), _digest(text)) for text in (*words, *(memory.text for memory in memories))],
            )
            changed = self.find(self.from_turns(chat, quoting))
            db.executemany("UPDATE memories SET context = '' WHERE id = ?", [(id_bytes(one.id),) for one in changed])
            if turns is None:
                for table in ("forgotten", "summaries", "remembered"):
                    db.execute(f"DELETE FROM {table} WHERE chat = ?", (id_bytes(chat),))
            self._revise({(one.user, one.character) for one in (*memories, *standing, *changed)})
        return gone

    def erase_scope(self, user: str, character: str) -> int:
        """Overwrite all that one character remembers of one user; how many memories that were."""
        scope = (id_bytes(user), id_bytes(character))
        with self._database.writing() as db:
            count = db.execute("DELETE FROM memories WHERE user = ? AND character = ?", scope).rowcount
            db.execute("DELETE FROM reflected WHERE user = ? AND character = ?", scope)
            self._revise([(user, character)])
        return count

    def scrub(self) -> None:
        """Overwrite what was forgotten, so that it cannot be read from the file any more.

        Raises RplaError where another process is reading the file.
        """
        self._database.scrub()

    # Reading

    def get(self, id: str) -> Memory:
        """One memory. Raises RplaError where there is none of this id."""
        found = self.find([id])
        if not found:
            raise RplaError(f"There is no memory {id}.", "`rpla memory list` shows them.")
        return found[0]

    def find(self, ids: Sequence[str]) -> list[Memory]:
        """The memories of these ids that are there, in this order."""
        by_id: dict[str, Memory] = {}
        with self._database.reading() as db:
            for start in range(0, len(ids), 500):
                part = [id_bytes(id) for id in ids[start : start + 500]]
                marks = ", ".join("?" * len(part))
                for row in db.execute(f"{_MEMORY} FROM memories m WHERE m.id IN ({marks})", part):
                    memory = _memory(row)
                    by_id[memory.id] = memory
        return [by_id[id] for id in ids if id in by_id]

    def rows(self, user: str, character: str, *, after: int = 0, embedder: str = "") -> list[Row]:
        """Memories of one user and character, in the order they were written, from the number `after` on.

        With vectors where they were made by the embedder of that name.
        """
        with self._database.reading() as db:
            number = db.execute("SELECT num FROM embedders WHERE name = ?", (embedder,)).fetchone()
            rows = db.execute(
                f"{_MEMORY}, CASE WHEN m.embedder = ? THEN m.vector END FROM memories m "
                "WHERE m.user = ? AND m.character = ? AND m.num > ? ORDER BY m.num",
                (number[0] if number else None, id_bytes(user), id_bytes(character), after),
            ).fetchall()
        return [Row(row[0], _memory(row), _unpacked(row[-1])) for row in rows]

    def standing_on(self, ids: Sequence[str]) -> list[Memory]:
        """The insights that have one of these memories among their evidence."""
        insights: dict[str, None] = {}
        with self._database.reading() as db:
            for id in ids:
                insights |= dict.fromkeys(
                    row[0]
                    for row in db.execute(
                        "SELECT lower(hex(i.id)) FROM memories e JOIN evidence v ON v.episode = e.num "
                        "JOIN memories i ON i.num = v.insight WHERE e.id = ?",
                        (id_bytes(id),),
                    )
                )
        return self.find(list(insights))

    def was_forgotten(self, chat: str, text: str) -> bool:
        """Whether these words of a chat were forgotten or changed by hand: they are not remembered from it again."""
        with self._database.reading() as db:
            row = db.execute(
                "SELECT 1 FROM forgotten WHERE chat = ? AND digest = ?", (id_bytes(chat), _digest(text))
            ).fetchone()
        return row is not None

    def pass_over(self, memories: Iterable[Memory]) -> None:
        """Have the words of these memories not be remembered from their chats again: they are kept already."""
        with self._database.writing():
            for memory in memories:
                self._bury(memory)

    def keep_forgotten(self, digests: Iterable[tuple[bytes, bytes]]) -> None:
        """Take over which words of which chats were forgotten, as another store had them."""
        with self._database.writing() as db:
            db.executemany("INSERT OR IGNORE INTO forgotten VALUES (?, ?)", digests)

    def drop_vectors(self, user: str, character: str) -> None:
        """Take all vectors away, so that they are made anew."""
        with self._database.writing() as db:
            db.execute(
                "UPDATE memories SET vector = NULL, embedder = NULL WHERE user = ? AND character = ?",
                (id_bytes(user), id_bytes(character)),
            )
            self._revise([(user, character)])

    def embedders(self, user: str, character: str) -> dict[str, int]:
        """How many memories have a vector of which embedder; an empty name stands for none."""
        with self._database.reading() as db:
            return dict(
                db.execute(
                    "SELECT coalesce(e.name, ''), count(*) FROM memories m LEFT JOIN embedders e ON e.num = m.embedder "
                    "WHERE m.user = ? AND m.character = ? GROUP BY 1",
                    (id_bytes(user), id_bytes(character)),
                )
            )

    def chats(self) -> list[str]:
        """Every chat that something is remembered of, summed up of, or that was gone through."""
        with self._database.reading() as db:
            return [
                id
                for (id,) in db.execute(
                    "SELECT lower(hex(chat)) FROM memories WHERE chat IS NOT NULL UNION "
                    "SELECT lower(hex(chat)) FROM summaries UNION SELECT lower(hex(chat)) FROM remembered"
                )
            ]

    def scopes(self) -> list[tuple[str, str, int]]:
        """Every user and character with memories, and how many there are."""
        with self._database.reading() as db:
            return db.execute(
                "SELECT lower(hex(user)), lower(hex(character)), count(*) FROM memories GROUP BY user, character"
            ).fetchall()

    def turns_remembered(self, chat: str) -> frozenset[str]:
        """Turns of a chat that left a memory."""
        with self._database.reading() as db:
            rows = db.execute(
                "SELECT DISTINCT lower(hex(turn)) FROM memories WHERE chat = ? AND turn IS NOT NULL", (id_bytes(chat),)
            ).fetchall()
        return frozenset(turn for (turn,) in rows)

    def from_turns(self, chat: str, turns: Sequence[str] | None = None) -> list[str]:
        """Ids of the memories that come from a chat, or from these turns of it."""
        with self._database.reading() as db:
            rows = db.execute(
                "SELECT lower(hex(id)), lower(hex(turn)) FROM memories WHERE chat = ?", (id_bytes(chat),)
            ).fetchall()
        wanted = None if turns is None else set(turns)
        return [id for id, turn in rows if wanted is None or turn in wanted]

    def revision(self, user: str, character: str) -> tuple[int, int]:
        """Two numbers: one grows when a memory is added, the other when one is changed or forgotten."""
        scope = (id_bytes(user), id_bytes(character))
        with self._database.reading() as db:
            (newest,) = db.execute(
                "SELECT coalesce(max(num), 0) FROM memories WHERE user = ? AND character = ?", scope
            ).fetchone()
            changed = db.execute("SELECT number FROM revisions WHERE user = ? AND character = ?", scope).fetchone()
        return newest, changed[0] if changed else 0

    @property
    def data_version(self) -> int:
        """Changes when another process has written, and then only."""
        with self._database.reading() as db:
            return int(db.execute("PRAGMA data_version").fetchone()[0])

    def remembered(self, chat: str) -> int:
        """Number of the newest turn of a chat that was gone through; 0 for none."""
        with self._database.reading() as db:
            row = db.execute("SELECT up_to FROM remembered WHERE chat = ?", (id_bytes(chat),)).fetchone()
        return row[0] if row else 0

    # Reflection and summaries

    def reflected(self, user: str, character: str) -> int:
        """Number of the newest memory that was reflected on; 0 for none."""
        with self._database.reading() as db:
            row = db.execute(
                "SELECT up_to FROM reflected WHERE user = ? AND character = ?", (id_bytes(user), id_bytes(character))
            ).fetchone()
        return row[0] if row else 0

    def gathered(self, user: str, character: str) -> float:
        """Importance of the episodes since then, those that were superseded left out."""
        with self._database.reading() as db:
            (sum_,) = db.execute(
                "SELECT coalesce(sum(importance), 0) FROM memories WHERE user = ? AND character = ? AND num > ? "
                "AND kind = ? AND superseded_by IS NULL",
                (id_bytes(user), id_bytes(character), self.reflected(user, character), KINDS.index("episode")),
            ).fetchone()
        return float(sum_)

    def mark_reflected(self, user: str, character: str, up_to: int) -> None:
        """Note the number of the newest memory that was reflected on."""
        with self._database.writing() as db:
            db.execute(
                "INSERT OR REPLACE INTO reflected VALUES (?, ?, ?)", (id_bytes(user), id_bytes(character), up_to)
            )

    def keep_summary(self, chat: str, first: str, last: str, turns: int, text: str) -> None:
        """Keep the summary of a run of turns: the first and the last of them, and how many they are."""
        _require_fit(text)
        with self._database.writing() as db:
            db.execute(
                "INSERT OR REPLACE INTO summaries VALUES (?, ?, ?, ?, ?, ?)",
                (id_bytes(chat), id_bytes(first), id_bytes(last), turns, text, round(now() * 1000)),
            )

    def summaries(self, chat: str) -> list[tuple[str, str, int, str]]:
        """First turn, last turn, number of turns and text of a chat's summaries, on all its branches."""
        with self._database.reading() as db:
            return db.execute(
                "SELECT lower(hex(first)), lower(hex(last)), turns, text FROM summaries WHERE chat = ? "
                "ORDER BY created",
                (id_bytes(chat),),
            ).fetchall()

    def drop_summaries(self, chat: str, lasts: Iterable[str]) -> None:
        """Take away the summaries that end in these turns."""
        with self._database.writing() as db:
            db.executemany(
                "DELETE FROM summaries WHERE chat = ? AND last = ?",
                [(id_bytes(chat), id_bytes(last)) for last in lasts],
            )

    def faults(self) -> list[str]:
        """What is wrong with the file; empty where it is sound."""
        return self._database.faults()

    def checkpoint(self) -> None:
        """Fold the write-ahead log into the file."""
        self._database.checkpoint()

    def _take_away(self, ids: Iterable[str]) -> list[str]:
        """Delete memories, and the insights that are then left with fewer than two episodes; the ids of all of them."""
        db, gone, left = self._database.connection, dict[str, None](), list(ids)
        while left:
            id = left.pop(0)
            if id in gone:
                continue
            fallen = [insight.id for insight in self.standing_on([id]) if len(insight.evidence) <= 2]
            db.execute("UPDATE memories SET superseded_by = NULL WHERE superseded_by = ?", (id_bytes(id),))
            db.execute("DELETE FROM memories WHERE id = ?", (id_bytes(id),))
            gone[id] = None
            left += fallen
        return list(gone)

    def _bury(self, memory: Memory) -> None:
        if memory.chat is not None:
            self._database.connection.execute(
                "INSERT OR IGNORE INTO forgotten VALUES (?, ?)", (id_bytes(memory.chat), _digest(memory.text))
            )

    def _revise(self, scopes: Iterable[tuple[str, str]]) -> None:
        self._database.connection.executemany(
            "INSERT INTO revisions VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET number = number + 1",
            [(id_bytes(user), id_bytes(character)) for user, character in scopes],
        )

    def _num(self, id: str) -> int:
        row = self._database.connection.execute("SELECT num FROM memories WHERE id = ?", (id_bytes(id),)).fetchone()
        if row is None:
            raise RplaError(f"There is no memory {id}.")
        return int(row[0])

    def _embedder(self, name: str) -> int:
        db = self._database.connection
        db.execute("INSERT OR IGNORE INTO embedders (name) VALUES (?)", (name,))
        return int(db.execute("SELECT num FROM embedders WHERE name = ?", (name,)).fetchone()[0])


def now() -> float:
    """Seconds since the epoch, to the millisecond that is stored."""
    return time.time_ns() // 1_000_000 / 1000


def _require_fit(text: str) -> None:
    require_whole(text)
    if not text.strip():
        raise RplaError("There is nothing to remember.", "Say what.")
    if len(text) > LONGEST:
        raise RplaError(
            f"A memory has at most {LONGEST:,} characters; this has {len(text):,}.",
            "Say it shorter, or add a long text with `rpla knowledge add`.",
        )


def _values(memory: Memory, embedder: int | None, vector: Vectors | None) -> tuple[Any, ...]:
    require_whole(memory.context)
    return (
        id_bytes(memory.id),
        id_bytes(memory.user),
        id_bytes(memory.character),
        KINDS.index(memory.kind),
        PROVENANCES.index(memory.provenance),
        _blob(memory.chat),
        _blob(memory.turn),
        memory.text,
        memory.context,
        round(memory.created * 1000),
        round(memory.renewed * 1000),
        memory.importance,
        b"".join(map(id_bytes, memory.present)),
        memory.story_time,
        memory.pinned,
        memory.mentions,
        _blob(memory.superseded_by),
        embedder,
        None if vector is None else _packed(vector),
    )


def _memory(row: Sequence[Any]) -> Memory:
    return Memory(
        id=row[1],
        user=row[2],
        character=row[3],
        kind=KINDS[row[4]],
        provenance=PROVENANCES[row[5]],
        chat=row[6] or None,
        turn=row[7] or None,
        text=row[8],
        context=row[9],
        created=row[10] / 1000,
        renewed=row[11] / 1000,
        importance=row[12],
        present=tuple(row[13][at : at + 16].hex() for at in range(0, len(row[13]), 16)),
        story_time=row[14],
        pinned=bool(row[15]),
        mentions=row[16],
        superseded_by=row[17] or None,
        evidence=tuple(row[18].split(",")) if row[18] else (),
    )


def _digest(text: str) -> bytes:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def _blob(id: str | None) -> bytes | None:
    return None if id is None else id_bytes(id)


def _packed(vector: Vectors) -> bytes:
    """Half precision takes half the room; `rpla bench memory --section scale` says what it costs in recall."""
    return vector.astype(np.float16).tobytes()


def _unpacked(stored: bytes | None) -> Vectors | None:
    return None if stored is None else np.frombuffer(stored, dtype=np.float16).astype(np.float32)
