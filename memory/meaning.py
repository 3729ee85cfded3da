"""Search by meaning: through Chroma where this process has it and it is in step, else by comparing every vector."""

from collections.abc import Callable, Iterable
from pathlib import Path

from rpla.core.errors import RplaError
from rpla.memory.chroma import ChromaTrouble, chroma_at
from rpla.memory.embedder import LazyEmbedder
from rpla.memory.finding import ExactVectors
from rpla.memory.passage_store import PassageStore

_MEND = "`rpla knowledge reindex` makes"


class Meanings:
    """Nearest passages by the embedder's vectors, and the index over them."""

    def __init__(self, store: PassageStore, chroma: Path, embedder: LazyEmbedder | None) -> None:
        self._store, self._embedder = store, embedder
        self._chroma = chroma_at(chroma)
        self._exact = ExactVectors(store)
        self._notices: dict[str, bool] = {}
        self._names: dict[str, tuple[str, frozenset[str]]] = {}

    def close(self) -> None:
        """Let another process have Chroma."""
        self._chroma.close()

    def notice(self, text: str) -> None:
        """Keep what the user should know, to be said once."""
        self._notices.setdefault(text, False)

    def take_notices(self) -> list[str]:
        """What the user should know, each said once."""
        new = [text for text, told in self._notices.items() if not told]
        self._notices |= dict.fromkeys(new, True)
        return new

    def search(
        self, character: str, stamp: str, query: str, limit: int, cutoff: float | None, allowed: set[int] | None
    ) -> list[tuple[int, float]] | None:
        """Numbers of the nearest passages with the cosine; None where there is no embedder, or not yet.

        `allowed` are the numbers of those before the cut-off; None where there is none.
        """
        embedder = self._embedder.ready if self._embedder is not None else None
        if self._embedder is None or embedder is None:
            return None
        names = self._embedders(character, stamp)
        if embedder.name not in names:
            if others := sorted(filter(None, names)):
                self.notice(
                    f"Passages are found by words alone: their vectors are {others[0]}'s, and the embedder is "
                    f"{embedder.name}. {_MEND} them anew."
                )
            return None
        if (vector := self._embedder.query(query)) is None:
            return None
        where = None if allowed is None else cutoff
        try:
            return self._chroma.search(character, stamp, embedder.name, vector, limit, where)
        except (ChromaTrouble, RplaError) as trouble:
            reason = str(trouble).splitlines()[0].rstrip(".")
            self.notice(f"{reason}; passages are compared one by one, which finds the same. {_MEND} the index anew.")
        return self._exact.search(character, stamp, embedder.name, vector, limit, allowed)

    def update(self, character: str) -> None:
        """Bring Chroma in step where it can be; where it cannot, searches go without it and say so."""
        try:
            self._update(character, None)
        except (ChromaTrouble, RplaError) as trouble:
            self.notice(f"{str(trouble).splitlines()[0].rstrip('.')}; it was not brought in step.")

    def rebuild(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Make the index anew from the vectors in SQLite.

        Raises RplaError where another process has it: then its files still hold what was removed.
        """
        self._exact.forget()
        try:
            # Chroma keeps what was deleted from a collection in its files.
            self._chroma.destroy()
            for character in self._store.characters():
                self._update(character, progress)
        except ChromaTrouble as trouble:
            raise RplaError(
                f"{trouble}: its index stays as it was, with the vectors of what was removed.",
                "Close the other program, then run `rpla knowledge reindex`.",
            ) from None
        self._notices.clear()

    def faults(self, character: str) -> list[str]:
        """What is wrong with a character's vectors, and with the index over them; empty where nothing is."""
        if self._embedder is None:
            return []
        vectors = self._store.embedders(character)
        wanted = self._own(vectors)
        faults = []
        if missing := vectors.pop("", 0):
            faults.append(f"{missing} passages of {character} have no vector. {_MEND} them.")
        faults += [
            f"{count} passages of {character} have vectors of {name}, and the embedder is {self._embedder.name}. "
            f"{_MEND} them anew."
            for name, count in vectors.items()
            if name != wanted
        ]
        if wanted:
            fault = self._chroma.fault(character, self._store.stamp(character), wanted, vectors[wanted])
            faults += [f"{fault} (passages of {character}). {_MEND} the index anew."] if fault else []
        return faults

    def _embedders(self, character: str, stamp: str) -> frozenset[str]:
        """Whose vectors there are; counted once for each state of the store."""
        known, names = self._names.get(character, ("", frozenset[str]()))
        if known != stamp:
            names = frozenset(self._store.embedders(character))
            self._names[character] = (stamp, names)
        return names

    def _update(self, character: str, progress: Callable[[str, int, int], None] | None) -> None:
        name = self._own(self._store.embedders(character))
        if not name and not self._chroma.folder.exists():
            return
        stamp = self._store.stamp(character)
        nums, times, vectors = self._store.vectors(character, name)
        told = None if progress is None else lambda done, whole: progress("index", done, whole)
        self._chroma.update(character, stamp, name, nums, times, vectors, progress=told)

    def _own(self, vectors: Iterable[str]) -> str:
        """Which of these vectors are the embedder's own, without loading it; empty for none of them."""
        if self._embedder is None:
            return ""
        if (ready := self._embedder.ready) is not None:
            return ready.name if ready.name in vectors else ""
        label = Path(self._embedder.name).name
        return next((name for name in vectors if name.rpartition("-")[0] == label), "")
