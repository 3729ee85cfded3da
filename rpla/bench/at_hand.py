"""Vectors that are made already: what embedding takes is not measured, or is done in one batch."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from rpla.memory.embedder import Embedder, Vectors

_AT_A_TIME = 1024
"""Vectors in one file of the cache: whoever stops the first run loses the work on so many."""


class AtHand:
    """An embedder that knows the vectors of some texts; others go to the one it stands for, where there is one."""

    def __init__(
        self, name: str, texts: Sequence[str], vectors: NDArray[np.float32], others: Embedder | None = None
    ) -> None:
        self.name = name
        self._vectors = dict(zip(texts, vectors, strict=True))
        self._others = others

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """A row for each text. KeyError for one that is not known, where nobody else is asked."""
        if self._others is not None and not all(text in self._vectors for text in texts):
            return self._others(texts)
        return np.stack([self._vectors[text] for text in texts])


def embedded(texts: Sequence[str], embed: Embedder) -> Vectors:
    """A row for each text, made once and then kept in the user's cache folder.

    In single precision: what a store in half precision loses could not be seen otherwise.
    """
    parts = [_part(texts[start : start + _AT_A_TIME], embed) for start in range(0, len(texts), _AT_A_TIME)]
    return np.concatenate(parts) if parts else embed([])


def _part(texts: Sequence[str], embed: Embedder) -> Vectors:
    digest = blake2b("\n".join([embed.name, *texts]).encode(), digest_size=12).hexdigest()
    kept = user_cache_path("rpla", appauthor=False) / "bench" / f"{digest}.npy"
    if kept.exists():
        return np.asarray(np.load(kept), dtype=np.float32)
    vectors = embed(texts)
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(".part.npy")
    np.save(partial, vectors)
    partial.replace(kept)
    return vectors
