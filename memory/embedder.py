"""Text to vectors: which embedder there is, and one that needs no model."""

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from hashlib import blake2b
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rpla.core.errors import RplaError

Vectors = NDArray[np.float32]

_HASHED_DIMENSIONS = 256
_KEPT_QUERIES = 512


class Embedder(Protocol):
    """Turns texts into vectors whose dot products say how alike they are."""

    name: str
    """Names model and version: vectors of different names never meet."""

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """One row of unit length for each text: (len(texts), dimensions). Safe to call from several threads."""


class HashingEmbedder:
    """Counts words into fixed places: alike are texts with the same words. For tests; it needs no model."""

    name = f"hashing-{_HASHED_DIMENSIONS}"

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Rows of (len(texts), 256); a text without words is the unit vector of its length."""
        rows = np.zeros((len(texts), _HASHED_DIMENSIONS), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()) or [f"\0{len(text)}"]:
                number = int.from_bytes(blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest())
                row[number % _HASHED_DIMENSIONS] += 1 if number >> 63 else -1
            norm = float(np.linalg.norm(row))
            if norm:
                row /= norm
            else:  # words that cancel one another out
                row[0] = 1
        return rows


class LazyEmbedder:
    """An embedder that is loaded in the background: until then there is none, and words alone are searched."""

    def __init__(self, name: str, loaded: Embedder | None = None) -> None:
        """Nothing is loaded before `start`, nor later where it is `loaded` already."""
        self.name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loaded = loaded
        self._error: RplaError | None = None
        self._queries: OrderedDict[str, Vectors] = OrderedDict()

    def start(self) -> None:
        """Begin to load in a thread, once."""
        with self._lock:
            if self._thread is None and self._loaded is None:
                self._thread = threading.Thread(target=self._load, name="rpla-embedder", daemon=True)
                self._thread.start()

    @property
    def ready(self) -> Embedder | None:
        """The embedder if it is there by now."""
        return self._loaded

    @property
    def loading(self) -> bool:
        """Whether it may still come."""
        return self._loaded is None and self._error is None

    @property
    def missing(self) -> str:
        """Why there is none: ``the embedder is loading``, or what keeps it from loading; empty where it is there."""
        if self._loaded is not None:
            return ""
        return self._error.message if self._error is not None else "the embedder is loading"

    def wait(self) -> Embedder:
        """The embedder, loaded now if need be. Raises RplaError where it cannot be loaded."""
        self.start()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._loaded is not None
        return self._loaded

    def query(self, text: str) -> Vectors | None:
        """The vector of a text, or None while the embedder is loading. The newest are kept, since sources share it."""
        if (embed := self.ready) is None:
            return None
        with self._lock:
            if (known := self._queries.get(text)) is not None:
                return known
        vector: Vectors = embed([text])[0]
        with self._lock:
            self._queries[text] = vector
            while len(self._queries) > _KEPT_QUERIES:
                self._queries.popitem(last=False)
        return vector

    def _load(self) -> None:
        try:
            self._loaded = open_embedder(self.name)
        except RplaError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 - a broken package may raise anything; words serve without it
            self._error = RplaError(
                f"The embedder could not be loaded: {type(error).__name__}: {error}", "Reinstall rpla[local]."
            )


def open_embedder(name: str) -> Embedder:
    """The embedder of that name: ``minilm``, ``hashing``, or a sentence-transformers folder.

    Raises RplaError where it is not there, or the packages it needs are not.
    """
    if name == "hashing":
        return HashingEmbedder()
    from rpla.memory.sentences import SentenceEmbedder, minilm_folder

    return SentenceEmbedder(minilm_folder() if name == "minilm" else name)


@cache
def lazy_embedder(name: str) -> LazyEmbedder | None:
    """The one embedder of that name in this process, not yet loaded; None for ``words``."""
    return None if name == "words" else LazyEmbedder(name)
