"""What one character remembers of one user, as the open branch sees it: by relevance, recency and importance."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rpla.core.chatlog import ChatLog
from rpla.core.errors import RplaError
from rpla.core.ids import new_id
from rpla.core.settings import MemorySettings
from rpla.memory.embedder import LazyEmbedder, Vectors
from rpla.memory.index import Entry, Match, MemoryIndex
from rpla.memory.memories import Memory, Recalled
from rpla.memory.store import MemoryStore, Row, now

_DAY_S = 86_400.0
_LOOKED_FOR_S = 0.05
_EMBEDDED_AT_ONCE = 16
"""So many, and then whoever speaks meanwhile has a turn at the embedder."""
_FETCHED = 48
"""How many are looked at first; more where too many of them may not be recalled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewpoint:
    """From where a character looks back: what is not on the way here did not happen."""

    chat: str
    turns: frozenset[str]
    """Turns of the open branch."""
    shown: frozenset[str] = frozenset()
    """Those of them that stand in the prompt anyway."""
    story_time: float | None = None
    """What lies after is unknown; None knows all."""


class EpisodicMemory:
    """Memories of one user and one character. Safe to use from several threads; other processes' writes are seen."""

    def __init__(
        self,
        store: MemoryStore,
        log: ChatLog,
        *,
        user: str,
        character: str,
        embedder: LazyEmbedder | None,
        settings: MemorySettings,
    ) -> None:
        """`user` and `character` are ids."""
        self.user, self.character, self.store, self.embedder = user, character, store, embedder
        self._log, self._settings = log, settings
        self._lock = threading.RLock()
        self.remembering = threading.Lock()
        """Held by who goes through what was said: one at a time."""
        self._index = MemoryIndex()
        self._memories: dict[int, Memory] = {}
        self._nums: dict[str, int] = {}
        self._branches: dict[str, tuple[str | None, frozenset[str]]] = {}
        self._indexed_with = ""
        self._revision: tuple[int, int] | None = None
        self._data_version = -1

    @property
    def embedder_missing(self) -> bool:
        """Whether memories will have vectors that cannot be made yet."""
        return self.embedder is not None and self.embedder.loading

    def load_embedder(self, stop: threading.Event | None = None) -> None:
        """Load the embedder if it is not there yet; where it cannot be loaded, words alone serve. `stop` ends it."""
        if self.embedder is not None:
            self.embedder.start()
            stop = stop or threading.Event()
            while self.embedder.loading and not stop.wait(_LOOKED_FOR_S):
                pass

    # Recalling

    def recall(self, query: str, viewpoint: Viewpoint | None, *, limit: int | None = None) -> list[Recalled]:
        """What comes to mind at these words: the best `limit` by score, pinned memories before all others, and of the
        others the newest first.

        Which of two words on one matter holds is hard to tell, the later one is mostly not the better match for a
        question (it leaves out what both know), and which came later is certain: so it stands above. Without a
        viewpoint, all is looked through that was ever kept. Nothing is recalled that is less relevant than the floor
        of the settings.
        """
        limit = self._settings.recalled if limit is None else limit
        with self._lock:
            self._refresh()
            asked = self._index.to_embed(query)
        vector = self.embedder.query(asked) if self.embedder is not None and asked.strip() else None
        with self._lock:
            self._refresh()  # what was forgotten meanwhile does not come to mind
            seen = _Sight(self, viewpoint) if viewpoint else _everything
            found = [self._weighed(memory, 1.0) for memory in self._memories.values() if memory.pinned and seen(memory)]
            wanted = _FETCHED + limit
            while True:
                matches = self._index.search(query, vector, wanted)
                fitting = [
                    self._weighed(memory, match.score)
                    for match in matches
                    if match.score >= self._settings.floor
                    and not (memory := self._memories[match.key]).pinned
                    and seen(memory)
                ]
                exhausted = len(matches) < wanted or matches[-1].score < self._settings.floor
                if len(fitting) >= limit or exhausted:
                    break
                wanted *= 4
            fitting.sort(key=lambda recalled: -recalled.score)
            best = fitting[: max(0, limit - len(found))]
            best.sort(key=lambda recalled: -self._nums[recalled.memory.id])
            return [*found, *best][:limit]

    def nearest(
        self, text: str, vector: Vectors | None, viewpoint: Viewpoint, limit: int
    ) -> list[tuple[Memory, Match]]:
        """Memories most like a text, whatever stands in the prompt: to see whether it says something new."""
        with self._lock:
            self._refresh()
            seen = _Sight(self, viewpoint, shown_too=True)
            matches = self._index.search(text, vector, _FETCHED)
            pairs = ((self._memories[match.key], match) for match in matches)
            return [pair for pair in pairs if seen(pair[0])][:limit]

    def weighed(self, memory: Memory) -> Recalled:
        """A memory as it comes to mind by itself: recent and important as it is, with nothing to be relevant to."""
        return self._weighed(memory, 0.0)

    def likeness(self, id: str, vector: Vectors) -> float | None:
        """Cosine of a memory and a vector; None where the memory has none yet, or is gone."""
        with self._lock:
            num = self._nums.get(id)
            own = None if num is None else self._index.vector(num)
        return None if own is None else float(own @ vector)

    def all(self, viewpoint: Viewpoint | None = None) -> list[Memory]:
        """Memories in the order they were made: all of them, or those to be seen from there."""
        with self._lock:
            self._refresh()
            seen = _Sight(self, viewpoint, shown_too=True) if viewpoint else None
            return [memory for memory in self._memories.values() if seen is None or seen(memory)]

    # Changing

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Several changes that are on the disk together, or not at all."""
        # Who recalls takes these two locks in this order: in the other, each would wait for the other.
        with self._lock:
            try:
                with self.store.transaction():
                    yield
            except BaseException:
                self._revision = None  # what was taken in is not on the disk
                raise

    def add(
        self,
        memories: Sequence[Memory],
        vectors: Sequence[Vectors | None] | None = None,
        remembered: dict[str, int] | None = None,
    ) -> list[Memory]:
        """Keep memories; durable once this returns. `vectors` are of this memory's embedder; without, they are made."""
        embedder = self.embedder.ready if self.embedder is not None else None
        if vectors is None and embedder is not None and memories:
            vectors = list(embedder([memory.text for memory in memories]))
        # In one transaction with the look at what others wrote: what comes in between would be missed for good.
        with self.transaction():
            self._refresh()
            rows = self.store.add(
                memories, vectors, embedder=embedder.name if embedder is not None else "", remembered=remembered
            )
            self._take(rows)
            self._revision = self.store.revision(self.user, self.character)
        return list(memories)

    def note(self, text: str, viewpoint: Viewpoint | None = None, *, turn: str | None = None) -> Memory:
        """Remember something by hand. Raises RplaError where it is empty or too long."""
        moment = now()
        memory = Memory(
            id=new_id(),
            user=self.user,
            character=self.character,
            text=text.strip(),
            provenance="noted",
            chat=viewpoint.chat if viewpoint and turn else None,
            turn=turn,
            created=moment,
            renewed=moment,
            importance=1.0,
        )
        return self.add([memory])[0]

    def change(self, id: str, **fields: object) -> Memory:
        """Change a memory: text, importance, pinned, renewed, mentions, superseded_by."""
        text = fields.get("text")
        vector = self._embed_now(text) if isinstance(text, str) else None
        with self.transaction():
            self._refresh()
            self._require_own([id])
            changed = self.store.change(id, **fields)
            num = self._nums[id]
            self._memories[num] = changed
            if "text" in fields:
                self._index.remove([num])
                if vector is not None and self.embedder is not None and self.embedder.ready is not None:
                    self.store.set_vectors([Row(num, changed)], [vector], self.embedder.ready.name)
                self._index.add([_entry(Row(num, changed, vector))])
            self._revision = self.store.revision(self.user, self.character)
        return changed

    def forget(self, ids: Iterable[str]) -> list[str]:
        """Take memories away for good, with the insights that stood on them; the ids that are gone.

        Raises RplaError where one is not a memory of this user and character; then none is taken.
        """
        ids = list(ids)
        with self.transaction():
            self._refresh()
            self._require_own(ids)
            gone = self.store.forget(ids)
            self._revision = None
        return gone

    def embed_missing(self, stop: threading.Event | None = None) -> int:
        """Make the vectors that are not there yet, or are another embedder's; how many were made before `stop`."""
        embedder = self.embedder.ready if self.embedder is not None else None
        if embedder is None:
            return 0
        missing = [
            row for row in self.store.rows(self.user, self.character, embedder=embedder.name) if row.vector is None
        ]
        made = 0
        for start in range(0, len(missing), _EMBEDDED_AT_ONCE):
            if stop is not None and stop.is_set():
                break
            rows = missing[start : start + _EMBEDDED_AT_ONCE]
            self.store.set_vectors(rows, list(embedder([row.memory.text for row in rows])), embedder.name)
            made += len(rows)
        if made:
            with self._lock:
                self._revision = None
        return made

    # How it is kept up

    def _require_own(self, ids: Iterable[str]) -> None:
        for id in ids:
            if id not in self._nums:
                raise RplaError(f"There is no memory {id}.", "`rpla memory list` shows them.")

    def _refresh(self) -> None:
        """Take in what was written since, here or by another process."""
        embedder = self.embedder.ready if self.embedder is not None else None
        name = embedder.name if embedder is not None else ""
        data_version = self.store.data_version
        if self._revision is not None and name == self._indexed_with and data_version == self._data_version:
            return
        revision = self.store.revision(self.user, self.character)
        if self._revision is None or name != self._indexed_with or revision[1] != self._revision[1]:
            self._index, self._memories, self._nums = MemoryIndex(), {}, {}
        newest = max(self._memories, default=0)
        self._take(self.store.rows(self.user, self.character, after=newest, embedder=name))
        self._revision, self._indexed_with, self._data_version = revision, name, data_version

    def _open_turns(self, chat: str) -> frozenset[str]:
        """Turns on another chat's open branch; kept while it ends in the same turn."""
        head = self._log.open_head(chat)
        if (known := self._branches.get(chat)) is None or known[0] != head:
            known = self._branches[chat] = (head, self._log.open_turns(chat) if head is not None else frozenset())
        return known[1]

    def _take(self, rows: Sequence[Row]) -> None:
        self._index.add([_entry(row) for row in rows])
        for row in rows:
            self._memories[row.num] = row.memory
            self._nums[row.memory.id] = row.num

    def _embed_now(self, text: str) -> Vectors | None:
        embedder = self.embedder.ready if self.embedder is not None else None
        return None if embedder is None else embedder([text])[0]

    def _weighed(self, memory: Memory, relevance: float) -> Recalled:
        weights = self._settings
        # A clock that was set back makes ages negative: what is from the future is as good as new.
        age = max(0.0, now() - memory.renewed) / _DAY_S
        recency = 0.5 ** (age / weights.half_life_days)
        score = weights.relevance * relevance + weights.recency * recency + weights.importance * memory.importance
        return Recalled(memory=memory, score=score, relevance=relevance, recency=recency, importance=memory.importance)


class _Sight:
    """What may be seen from a viewpoint: exact checks, each made once."""

    def __init__(self, memory: EpisodicMemory, viewpoint: Viewpoint, *, shown_too: bool = False) -> None:
        self._of, self._viewpoint, self._shown_too = memory, viewpoint, shown_too
        self._branches: dict[str, frozenset[str]] = {viewpoint.chat: viewpoint.turns}

    def __call__(self, memory: Memory) -> bool:
        # What was noted at a turn was not said in it, so it does not stand in the prompt.
        if not self._shown_too and memory.provenance != "noted" and memory.turn in self._viewpoint.shown:
            return False
        return self._lived(memory) and not self._replaced(memory)

    def _replaced(self, memory: Memory) -> bool:
        number = self._of._nums.get(memory.superseded_by) if memory.superseded_by else None
        return number is not None and self._lived(self._of._memories[number])

    def _lived(self, memory: Memory) -> bool:
        of, viewpoint = self._of, self._viewpoint
        if memory.present and of.character not in memory.present:
            return False
        if (when := memory.story_time) is not None and viewpoint.story_time is not None and when > viewpoint.story_time:
            return False
        if memory.kind == "insight":
            standing = (of._memories[of._nums[id]] for id in memory.evidence if id in of._nums)
            return sum(self._lived(episode) and not self._replaced(episode) for episode in standing) >= 2
        if memory.chat is None or memory.turn is None:
            return True
        if memory.chat not in self._branches:
            across = of._settings.across_chats
            self._branches[memory.chat] = of._open_turns(memory.chat) if across else frozenset()
        return memory.turn in self._branches[memory.chat]


def _everything(memory: Memory) -> bool:
    return True


def _entry(row: Row) -> Entry:
    memory = row.memory
    return Entry(
        key=row.num,
        text=memory.text,
        context=memory.context,
        speaker="",
        when=memory.created,
        vector=row.vector,
    )
