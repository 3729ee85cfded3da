"""How one source becomes passages: read, cut, embedded, and stored at once or not at all."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np

from rpla.core.errors import RplaError
from rpla.core.ids import id_of
from rpla.memory.embedder import Embedder, LazyEmbedder, Vectors
from rpla.memory.passage_store import PassageStore
from rpla.memory.passages import Piece, Source
from rpla.memory.readers import read_source
from rpla.memory.splitting import recipe, split

Progress = Callable[[str, int, int], None]
"""Told of what is being done, how much of it is done, and of how much."""

_BATCH = 64


class Adding:
    """Adds sources to a store."""

    def __init__(self, store: PassageStore, embedder: LazyEmbedder | None, chunk_tokens: int) -> None:
        self._store, self._embedder, self._tokens = store, embedder, chunk_tokens
        self._label = embedder.name if embedder is not None else ""
        self.lacking = ""
        """Why the last source was added without vectors; empty where it was not."""

    def put(
        self, source: Source, data: bytes, before: Source | None, progress: Progress | None, *, wait: bool = True
    ) -> tuple[str, int, str]:
        """Add one source: ``added``, ``changed`` or ``unchanged``, its passages, and what the user should know.

        `before` is what is stored of it. Without `wait`, vectors are left out while the embedder is loading.
        """
        cut = f"{recipe(self._tokens, self._label)} {source.kind} {source.story} {source.story_time}"
        source = replace(source, hash=blake2b(cut.encode() + b"\0" + data, digest_size=16).hexdigest())
        if before is not None and before.hash == source.hash:
            return "unchanged", 0, ""
        if self._embedder is not None and wait:
            self._embedder.start()
        reading = read_source(data, source.name, source.kind)
        source = replace(source, kind=reading.kind)
        chunks = split(reading.parts, tokens=self._tokens, embedder=self._label, id=source.id)
        title = Path(source.name).stem.replace("_", " ")
        pieces: list[Piece] = []
        seen: dict[str, int] = {}
        for chunk in chunks:
            heading = f"{title} > {chunk.heading}" if chunk.heading else title
            known_as = f"{source.character}\0{source.id}\0{heading}\0{chunk.fresh}\0{chunk.text}"
            seen[known_as] = seen.get(known_as, -1) + 1
            pieces.append(
                Piece(
                    id=id_of("passage", f"{known_as}\0{seen[known_as]}"),
                    place=chunk.place,
                    heading=heading,
                    text=chunk.text,
                    fresh=chunk.fresh,
                    story_time=chunk.reached if source.story else source.story_time,
                )
            )
        vectors: list[Vectors | None] = [None] * len(pieces)
        embedder = self._ready(wait)
        if embedder is not None:
            kept = self._store.embedded(source.id, embedder.name)
            new = [place for place, piece in enumerate(pieces) if piece.id not in kept]
            made = embed(embedder, [pieces[place] for place in new], source.name, progress)
            for place, vector in zip(new, made, strict=True):
                vectors[place] = vector
        self._store.put(source, pieces, vectors, embedder.name if embedder is not None else "")
        return "added" if before is None else "changed", len(pieces), reading.note

    def _ready(self, wait: bool) -> Embedder | None:
        self.lacking = ""
        if self._embedder is None:
            return None
        if not wait:
            return self._embedder.ready
        try:
            return self._embedder.wait()
        except RplaError as error:
            self.lacking = error.message
            return None


def embed(embedder: Embedder, pieces: Sequence[Piece], name: str, progress: Progress | None) -> Vectors:
    """Vectors of what is new in each passage, under its headings: what it repeats has a vector already."""
    texts = [f"{piece.heading}\n{piece.text[piece.fresh :]}" for piece in pieces]
    made: list[Vectors] = []
    for start in range(0, len(texts), _BATCH):
        made.append(embedder(texts[start : start + _BATCH]))
        if progress is not None:
            progress(name, min(start + _BATCH, len(texts)), len(texts))
    return np.concatenate(made) if made else np.zeros((0, 0), np.float32)


def timed(source: Source, story: bool | None, story_time: float | None, before: Source | None) -> Source:
    """The source with its times; those it had where none are given. Raises RplaError where they do not go together."""
    if story is None and story_time is None:
        return source if before is None else replace(source, story=before.story, story_time=before.story_time)
    if story and story_time is not None:
        raise RplaError("A file is told in order, or all at one time.", "Give one of the two.")
    if story_time is not None and not math.isfinite(story_time):
        raise RplaError(f"{story_time} is not a time in a story.", "Give a number.")
    return replace(source, story=bool(story), story_time=story_time)
