"""Passages on the disk, vectors included. This file is the truth; indexes over it can be made again."""

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rpla.core.database import Database, Schema, id_bytes
from rpla.core.errors import RplaError
from rpla.core.ids import new_id
from rpla.memory.embedder import Vectors
from rpla.memory.passages import Piece, Source

_SCHEMA = Schema(
    noun="store of knowledge",
    application_id=0x52504C4B,
    version=1,
    tables="""
CREATE TABLE sources (
    num INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    character BLOB NOT NULL,
    path TEXT NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    hash BLOB NOT NULL,
    in_folder INTEGER NOT NULL,
    story INTEGER NOT NULL,
    story_time REAL,
    added INTEGER NOT NULL
);
CREATE INDEX sources_of ON sources(character, num);
CREATE TABLE passages (
    num INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    source INTEGER NOT NULL REFERENCES sources(num) ON DELETE CASCADE,
    ordinal INTEGER NOT NULL,
    place TEXT NOT NULL,
    heading TEXT NOT NULL,
    text TEXT NOT NULL,
    fresh INTEGER NOT NULL,
    story_time REAL,
    embedder INTEGER REFERENCES embedders(num),
    vector BLOB
);
CREATE INDEX passages_of ON passages(source, ordinal);
CREATE TABLE embedders (num INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE cutoffs (character BLOB PRIMARY KEY, story_time REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE stamps (character BLOB PRIMARY KEY, stamp BLOB NOT NULL) WITHOUT ROWID;
""",
    mend="Move it away and add the files again: `rpla knowledge add`.",
)
_SOURCE = (
    "SELECT lower(hex(s.id)), lower(hex(s.character)), s.path, s.name, s.kind, lower(hex(s.hash)), s.in_folder, "
    "s.story, s.story_time, s.added, (SELECT count(*) FROM passages p WHERE p.source = s.num) FROM sources s"
)
_OF_CHARACTER = "FROM passages p JOIN sources s ON s.num = p.source WHERE s.character = ?"
_TOLD = "(p.story_time IS NULL OR p.story_time <= ?)"


class PassageStore:
    """All sources and passages of one home. Safe to use from several threads and processes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(path, _SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    # Writing

    def put(
        self, source: Source, pieces: Sequence[Piece], vectors: Sequence[Vectors | None] = (), embedder: str = ""
    ) -> None:
        """Store a source with these passages, in place of those it had; what stays the same keeps its vector.

        `vectors` stand in the order of `pieces`; None where a passage keeps what it has, or has none.
        """
        with self._database.writing() as db:
            (num,) = db.execute(
                "INSERT INTO sources (id, character, path, name, kind, hash, in_folder, story, story_time, added) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET name = excluded.name, "
                "kind = excluded.kind, hash = excluded.hash, in_folder = excluded.in_folder, story = excluded.story, "
                "story_time = excluded.story_time, added = excluded.added RETURNING num",
                (
                    id_bytes(source.id),
                    id_bytes(source.character),
                    source.path,
                    source.name,
                    source.kind,
                    id_bytes(source.hash),
                    source.in_folder,
                    source.story,
                    source.story_time,
                    time.time_ns() // 1_000_000,
                ),
            ).fetchone()
            kept = {id_bytes(piece.id) for piece in pieces}
            there = db.execute("SELECT num, id FROM passages WHERE source = ?", (num,)).fetchall()
            db.executemany("DELETE FROM passages WHERE num = ?", [(n,) for n, id in there if id not in kept])
            number = self._embedder(embedder) if embedder else None
            for ordinal, piece in enumerate(pieces):
                vector = vectors[ordinal] if vectors else None
                db.execute(
                    "INSERT INTO passages (id, source, ordinal, place, heading, text, fresh, story_time, embedder, "
                    "vector) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                    "ordinal = excluded.ordinal, place = excluded.place, story_time = excluded.story_time, "
                    "embedder = coalesce(excluded.embedder, embedder), vector = coalesce(excluded.vector, vector)",
                    (
                        id_bytes(piece.id),
                        num,
                        ordinal,
                        piece.place,
                        piece.heading,
                        piece.text,
                        piece.fresh,
                        piece.story_time,
                        None if vector is None else number,
                        None if vector is None else vector.astype("<f4").tobytes(),
                    ),
                )
            self._stamp(source.character)

    def remove(self, character: str, ids: Iterable[str]) -> None:
        """Take sources of a character out, with their passages."""
        with self._database.writing() as db:
            db.executemany(
                "DELETE FROM sources WHERE id = ? AND character = ?",
                [(id_bytes(id), id_bytes(character)) for id in ids],
            )
            self._stamp(character)

    def set_vectors(self, character: str, nums: Sequence[int], vectors: Vectors, embedder: str) -> None:
        """Keep vectors that were made later, or by another embedder."""
        with self._database.writing() as db:
            number = self._embedder(embedder)
            db.executemany(
                "UPDATE passages SET embedder = ?, vector = ? WHERE num = ?",
                [(number, row.astype("<f4").tobytes(), num) for num, row in zip(nums, vectors, strict=True)],
            )
            self._stamp(character)

    def set_cutoff(self, character: str, story_time: float | None) -> None:
        """Set how far the story is told to a character; None for all of it."""
        with self._database.writing() as db:
            db.execute("DELETE FROM cutoffs WHERE character = ?", (id_bytes(character),))
            if story_time is not None:
                db.execute("INSERT INTO cutoffs VALUES (?, ?)", (id_bytes(character), story_time))

    def erase(self, character: str) -> None:
        """Remove all of a character's and overwrite it. Raises RplaError where another process keeps the old pages."""
        with self._database.writing() as db:
            for table in ("sources", "cutoffs", "stamps"):
                db.execute(f"DELETE FROM {table} WHERE character = ?", (id_bytes(character),))
        self._database.scrub()

    # Reading

    def sources(self, character: str) -> list[Source]:
        """A character's sources, by name."""
        with self._database.reading() as db:
            rows = db.execute(f"{_SOURCE} WHERE s.character = ? ORDER BY s.name, s.num", (id_bytes(character),))
            return [_source(row) for row in rows.fetchall()]

    def characters(self) -> list[str]:
        """Ids of the characters that have sources."""
        with self._database.reading() as db:
            return [row[0] for row in db.execute("SELECT DISTINCT lower(hex(character)) FROM sources ORDER BY 1")]

    def stamp(self, character: str) -> str:
        """Changes whenever a character's passages or vectors do, and then only; empty where there are none."""
        with self._database.reading() as db:
            row = db.execute("SELECT lower(hex(stamp)) FROM stamps WHERE character = ?", (id_bytes(character),))
            found = row.fetchone()
        return str(found[0]) if found else ""

    def cutoff(self, character: str) -> float | None:
        """How far the story is told to a character; None for all of it."""
        with self._database.reading() as db:
            row = db.execute("SELECT story_time FROM cutoffs WHERE character = ?", (id_bytes(character),)).fetchone()
        return None if row is None else float(row[0])

    def texts(self, character: str, after: int = 0) -> list[tuple[int, str]]:
        """Numbers of a character's passages beyond a number, with headings and text, in the order of writing."""
        with self._database.reading() as db:
            return db.execute(
                f"SELECT p.num, p.heading || char(10) || p.text {_OF_CHARACTER} AND p.num > ? ORDER BY p.num",
                (id_bytes(character), after),
            ).fetchall()

    def nums(self, character: str, cutoff: float | None = None) -> set[int]:
        """Numbers of the passages that lie before a cut-off."""
        with self._database.reading() as db:
            rows = db.execute(
                f"SELECT p.num {_OF_CHARACTER} AND {_TOLD}",
                (id_bytes(character), math.inf if cutoff is None else cutoff),
            )
            return {row[0] for row in rows}

    def vectors(self, character: str, embedder: str) -> tuple[list[int], list[float | None], Vectors]:
        """Numbers, story times and vectors of a character's passages that the embedder of that name made."""
        with self._database.reading() as db:
            rows = db.execute(
                f"SELECT p.num, p.story_time, p.vector {_OF_CHARACTER} "
                "AND p.embedder = (SELECT num FROM embedders WHERE name = ?) ORDER BY p.num",
                (id_bytes(character), embedder),
            ).fetchall()
        sizes = {len(row[2]) for row in rows}
        if len(sizes) > 1:
            raise RplaError(f"{self.path} holds vectors of several sizes.", "`rpla knowledge reindex` makes them anew.")
        matrix = np.frombuffer(b"".join(row[2] for row in rows), dtype="<f4").astype(np.float32)
        return (
            [row[0] for row in rows],
            [row[1] for row in rows],
            matrix.reshape(len(rows), sizes.pop() // 4 if sizes else 0),
        )

    def without_vector(self, character: str, embedder: str) -> list[Piece]:
        """A character's passages whose vector is not there, or another embedder's."""
        return self._pieces(
            "s.character = ? AND p.embedder IS NOT (SELECT coalesce((SELECT num FROM embedders WHERE name = ?), -1)) "
            "ORDER BY p.num",
            (id_bytes(character), embedder),
        )

    def embedded(self, source: str, embedder: str) -> set[str]:
        """Ids of a source's passages that have a vector of the embedder of that name."""
        with self._database.reading() as db:
            rows = db.execute(
                "SELECT lower(hex(p.id)) FROM passages p JOIN sources s ON s.num = p.source "
                "JOIN embedders e ON e.num = p.embedder WHERE s.id = ? AND e.name = ?",
                (id_bytes(source), embedder),
            )
            return {row[0] for row in rows}

    def embedders(self, character: str) -> dict[str, int]:
        """How many vectors each embedder made; under the empty name, how many passages have none."""
        with self._database.reading() as db:
            rows = db.execute(
                f"SELECT coalesce((SELECT name FROM embedders e WHERE e.num = p.embedder), ''), count(*) "
                f"{_OF_CHARACTER} GROUP BY 1",
                (id_bytes(character),),
            )
            return dict(rows.fetchall())

    def pieces(self, nums: Sequence[int], character: str, cutoff: float | None = None) -> dict[int, Piece]:
        """The passages of these numbers that are this character's and lie before the cut-off."""
        marks = ", ".join("?" * len(nums))
        return {
            piece.num: piece
            for piece in self._pieces(
                f"s.character = ? AND {_TOLD} AND p.num IN ({marks})",
                (id_bytes(character), math.inf if cutoff is None else cutoff, *nums),
            )
        }

    def piece(self, id: str) -> Piece | None:
        """The passage of this id."""
        return next(iter(self._pieces("p.id = ?", (id_bytes(id),))), None)

    def pieces_of(self, source: str) -> list[Piece]:
        """A source's passages, in its order."""
        return self._pieces("s.id = ? ORDER BY p.ordinal", (id_bytes(source),))

    def faults(self) -> list[str]:
        """What is wrong with the file; empty where it is sound."""
        return self._database.faults()

    def _pieces(self, where: str, values: Sequence[Any]) -> list[Piece]:
        with self._database.reading() as db:
            rows = db.execute(
                "SELECT p.num, lower(hex(p.id)), s.name, p.place, p.heading, p.text, p.fresh, p.story_time "
                f"FROM passages p JOIN sources s ON s.num = p.source WHERE {where}",
                values,
            ).fetchall()
        return [
            Piece(num=num, id=id, source=name, place=place, heading=heading, text=text, fresh=fresh, story_time=time)
            for num, id, name, place, heading, text, fresh, time in rows
        ]

    def _stamp(self, character: str) -> None:
        self._database.connection.execute(
            "INSERT INTO stamps VALUES (?, ?) ON CONFLICT DO UPDATE SET stamp = excluded.stamp",
            (id_bytes(character), id_bytes(new_id())),
        )

    def _embedder(self, name: str) -> int:
        db = self._database.connection
        db.execute("INSERT OR IGNORE INTO embedders (name) VALUES (?)", (name,))
        return int(db.execute("SELECT num FROM embedders WHERE name = ?", (name,)).fetchone()[0])


def _source(row: Sequence[Any]) -> Source:
    return Source(
        id=row[0],
        character=row[1],
        path=row[2],
        name=row[3],
        kind=row[4],
        hash=row[5],
        in_folder=bool(row[6]),
        story=bool(row[7]),
        story_time=row[8],
        added=row[9] / 1000,
        passages=row[10],
    )
