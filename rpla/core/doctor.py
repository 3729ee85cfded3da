"""What is well and what is not: the settings, the chat log, its snapshots, characters, models and packages."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rpla.core.chatlog import ChatLog
from rpla.core.errors import RplaError
from rpla.core.home import Home
from rpla.core.settings import load_settings
from rpla.core.snapshot import count_turns, snapshot_time, snapshots

EXTRAS = {"local": ("torch", "transformers", "peft", "accelerate")}
"""The extras and the modules they bring."""

_PACKAGES = ("rpla", "langgraph", "xllamacpp")
_LITTLE_SPACE = 200_000_000
_MEND = "`rpla doctor --mend` restores it from a snapshot and salvages the rest."


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    area: str
    ok: bool
    """False where something needs to be done; information is ok."""
    text: str
    hint: str = ""
    """What to do about it."""
    mendable: bool = False
    """Whether `restore` mends it."""


def examine(home: Home) -> list[Finding]:
    """Look at everything and change nothing. Model files are hashed, which takes a second per gigabyte or so."""
    return [
        *_packages(),
        *_settings(home),
        *_home(home),
        *_chats(home),
        *_snapshots(home),
        *_characters(home),
        *_models(home),
    ]


def _packages() -> Iterator[Finding]:
    yield Finding(area="python", ok=True, text=f"Python {platform.python_version()} on {platform.platform(terse=True)}")
    for name in _PACKAGES:
        try:
            yield Finding(area="packages", ok=True, text=f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                area="packages", ok=False, text=f"{name} is not installed.", hint="Run: pip install --upgrade rpla"
            )
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            text = f"[{extra}] is not installed; it is optional (missing: {', '.join(missing)})."
            yield Finding(area="extras", ok=True, text=text, hint=f"To add it: pip install 'rpla[{extra}]'")
        else:
            yield Finding(area="extras", ok=True, text=f"[{extra}] is installed.")


def _settings(home: Home) -> Iterator[Finding]:
    try:
        settings = load_settings(home)
    except RplaError as error:
        yield Finding(area="settings", ok=False, text=error.message, hint=error.hint)
    except OSError as error:
        yield Finding(area="settings", ok=False, text=f"{home.config} cannot be read: {error.strerror}.")
    else:
        yield Finding(area="settings", ok=True, text=f"The settings are valid; the model is {settings.model}.")


def _home(home: Home) -> Iterator[Finding]:
    there = next(folder for folder in (home.root, *home.root.parents) if folder.exists())
    if _writable(there, try_it=there == home.root):
        text = f"{home.root} can be written." if there == home.root else f"{home.root} can be made when it is needed."
        yield Finding(area="home", ok=True, text=text)
    else:
        yield Finding(
            area="home",
            ok=False,
            text=f"{home.root} cannot be written.",
            hint="Mend the folder's permissions, free some space, or point RPLA_HOME elsewhere.",
        )
    free = shutil.disk_usage(there).free
    enough = free >= _LITTLE_SPACE
    yield Finding(
        area="disk",
        ok=enough,
        text=f"{free / 1e9:.1f} GB are free.",
        hint="" if enough else "Free some space: a full disk cannot save what is said.",
    )


def _writable(folder: Path, *, try_it: bool) -> bool:
    if not try_it:
        return folder.is_dir() and os.access(folder, os.W_OK)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"rpla")
    except OSError:
        return False
    return True


def _chats(home: Home) -> Iterator[Finding]:
    taken = snapshots(home)
    if not home.chats.exists() and not taken:
        yield Finding(area="chats", ok=True, text="There are no chats yet.")
        return
    snapshot_turns = count_turns(taken[0]) if taken else 0
    if not home.chats.exists():
        yield Finding(
            area="chats", ok=False, text=f"{home.chats} is gone, but has snapshots.", hint=_MEND, mendable=True
        )
        return
    if home.chats.stat().st_size == 0 and snapshot_turns:
        yield Finding(
            area="chats", ok=False, text=f"{home.chats} is empty; its snapshot is not.", hint=_MEND, mendable=True
        )
        return
    try:
        log = ChatLog(home.chats)
    except RplaError as error:
        yield _unusable(error)
        return
    try:
        if faults := log.verify():
            more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
            text = f"{home.chats} is damaged: {_line(faults[0])}{more}."
            yield Finding(area="chats", ok=False, text=text, hint=_MEND, mendable=True)
            return
        chats = log.chats()
        turns = sum(chat.turns for chat in (*chats, *log.chats(deleted=True)))
        if turns < snapshot_turns:
            text = f"{home.chats} holds {turns} turns, fewer than its snapshot of {snapshot_turns}."
            yield Finding(area="chats", ok=False, text=text, hint=_MEND, mendable=True)
            return
        yield Finding(area="chats", ok=True, text=f"{len(chats)} chats with {turns} turns; the file is sound.")
        heads = {chat.id: log.turn(chat.head) for chat in chats if chat.head is not None}
        unanswered = [chat for chat in chats if chat.id in heads and heads[chat.id].role == "user"]
        if unanswered:
            yield Finding(
                area="chats",
                ok=True,
                text=f"{len(unanswered)} end with a message that was not answered: "
                + ", ".join(chat.id[:8] for chat in unanswered[:10])
                + ("…" if len(unanswered) > 10 else "."),
                hint="Open one and /regenerate answers it.",
            )
    except RplaError as error:
        yield _unusable(error)
    finally:
        log.close()


def _unusable(error: RplaError) -> Finding:
    """A log that SQLite calls malformed can be mended; one that is locked, newer or unreadable must be left alone."""
    cause = error.__cause__
    # Python's own complaint about text that is not UTF-8 is an OperationalError too, but without SQLite's code.
    circumstances = isinstance(cause, sqlite3.OperationalError) and hasattr(cause, "sqlite_errorcode")
    damaged = isinstance(cause, sqlite3.DatabaseError) and not circumstances
    return Finding(area="chats", ok=False, text=error.message, hint=_MEND if damaged else error.hint, mendable=damaged)


def _snapshots(home: Home) -> Iterator[Finding]:
    taken = snapshots(home)
    if not taken:
        yield Finding(area="snapshots", ok=True, text="There are no snapshots yet.")
        return
    newest = _date(snapshot_time(taken[0]))
    yield Finding(area="snapshots", ok=True, text=f"{len(taken)} snapshots; the newest is of {newest}.")


def _characters(home: Home) -> Iterator[Finding]:
    from rpla.core.library import CharacterLibrary

    try:
        entries = CharacterLibrary(home).entries()
    except RplaError as error:
        yield Finding(area="characters", ok=False, text=error.message, hint=error.hint)
        return
    broken = [entry for entry in entries if entry.broken]
    yield Finding(area="characters", ok=True, text=f"{len(entries) - len(broken)} characters can be read.")
    for entry in broken:
        yield Finding(
            area="characters",
            ok=False,
            text=f"{entry.slug} cannot be read: {_line(entry.broken)}",
            hint=f"Mend the card in {home.characters / entry.slug}, or import it again.",
        )


def _models(home: Home) -> Iterator[Finding]:
    from rpla.core.models.shelf import Shelf

    shelf = Shelf(home)
    pulled = [model for model in shelf.models() if model.pulled]
    if not pulled:
        yield Finding(area="models", ok=True, text="No model file is pulled.", hint="To get one: rpla models pull")
    for model in pulled:
        try:
            shelf.verify(model.name)
        except RplaError as error:
            yield Finding(area="models", ok=False, text=error.message, hint=error.hint)
        except OSError as error:
            yield Finding(area="models", ok=False, text=f"{model.path} cannot be read: {error.strerror}.")
        else:
            known = model.sha256 or model.published
            yield Finding(
                area="models",
                ok=True,
                text=f"{model.name} has the right hash." if known else f"{model.name} is there; its hash is not known.",
            )


def _date(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
