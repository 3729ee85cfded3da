"""One SQLite file of ours: durable, shared by threads and processes, and clear about what is wrong with it."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rpla.core.errors import RplaError

_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What a file must hold."""

    noun: str
    """What the file is, as error messages call it."""
    application_id: int
    """SQLite's mark of whose file it is."""
    version: int
    tables: str
    """Statements, each ended by a semicolon and a line break."""
    mend: str
    """What to do where the file is damaged."""


class Database:
    """A connection with WAL and ``synchronous=FULL``: what is written is on the disk when `writing` ends.

    Raises RplaError, with what to do, where the file is someone else's, newer, damaged or locked, or the disk is full.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path, self._schema = path, schema
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RplaError(f"{path.parent} cannot be made: {error.strerror}.", "Point RPLA_HOME elsewhere.") from error
        with self._reported():
            self.connection = sqlite3.connect(path, timeout=_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            self._prepare()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self.connection.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time."""
        with self._lock, self._reported():
            yield self.connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on the disk at the end, or nothing. It may be opened within another."""
        with self._lock, self._reported():
            if self.connection.in_transaction:
                yield self.connection
                return
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    def backup(self, target: Path) -> None:
        """Write a consistent copy, while the file is in use."""
        with self.reading() as db, sqlite3.connect(target) as copy:
            db.backup(copy)
        copy.close()

    def checkpoint(self) -> None:
        """Fold the write-ahead log into the file."""
        with self.reading() as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def faults(self) -> list[str]:
        """What is wrong with the file; empty where it is sound."""
        with self.reading() as db:
            faults = [str(row[0]) for row in db.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
            return faults + [
                f"row {row[1]} of {row[0]} points at a row that is not there"
                for row in db.execute("PRAGMA foreign_key_check")
            ]

    def scrub(self) -> None:
        """Overwrite what was deleted: in the file's free pages, and in the write-ahead log.

        Raises RplaError where another process holds the file, which keeps the old pages readable.
        """
        with self.reading() as db:
            db.execute("VACUUM")
            (busy, _, _) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise RplaError(
                    f"{self.path} is in use elsewhere; what was erased may still be read from its write-ahead log.",
                    "Close the other program and erase again.",
                )

    def _prepare(self) -> None:
        db, schema = self.connection, self._schema
        # In this order: where another process is making the tables, they appear together with the marks.
        tables, application, version = (
            db.execute(query).fetchone()[0]
            for query in ("SELECT count(*) FROM sqlite_master", "PRAGMA application_id", "PRAGMA user_version")
        )
        if tables and application != schema.application_id:
            raise RplaError(f"{self.path} is not a {schema.noun}.", "Move it away, or point RPLA_HOME elsewhere.")
        if version > schema.version:
            raise RplaError(
                f"{self.path} was written by a newer rpla (schema {version}; this one reads {schema.version}).",
                "Upgrade rpla.",
            )
        self._use_wal()
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA foreign_keys=ON")
        db.execute("PRAGMA secure_delete=ON")
        if not tables:
            with self.writing():
                # Another process may have made the tables while this one waited for the lock.
                if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    for statement in schema.tables.split(";\n"):
                        db.execute(statement)
                    db.execute(f"PRAGMA application_id={schema.application_id}")
                    db.execute(f"PRAGMA user_version={schema.version}")

    def _roll_back(self) -> None:
        if self.connection.in_transaction:  # some errors of SQLite's end it by themselves
            self.connection.execute("ROLLBACK")

    def _use_wal(self) -> None:
        """Switch to WAL. SQLite does not wait for other processes here, whatever the timeout."""
        give_up = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                self.connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                    raise
                time.sleep(0.01)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError as error:
            raise RplaError(f"{self.path} is closed.") from error
        except sqlite3.OperationalError as error:
            # Python's own complaint about text that is not UTF-8 carries no code.
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
            if code == sqlite3.SQLITE_CORRUPT:
                raise self._damaged(error) from error
            if code == sqlite3.SQLITE_FULL:
                raise RplaError(
                    f"The disk with {self.path} is full; this was not saved.",
                    "Free some space and send it again. Everything saved before is safe.",
                ) from error
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise RplaError(
                    f"{self.path} is locked by another process.", "Wait until it is done, then try again."
                ) from error
            raise RplaError(
                f"{self.path} cannot be used: {error}.", "Check the file's permissions and the disk."
            ) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def _damaged(self, error: object) -> RplaError:
        return RplaError(f"{self.path} is damaged: {error}.", self._schema.mend)


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Refuse where another process has the file open: it would go on writing to it, or hold what was in it.

    No Database of this process may be open on the file. Raises RplaError.
    """
    try:
        import fcntl
    except ImportError:  # On Windows an open file cannot be moved, which is as good.
        yield
        return
    if not file.exists():
        yield
        return
    with file.open("r+b") as opened:
        try:
            # The bytes on which SQLite holds a shared lock for as long as a log in WAL mode is open.
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)
        except OSError as error:
            raise RplaError(f"{file} is open in another process.", "Close every rpla, then try again.") from error
        yield


def id_bytes(id: str) -> bytes:
    """An id as it is stored: 16 bytes. Raises RplaError for anything else."""
    try:
        value = bytes.fromhex(id)
    except ValueError:
        value = b""
    if len(value) != 16:
        raise RplaError(f"{id!r} is not an id.", "Ids have 32 hexadecimal digits.")
    return value


def require_whole(text: str) -> None:
    """Raise RplaError for text with half a character: it has no UTF-8 form to store."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RplaError("The text holds half a character (a lone surrogate).", "Send it as valid Unicode.") from error
