"""Copies of the chat log, and how a damaged log is brought back: the newest sound copy, and all that can be read of
the damaged file beside it.
"""

import contextlib
import os
import re
import shutil
import sqlite3
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rpla.core.chatlog import ChatLog
from rpla.core.database import alone
from rpla.core.errors import RplaError
from rpla.core.home import Home
from rpla.core.salvage import Salvage, connect, salvage_into

KEPT = 5
"""How many snapshots are kept."""
_NAME = re.compile(r"chats-(\d{8}T\d{6})\.db")
_STAMP = "%Y%m%dT%H%M%S"
_DAY_S = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """What `restore` did."""

    snapshot: Path | None
    """What was restored; None where there was no sound snapshot."""
    damaged: Path | None
    """Where the damaged log is now; None where there was none."""
    unsound: tuple[Path, ...]
    """Newer snapshots that were passed over because they are damaged too."""
    chats: int
    """Chats salvaged from the damaged log that the snapshot did not have."""
    turns: int
    """Turns salvaged from the damaged log that the snapshot did not have."""
    unread_chats: int
    """Chats that the damaged log has, but none of whose rows can be read, and that the snapshot does not have."""
    unread_turns: int
    """Turns that the damaged log has but that cannot be read, and that the snapshot does not have."""
    rejoined: int
    """Salvaged turns whose own parent is lost; each follows the turn of its chat that was written before it."""
    ownerless: tuple[str, ...]
    """Salvaged chats of which it is not known whose they are."""


def take_snapshot(log: ChatLog, home: Home) -> Path:
    """Copy the log, which may be in use, into the home's snapshots; the newest five are kept.

    Raises RplaError where the log is damaged or the disk is full; the snapshots stay as they were.
    """
    target = home.snapshots / f"chats-{datetime.now(UTC).strftime(_STAMP)}.db"
    part = target.with_suffix(f".part{os.getpid()}")
    try:
        home.snapshots.mkdir(parents=True, exist_ok=True)
        log.backup(part)
        # A copy of a damaged log must not push a sound one out.
        if faults := _faults(part):
            raise RplaError(f"{log.path} is damaged: {faults[0]}.", "`rpla doctor --mend` restores it from a snapshot.")
        _to_disk(part)
        part.replace(target)
    except OSError as error:
        raise RplaError(f"{target} could not be written: {error.strerror}.", "Is the disk full?") from error
    finally:
        _remove(part)
    for old in snapshots(home)[KEPT:]:
        old.unlink(missing_ok=True)
    for left in home.snapshots.glob("chats-*.part*"):  # by a process that was killed
        if time.time() - left.stat().st_mtime > _DAY_S:
            left.unlink(missing_ok=True)
    return target


def snapshots(home: Home) -> list[Path]:
    """All snapshots, the newest first."""
    return sorted((file for file in home.snapshots.glob("chats-*.db") if _NAME.fullmatch(file.name)), reverse=True)


def snapshot_time(snapshot: Path) -> float:
    """When it was taken, in seconds since the epoch."""
    match = _NAME.fullmatch(snapshot.name)
    assert match is not None
    return datetime.strptime(match[1], _STAMP).replace(tzinfo=UTC).timestamp()


def snapshot_due(home: Home, now: float) -> bool:
    """Whether there is no snapshot yet, or the newest is older than a day. `now` is in seconds since the epoch."""
    taken = snapshots(home)
    # A clock that was once ahead must not put snapshots off until it is right.
    return not taken or abs(now - snapshot_time(taken[0])) > _DAY_S


def restore(home: Home) -> RestoreReport:
    """Put the newest sound snapshot in the log's place, with all that the damaged log still holds beyond it.

    The damaged file is moved aside, never removed. No ChatLog may be open on it. Raises RplaError, and changes
    nothing, where another process has the log open or the disk is full.
    """
    try:
        with alone(home.chats), tempfile.TemporaryDirectory(dir=home.root, prefix=".restore-") as folder:
            return _restore(home, Path(folder))
    except sqlite3.Error as error:
        raise RplaError(f"The chat log could not be put together again: {error}.", "Is the disk full?") from error
    except OSError as error:
        raise RplaError(
            f"{home.chats} could not be restored: {error.strerror}.", "Check the folder's permissions and the disk."
        ) from error


def count_turns(file: Path) -> int:
    """How many turns a snapshot holds; 0 where that cannot be read."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(connect(file, "mode=ro&immutable=1")) as db:
        return int(db.execute("SELECT count(*) FROM turns").fetchone()[0])
    return 0


def _restore(home: Home, folder: Path) -> RestoreReport:
    restored, copy = folder / "chats.db", folder / "damaged.db"
    snapshot, unsound = _newest_sound(home, restored)
    ChatLog(restored).close()
    salvaged, damaged = Salvage(), None
    there = home.chats.exists()
    if there:
        for ending in ("", "-wal"):
            if (file := _beside(home.chats, ending)).exists():
                shutil.copyfile(file, _beside(copy, ending))
        salvaged = salvage_into(restored, copy)
    if faults := _faults(restored):
        raise RplaError(f"The chat log could not be put together again: {faults[0]}.")
    _to_disk(restored)
    if there:
        damaged = move_aside(home.chats)
    restored.replace(home.chats)
    return RestoreReport(
        snapshot=snapshot,
        damaged=damaged,
        unsound=unsound,
        chats=len(salvaged.new_chats),
        turns=salvaged.turns,
        unread_chats=sum(num not in salvaged.chat_of for num in salvaged.unread_chats),
        unread_turns=salvaged.unread_turns,
        rejoined=salvaged.rejoined,
        ownerless=tuple(salvaged.ownerless),
    )


def _newest_sound(home: Home, target: Path) -> tuple[Path | None, tuple[Path, ...]]:
    unsound: list[Path] = []
    for snapshot in snapshots(home):
        shutil.copyfile(snapshot, target)
        if not _faults(target):
            return snapshot, tuple(unsound)
        unsound.append(snapshot)
        _remove(target)
    return None, tuple(unsound)


def _faults(file: Path) -> list[str]:
    try:
        log = ChatLog(file)
    except RplaError as error:
        return [error.message]
    try:
        return log.verify()
    except RplaError as error:
        return [error.message]
    finally:
        log.close()


def move_aside(file: Path) -> Path:
    """Put a damaged database beside itself under another name, with what belongs to it; where it is now."""
    stamp = datetime.now(UTC).strftime(_STAMP)
    aside = file.with_name(f"{file.name}.damaged-{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = file.with_name(f"{file.name}.damaged-{stamp}-{number}")
    # The log itself goes last: without it, a crash in between would look like an empty home.
    for ending in ("-wal", "-shm", ""):
        if (part := _beside(file, ending)).exists():
            part.replace(_beside(aside, ending))
    return aside


def _beside(file: Path, ending: str) -> Path:
    return file.with_name(file.name + ending)


def _remove(file: Path) -> None:
    for ending in ("", "-wal", "-shm", "-journal"):
        _beside(file, ending).unlink(missing_ok=True)


def _to_disk(file: Path) -> None:
    with file.open("r+b") as opened:
        os.fsync(opened.fileno())
