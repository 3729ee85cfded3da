"""Chroma's index over passages: ids and vectors, no text. One process owns it; it can be made again at any time."""

import ctypes
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpla.core.errors import MissingExtra, RplaError
from rpla.memory.embedder import Vectors

if TYPE_CHECKING:
    from chromadb.api.client import Client
    from chromadb.api.models.Collection import Collection
    from chromadb.base_types import Where

_ALWAYS = -1e300
"""The story time of what has none: before everything."""
_M_PERTURB = -6
_EF_SEARCH = 400
"""How many neighbours a search looks at; with Chroma's default, half of the nearest are missed."""


class ChromaTrouble(Exception):
    """Chroma cannot be used now; what is searched is in SQLite as well."""


@cache
def chroma_at(folder: Path) -> "ChromaIndex":
    """The one index of this process over a folder: the lock beside it is the process's."""
    return ChromaIndex(folder)


class ChromaIndex:
    """One collection a character in a folder that one process owns, under a lock beside it."""

    def __init__(self, folder: Path) -> None:
        """Nothing is opened before it is used."""
        self.folder = folder
        self._lock = threading.RLock()
        self._client: Client | None = None
        self._owned: Any = None

    def close(self) -> None:
        """Let another process have it."""
        with self._lock:
            if self._client is not None:
                with _told():
                    self._client.close()
                self._client = None
            if self._owned is not None:
                self._owned.release()
                self._owned = None

    def search(
        self, character: str, stamp: str, embedder: str, vector: Vectors, limit: int, cutoff: float | None
    ) -> list[tuple[int, float]]:
        """The nearest passages' numbers, with the cosine, from what lies before the cut-off.

        Raises ChromaTrouble where it is another process's, damaged, not there, or not of this stamp.
        """
        with self._lock, _told():
            collection = self._in_step(character, stamp, embedder)
            where = None if cutoff is None else _until(cutoff)
            found = collection.query(
                query_embeddings=[vector.tolist()],
                n_results=limit,
                where=where,
                include=["distances"],
            )
        distances = found["distances"] or [[]]
        return [(int(id), 1.0 - distance) for id, distance in zip(found["ids"][0], distances[0], strict=True)]

    def fault(self, character: str, stamp: str, embedder: str, count: int) -> str:
        """What is wrong with a character's collection; empty where it is in step with SQLite."""
        try:
            with self._lock, _told():
                there = self._in_step(character, stamp, embedder).count()
        except ChromaTrouble as trouble:
            return str(trouble)
        return "" if there == count else f"Chroma holds {there} of {count} vectors"

    def update(
        self,
        character: str,
        stamp: str,
        embedder: str,
        nums: Sequence[int],
        times: Sequence[float | None],
        vectors: Vectors,
        *,
        anew: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Bring a collection in step with these vectors, the whole of the character's; `anew` drops it first.

        Raises ChromaTrouble.
        """
        with self._lock, _told(), _zeroed():
            client = self._opened()
            name = _named(character)
            there = {collection.name for collection in client.list_collections()}
            if name in there and (anew or not nums or self._collection(name).metadata.get("embedder") != embedder):
                client.delete_collection(name)
                there.discard(name)
            if not nums:
                return
            if name in there:
                collection = self._collection(name)
                known = {int(id) for id in collection.get(include=[])["ids"]}
            else:
                collection = client.create_collection(
                    name,
                    embedding_function=None,
                    configuration={"hnsw": {"space": "cosine", "ef_search": _EF_SEARCH}},
                    metadata={"stamp": "", "embedder": embedder},
                )
                known = set()
            # A number is never used again, so that what is there under it is still right; times may be new.
            gone = sorted(known - set(nums))
            step = client.get_max_batch_size()
            for start in range(0, len(gone), step):
                collection.delete(ids=[str(num) for num in gone[start : start + step]])
            for start in range(0, len(nums), step):
                part = slice(start, start + step)
                collection.upsert(
                    ids=[str(num) for num in nums[part]],
                    embeddings=vectors[part],
                    metadatas=[{"story_time": _ALWAYS if time is None else time} for time in times[part]],
                )
                if progress is not None:
                    progress(min(start + step, len(nums)), len(nums))
            # Last: a process that dies before leaves a collection that is not taken for whole.
            collection.modify(metadata={"stamp": stamp, "embedder": embedder})

    def destroy(self) -> None:
        """Delete the folder: Chroma keeps what was deleted from a collection in its files.

        Raises ChromaTrouble where another process owns it.
        """
        with self._lock:
            if self._client is None and not self.folder.exists():
                return
            with _told():
                self._own()
                if self._client is not None:
                    self._client.close()
                    self._client = None
                shutil.rmtree(self.folder, ignore_errors=not self.folder.exists())

    def _in_step(self, character: str, stamp: str, embedder: str) -> "Collection":
        if self._client is None and not self.folder.exists():
            raise ChromaTrouble("Chroma has no index yet")
        self._opened()
        collection = self._collection(_named(character))
        kept = collection.metadata or {}
        if kept.get("stamp") != stamp or kept.get("embedder") != embedder:
            raise ChromaTrouble("Chroma is out of step with what was added since")
        return collection

    def _collection(self, name: str) -> "Collection":
        # Without the None, Chroma would fetch a model of its own.
        return self._opened().get_collection(name, embedding_function=None)

    def _opened(self) -> "Client":
        if self._client is None:
            self._own()
            try:
                import chromadb
                from chromadb.api.client import Client
                from chromadb.config import Settings
            except ImportError as error:
                raise MissingExtra("The index of meanings", "local") from error
            settings = Settings(anonymized_telemetry=False, is_persistent=True)
            try:
                client = chromadb.PersistentClient(str(self.folder), settings=settings)
            except BaseException:
                # Chroma keeps what it could not start, and would hand that out again once the files are mended.
                Client._identifier_to_system.pop(str(self.folder), None)
                raise
            assert isinstance(client, Client)  # for its close()
            self._client = client
        return self._client

    def _own(self) -> None:
        if self._owned is not None:
            return
        try:
            from filelock import FileLock, Timeout
        except ImportError as error:
            raise MissingExtra("The index of meanings", "local") from error
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder.with_name(self.folder.name + ".lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ChromaTrouble("Chroma is open in another process") from None
        self._owned = lock


@contextmanager
def _zeroed() -> Iterator[None]:
    """Memory comes zeroed meanwhile, where the system's C library can do that (glibc).

    Chroma writes a new index with all the room it reserved, and what was in that memory before: vectors of what was
    erased a moment ago, or texts of this process.
    """
    fill = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if fill is not None:
        fill(_M_PERTURB, 255)  # the complement of what memory is filled with
    try:
        yield
    finally:
        if fill is not None:
            fill(_M_PERTURB, 0)


@contextmanager
def _told() -> Iterator[None]:
    """Whatever Chroma raises over its files is trouble, not a crash: a damaged file shows in many ways."""
    try:
        yield
    except (ChromaTrouble, RplaError):
        raise
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ChromaTrouble(f"Chroma's files are damaged ({type(error).__name__})") from error
    except BaseException as error:
        # Rust's own end of the road, a PanicException, is no Exception.
        if type(error).__module__.partition(".")[0] not in ("chromadb", "sqlite3", "pyo3_runtime"):
            raise
        known = type(error).__name__ == "NotFoundError"
        raise ChromaTrouble(
            "Chroma has no index of this character yet" if known else f"Chroma's files are damaged ({error})"
        ) from error


def _until(cutoff: float) -> "Where":
    where: dict[str, Any] = {"story_time": {"$lte": cutoff}}
    return where


def _named(character: str) -> str:
    return f"passages-{character}"
