"""The sections of `rpla bench memory`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rpla.bench.result import Result
from rpla.core.errors import RplaError

SECTIONS = ("locomo", "scale", "turn", "hygiene", "knowledge", "reflection")
_KEPT = ("stored_precision", "stored_recall", "echoes", "superseded_above")
_MEMORIES = 5000
"""What the character of the section turn remembers already."""
_TURNS = 30
"""Turns with a model."""
_REFLECTING_TURNS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBench:
    """What is measured, and on what."""

    embedder: str = "minilm"
    locomo: Path | None = None
    """LoCoMo's file."""
    texts: Path | None = None
    """A folder of novels."""
    size: int = 100_000
    """Memories of the section scale."""
    memories: int = _MEMORIES
    turns: int = 200
    model: str = ""
    """A llamacpp: model for the section turn; without one, nothing is said of its cache."""
    character100: Path | None = None
    """The folder of Character100."""
    novel: Path | None = None
    """A text for the section knowledge to add."""

    def sections(self, asked: Sequence[str] | None) -> list[str]:
        """The sections that were asked for, or all whose files were given.

        Raises RplaError for an unknown one, or where its files are missing.
        """
        if not asked:
            return [name for name in SECTIONS if not self._missing(name)]
        for name in asked:
            if name not in SECTIONS:
                raise RplaError(f"Unknown section {name!r}.", f"Sections: {', '.join(SECTIONS)}.")
            if missing := self._missing(name):
                raise RplaError(f"The section {name} needs data of yours.", missing)
        return list(dict.fromkeys(asked))

    def measure(self, section: str) -> list[Result]:
        """The figures of one section; minutes for some. Raises RplaError where its data is not what it should be."""
        match section:
            case "locomo":
                return self._locomo()
            case "scale":
                return self._scale()
            case "turn":
                return self._turn()
            case "hygiene":
                return self._hygiene()
            case "knowledge":
                return self._knowledge()
            case _:
                return self._reflection()

    def _missing(self, section: str) -> str:
        """What to give for a section; empty where nothing is missing."""
        match section:
            case "locomo" if self.locomo is None:
                return "--locomo FILE: LoCoMo's JSON file as published."
            case "scale" if self.texts is None:
                return "--texts FOLDER: novels as *.txt or */novel_text.txt."
            case "knowledge" if self.character100 is None and self.novel is None:
                return "--character100 FOLDER, with qr.jsonl and articles/; --novel FILE."
            case "reflection" if not self.model:
                return "--model: one that reflects, such as llamacpp:FILE.gguf."
        return ""

    def _locomo(self) -> list[Result]:
        from rpla.bench.locomo import measure_locomo
        from rpla.memory.embedder import open_embedder

        assert self.locomo is not None
        return measure_locomo(self.locomo, open_embedder(self.embedder)).results()

    def _scale(self) -> list[Result]:
        from rpla.bench.at_hand import embedded
        from rpla.bench.novels import read_novels
        from rpla.bench.scale import measure_scale, require_size
        from rpla.memory.embedder import open_embedder

        assert self.texts is not None
        texts = read_novels(self.texts)
        require_size(self.size, len(texts))
        embedder = open_embedder(self.embedder)
        return measure_scale(texts, embedded(texts, embedder), embedder.name, self.size)

    def _turn(self) -> list[Result]:
        from rpla.bench.turn import measure_cached_share, measure_turn

        results = measure_turn(self.embedder, memories=self.memories, turns=self.turns)
        if self.model:
            results += measure_cached_share(self.model, self.embedder, memories=self.memories, turns=_TURNS)
        return results

    def _hygiene(self) -> list[Result]:
        from rpla.bench.hygiene import measure_hygiene
        from rpla.memory.embedder import lazy_embedder

        embedder = lazy_embedder(self.embedder)
        if embedder is not None:
            embedder.wait()
        unseen, seen = (
            [result for result in measure_hygiene(embedder, half) if result.name in _KEPT]
            for half in ("unseen", "seen")
        )
        return [*unseen, *(Result(f"seen_{one.name}", one.value, one.target) for one in seen)]

    def _knowledge(self) -> list[Result]:
        from rpla.bench.knowledge import measure_finding, measure_novel

        results: list[Result] = []
        if self.character100 is not None:
            results += measure_finding(self.character100, self.embedder)
        if self.novel is not None:
            results += measure_novel(self.novel, self.embedder)
        return results

    def _reflection(self) -> list[Result]:
        from rpla.bench.reflecting import measure_reflecting

        return measure_reflecting(self.model, self.embedder, turns=_REFLECTING_TURNS)
