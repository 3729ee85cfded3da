"""What many memories cost: recall, opening, durable writes and room, with twenty characters in one file."""

import contextlib
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rpla.bench.at_hand import AtHand
from rpla.bench.result import Result, percentile
from rpla.core.chatlog import ChatLog
from rpla.core.errors import RplaError
from rpla.core.ids import id_of
from rpla.core.settings import MemorySettings
from rpla.memory.embedder import LazyEmbedder, Vectors
from rpla.memory.episodic import EpisodicMemory, Viewpoint
from rpla.memory.memories import Memory
from rpla.memory.store import MemoryStore, Row

CHARACTERS = 20
_QUERIES = 15
"""Sentences of a character's part of the novels that it is asked with, and does not remember."""
_SAME_AGAIN = 0.1
"""Length of the noise on the vector of a sentence that is used again."""
_WRITTEN = 100
"""Memories written in one transaction."""
_RECALLED = 10
_CONTEXT = 200
_MINUTE_S = 60.0
_USER = id_of("user", "bench")


@dataclass(frozen=True, slots=True)
class Share:
    """What one character remembers, and what it is asked with."""

    number: int
    texts: Sequence[str]
    vectors: Vectors
    queries: Sequence[str]
    query_vectors: Vectors
    distinct: int

    @property
    def character(self) -> str:
        """The id of the character."""
        return id_of("bench", f"character {self.number}")

    @property
    def viewpoint(self) -> Viewpoint:
        """All of it was said on the open branch."""
        return Viewpoint(chat=self._chat, turns=frozenset(map(self._turn, range(len(self.texts)))))

    def memories(self, start: int, end: int, newest: float) -> list[Memory]:
        """Some of the memories; one a minute, so that the last of all is from `newest`."""
        return [
            Memory(
                id=id_of("memory", f"{self.number} {place}"),
                user=_USER,
                character=self.character,
                text=self.texts[place],
                context=" ".join(text[-_CONTEXT:] for text in self.texts[max(0, place - 2) : place]),
                chat=self._chat,
                turn=self._turn(place),
                created=(moment := newest - (len(self.texts) - place) * _MINUTE_S),
                renewed=moment,
            )
            for place in range(start, end)
        ]

    @property
    def _chat(self) -> str:
        return id_of("chat", str(self.number))

    def _turn(self, place: int) -> str:
        return id_of("turn", f"{self.number} {place}")


def require_size(size: int, sentences: int) -> None:
    """Raise RplaError where so many memories, or sentences, are too few to measure anything."""
    if size < CHARACTERS * _RECALLED:
        raise RplaError(f"{size:,} memories are too few for {CHARACTERS} characters.", "--size 100000")
    if sentences < CHARACTERS * (_QUERIES + _RECALLED):
        raise RplaError(f"The novels have {sentences:,} sentences, which is too few.", "Give longer ones.")


def shares_of(sentences: Sequence[str], vectors: Vectors, size: int) -> list[Share]:
    """`size` memories over the characters, of whom each has a part of the novels to itself.

    Where a part has too few sentences they are used again, with small seeded noise on their vectors.
    """
    require_size(size, len(sentences))
    return [
        _share(number, part, sentences, vectors, size // CHARACTERS)
        for number, part in enumerate(np.array_split(np.arange(len(sentences)), CHARACTERS))
    ]


def _share(number: int, part: NDArray[np.intp], sentences: Sequence[str], vectors: Vectors, size: int) -> Share:
    asked = part[:: len(part) // _QUERIES][:_QUERIES]
    at_hand = np.setdiff1d(part, asked)
    places = np.resize(at_hand, size)
    kept = vectors[places]
    again = kept[len(at_hand) :]
    if len(again):
        noise = np.random.default_rng(number).standard_normal(again.shape, dtype=np.float32)
        again += noise * np.float32(_SAME_AGAIN / np.sqrt(vectors.shape[1]))
        again /= np.linalg.norm(again, axis=1, keepdims=True)
    return Share(
        number=number,
        texts=[sentences[int(place)] for place in places],
        vectors=kept,
        queries=[sentences[int(place)] for place in asked],
        query_vectors=vectors[asked],
        distinct=min(size, len(at_hand)),
    )


def measure_scale(sentences: Sequence[str], vectors: Vectors, embedder: str, size: int) -> list[Result]:
    """Figures for `size` memories; the embedder of that name made the sentences' vectors, and nothing is embedded.

    The file is written, and then read by a process of its own, whose room is measured.
    """
    shares = shares_of(sentences, vectors, size)
    with tempfile.TemporaryDirectory(prefix="rpla-bench-") as folder:
        file = Path(folder) / "memory.db"
        writing_s = _write(file, shares, embedder)
        stored = file.stat().st_size
        asked = [_Asked(share.character, share.viewpoint, share.queries, share.query_vectors) for share in shares]
        # A process of its own, started afresh: this one has held an embedder and all the vectors.
        with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as process:
            read = process.submit(_read, file, asked, embedder).result()
        exact = _read_exactly(file, shares, asked, embedder)
    found = [len(set(ids) & set(best)) / len(best) for ids, best in zip(read.ids, exact, strict=True) if best]
    written = sum(len(share.texts) for share in shares)
    return [
        Result("recall_p50_ms", percentile(read.recall_ms, 50), "≤ 8"),
        Result("recall_p95_ms", percentile(read.recall_ms, 95), "≤ 20"),
        Result("open_ms", statistics.median(read.open_ms)),
        Result("exact_recall_at_10", statistics.fmean(found), "≥ 0.97"),
        Result("writes_per_s", written / writing_s, "≥ 2000"),
        Result("bytes_per_memory", stored / written),
        Result("peak_rss_mb", read.peak_rss_mb),
        Result("memories", written),
        Result("distinct_memories", sum(share.distinct for share in shares)),
    ]


def _write(file: Path, shares: Sequence[Share], embedder: str) -> float:
    """Write all memories, a hundred at a time; the seconds that the store took."""
    store, newest, taken = MemoryStore(file), time.time(), 0.0
    for share in shares:
        for start in range(0, len(share.texts), _WRITTEN):
            end = min(start + _WRITTEN, len(share.texts))
            memories, vectors = share.memories(start, end, newest), list(share.vectors[start:end])
            begun = time.perf_counter()
            store.add(memories, vectors, embedder=embedder)
            taken += time.perf_counter() - begun
    store.checkpoint()
    store.close()
    return taken


@dataclass(frozen=True, slots=True)
class _Asked:
    character: str
    viewpoint: Viewpoint
    queries: Sequence[str]
    query_vectors: Vectors


@dataclass(frozen=True, slots=True)
class _Readings:
    open_ms: list[float]
    recall_ms: list[float]
    ids: list[list[str]]
    peak_rss_mb: float


def _opened(store: MemoryStore, log: ChatLog, asked: _Asked, embedder: str) -> EpisodicMemory:
    at_hand = AtHand(embedder, asked.queries, asked.query_vectors)
    return EpisodicMemory(
        store,
        log,
        user=_USER,
        character=asked.character,
        embedder=LazyEmbedder(embedder, at_hand),
        settings=MemorySettings(floor=0),  # ten come to every query
    )


def _read(file: Path, characters: Sequence[_Asked], embedder: str) -> _Readings:
    """Open one character after another, and recall with all that it is asked."""
    open_ms: list[float] = []
    recall_ms: list[float] = []
    ids: list[list[str]] = []
    log = ChatLog(file.with_name("chats.db"))
    for asked in characters:
        begun = time.perf_counter()
        store = MemoryStore(file)
        memory = _opened(store, log, asked, embedder)
        memory.recall(asked.queries[0], asked.viewpoint, limit=_RECALLED)
        open_ms.append((time.perf_counter() - begun) * 1000)
        for query in asked.queries:
            begun = time.perf_counter()
            recalled = memory.recall(query, asked.viewpoint, limit=_RECALLED)
            recall_ms.append((time.perf_counter() - begun) * 1000)
            ids.append([one.memory.id for one in recalled])
        store.close()
    log.close()
    return _Readings(open_ms, recall_ms, ids, peak_rss_mb())


def _read_exactly(file: Path, shares: Sequence[Share], characters: Sequence[_Asked], embedder: str) -> list[list[str]]:
    """What is recalled where the vectors are as they were before they were stored."""
    ids: list[list[str]] = []
    log = ChatLog(file.with_name("chats.db"))
    for share, asked in zip(shares, characters, strict=True):
        store = _Unrounded(file, share.vectors)
        memory = _opened(store, log, asked, embedder)
        for query in asked.queries:
            ids.append([one.memory.id for one in memory.recall(query, asked.viewpoint, limit=_RECALLED)])
        store.close()
    log.close()
    return ids


class _Unrounded(MemoryStore):
    """The memories of one character, with their vectors as they were given."""

    def __init__(self, file: Path, vectors: Vectors) -> None:
        super().__init__(file)
        self._vectors = vectors

    def rows(self, user: str, character: str, *, after: int = 0, embedder: str = "") -> list[Row]:
        rows = super().rows(user, character, after=after, embedder=embedder)
        vectors = self._vectors[len(self._vectors) - len(rows) :]
        return [replace(row, vector=vector) for row, vector in zip(rows, vectors, strict=True)]


def peak_rss_mb() -> float:
    """The most memory that this process has held; 0 where the system does not tell."""
    # Linux's ru_maxrss is inherited from the process that started this one; this is not.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    with contextlib.suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS
    return 0.0
