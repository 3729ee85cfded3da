"""Bare commits: what it takes at the least to have a turn on the disk."""

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path


class BareCommits:
    """A table of texts, each written in a durable transaction of its own."""

    def __init__(self, file: Path) -> None:
        self._db = sqlite3.connect(file, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("CREATE TABLE turns (text TEXT)")

    def write_ms(self, texts: Sequence[str]) -> float:
        """Write texts, one after another; the milliseconds it took."""
        begun = time.perf_counter()
        for text in texts:
            self._db.execute("INSERT INTO turns VALUES (?)", (text,))
        return (time.perf_counter() - begun) * 1000

    def close(self) -> None:
        """Close the file."""
        self._db.close()
