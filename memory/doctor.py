"""What is well with the memories of a home and what is not, as values; and mending what can be mended without loss."""

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from rpla.core.chatlog import ChatLog
from rpla.core.errors import RplaError
from rpla.core.home import Home
from rpla.core.settings import MemorySettings, Settings
from rpla.memory.embedder import Embedder, lazy_embedder
from rpla.memory.hygiene import Doubt, doubts
from rpla.memory.rescue import Rescue, rescue
from rpla.memory.store import MemoryStore, Row

Kind = Literal[
    "sound",
    "damaged",
    "unusable",
    "locked",
    "embedder",
    "vectors",
    "duplicate",
    "echo",
    "contradiction",
    "stale",
    "superseded",
    "evidence",
    "summary",
    "index",
]
_MEND = "`rpla memory doctor --mend` moves it aside and remembers the chats anew."
_DOUBTS: dict[Doubt, str] = {
    "duplicate": "Two memories say the same",
    "echo": "The character said again what it remembers",
    "contradiction": "The newer may contradict the older",
}
_BATCH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFinding:
    """One thing that was looked at."""

    kind: Kind
    text: str
    ids: tuple[str, ...] = ()
    """Memories that it is about, the newest first; of a summary the chat, of an index the character."""
    ok: bool = False
    """Whether nothing needs to be done. What may be a fault or not (a duplicate, a contradiction) is ok."""
    mendable: bool = False
    """Whether `mend_memory` mends it."""
    hint: str = ""


def soundness(home: Home) -> MemoryFinding:
    """Whether memory.db can be used, in one line. Changes nothing."""
    if not home.memory.exists():
        return MemoryFinding(kind="sound", ok=True, text="Nothing is remembered yet.")
    try:
        store = MemoryStore(home.memory)
    except RplaError as error:
        return _unusable(error)
    with contextlib.closing(store):
        try:
            if faults := store.faults():
                more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
                text = f"{home.memory} is damaged: {' '.join(faults[0].split())}{more}."
                return MemoryFinding(kind="damaged", text=text, mendable=True, hint=_MEND)
            scopes = store.scopes()
        except RplaError as error:
            return _unusable(error)
    total = sum(count for _, _, count in scopes)
    return MemoryFinding(kind="sound", ok=True, text=f"{total} memories of {len(scopes)} pairs; the file is sound.")


def examine_memory(home: Home, settings: Settings) -> list[MemoryFinding]:
    """Look at all that is remembered in a home, and change nothing. Loads the embedder."""
    first = soundness(home)
    if not first.ok or not home.memory.exists():
        return [first, *_indexes(home, settings)]
    embedder, missing = loaded_embedder(settings.memory)
    with contextlib.closing(MemoryStore(home.memory)) as store, _log_of(home) as log:
        there = _turns(store, log)
        opened = {chat: log.open_turns(chat) if log is not None else frozenset() for chat in there}
        findings = [first]
        if missing:
            text = f"The embedder cannot be loaded, so words alone are searched: {missing}"
            findings.append(MemoryFinding(kind="embedder", ok=True, text=text))
        for user, character, _ in store.scopes():
            rows = store.rows(user, character, embedder=embedder.name if embedder is not None else "")
            findings += _vectors(rows, embedder)
            findings += _stale(rows, there)
            findings += _standing(rows)
            live = [row for row in rows if _is_live(row, opened)]
            findings += _doubts(live)
        findings += _summaries(store, there)
    return [*findings, *_indexes(home, settings)]


def mend_memory(home: Home, settings: Settings) -> list[str]:
    """Mend what can be mended without losing what anyone said or noted; what was done, in words.

    No MemoryStore of this process may be open. Raises RplaError where another process has a damaged file open.
    """
    done: list[str] = []
    first = soundness(home)
    if first.kind == "damaged":
        done += _told(rescue(home))
    elif not first.ok:
        raise RplaError(first.text, first.hint)
    if not home.memory.exists():
        return done
    embedder, _ = loaded_embedder(settings.memory)
    with contextlib.closing(MemoryStore(home.memory)) as store, _log_of(home) as log:
        there = _turns(store, log)
        made = sum(embed_rows(store, embedder, user, character) for user, character, _ in store.scopes())
        if made:
            done.append(f"Made {made} vectors.")
        for user, character, _ in store.scopes():
            rows = store.rows(user, character)
            for finding in _standing(rows):
                if finding.kind == "superseded":
                    store.change(finding.ids[0], superseded_by=None)
                    done.append(f"{finding.ids[0]} stands again: what took its place is gone.")
                elif store.find(finding.ids):
                    store.forget(finding.ids)
                    done.append(f"Took away insight {finding.ids[0]}, which stands on fewer than two memories.")
        for chat, lasts in _lost_summaries(store, there).items():
            store.drop_summaries(chat, lasts)
            done.append(f"Took away {len(lasts)} summaries of turns of chat {chat} that are gone.")
    return done


def embed_rows(store: MemoryStore, embed: Embedder | None, user: str, character: str) -> int:
    """Make the vectors that are missing or of another embedder, some at a time; how many were made."""
    if embed is None:
        return 0
    missing = [row for row in store.rows(user, character, embedder=embed.name) if row.vector is None]
    for start in range(0, len(missing), _BATCH):
        part = missing[start : start + _BATCH]
        store.set_vectors(part, list(embed([row.memory.text for row in part])), embed.name)
    return len(missing)


def loaded_embedder(settings: MemorySettings) -> tuple[Embedder | None, str]:
    """The embedder, loaded now, or why it cannot be; neither where the settings want none."""
    embedder = lazy_embedder(settings.embedder)
    try:
        return (embedder.wait() if embedder is not None else None), ""
    except RplaError as error:
        return None, error.message


def _unusable(error: RplaError) -> MemoryFinding:
    """What SQLite calls malformed can be begun anew; what is locked, newer or someone else's is left alone."""
    cause = error.__cause__
    # Python's own complaint about text that is not UTF-8 is an OperationalError too, but without SQLite's code.
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return MemoryFinding(kind="locked", text=error.message, hint=error.hint)
    circumstances = isinstance(cause, sqlite3.OperationalError) and code not in (0, sqlite3.SQLITE_CORRUPT)
    if isinstance(cause, sqlite3.DatabaseError) and not circumstances:
        return MemoryFinding(kind="damaged", text=error.message, hint=_MEND, mendable=True)
    return MemoryFinding(kind="unusable", text=error.message, hint=error.hint)


@contextlib.contextmanager
def _log_of(home: Home) -> Iterator[ChatLog | None]:
    if not home.chats.exists():
        yield None
        return
    with contextlib.closing(ChatLog(home.chats)) as log:
        yield log


def _turns(store: MemoryStore, log: ChatLog | None) -> dict[str, frozenset[str] | None]:
    """For each chat that is remembered the turns that the log has of it; None where it has no such chat."""
    known = {info.id for gone in (False, True) for info in log.chats(deleted=gone)} if log is not None else set[str]()
    return {
        chat: frozenset(turn.id for turn in log.turns(chat)) if log is not None and chat in known else None
        for chat in store.chats()
    }


def _is_live(row: Row, opened: Mapping[str, frozenset[str]]) -> bool:
    """Whether it is an episode that some open branch sees."""
    memory = row.memory
    seen = memory.chat is None or memory.turn is None or memory.turn in opened.get(memory.chat, frozenset())
    return seen and memory.kind == "episode" and memory.superseded_by is None


def _vectors(rows: list[Row], embedder: Embedder | None) -> Iterator[MemoryFinding]:
    without = tuple(row.memory.id for row in reversed(rows) if row.vector is None)
    if embedder is not None and without:
        text = f"{len(without)} memories have no vector of {embedder.name}: they are found by their words alone."
        yield MemoryFinding(kind="vectors", text=text, ids=without, mendable=True)


def _stale(rows: list[Row], there: Mapping[str, frozenset[str] | None]) -> Iterator[MemoryFinding]:
    for chat, turns in there.items():
        ours = [row.memory for row in reversed(rows) if row.memory.chat == chat]
        gone = tuple(one.id for one in ours if turns is None or (one.turn is not None and one.turn not in turns))
        if gone:
            what = f"chat {chat}, which is" if turns is None else f"turns of chat {chat} that are"
            yield MemoryFinding(
                kind="stale",
                text=f"{len(gone)} memories come from {what} not in the chat log; they do not come to mind.",
                ids=gone,
                hint="`rpla memory forget` takes them away.",
            )


def _standing(rows: list[Row]) -> Iterator[MemoryFinding]:
    """Memories whose successor is gone, and insights without enough evidence."""
    ids = {row.memory.id for row in rows}
    for row in rows:
        memory = row.memory
        if memory.superseded_by is not None and memory.superseded_by not in ids:
            text = "What took this memory's place is gone."
            yield MemoryFinding(kind="superseded", text=text, ids=(memory.id,), mendable=True)
        if memory.kind == "insight" and len(memory.evidence) < 2:
            text = "An insight stands on fewer than two memories; it does not come to mind."
            yield MemoryFinding(kind="evidence", text=text, ids=(memory.id,), mendable=True)


def _doubts(live: list[Row]) -> Iterator[MemoryFinding]:
    for kind, pairs in doubts(live).items():
        for newer, older in pairs:
            yield MemoryFinding(
                kind=kind,
                text=f'{_DOUBTS[kind]}: "{_short(newer.memory.text)}" and "{_short(older.memory.text)}".',
                ids=(newer.memory.id, older.memory.id),
                ok=True,
            )


def _lost_summaries(store: MemoryStore, there: Mapping[str, frozenset[str] | None]) -> dict[str, list[str]]:
    lost: dict[str, list[str]] = {}
    for chat, turns in there.items():
        for first, last, _, _ in store.summaries(chat):
            if turns is None or not turns.issuperset((first, last)):
                lost.setdefault(chat, []).append(last)
    return lost


def _summaries(store: MemoryStore, there: Mapping[str, frozenset[str] | None]) -> Iterator[MemoryFinding]:
    for chat, lasts in _lost_summaries(store, there).items():
        text = f"{len(lasts)} summaries are of turns of chat {chat} that are gone."
        yield MemoryFinding(kind="summary", text=text, ids=(chat,), mendable=True)


def _indexes(home: Home, settings: Settings) -> Iterator[MemoryFinding]:
    """What characters know from documents, and the index over it."""
    if not home.knowledge.exists():
        return
    from rpla.memory.knowledge import Knowledge

    embedder = lazy_embedder(settings.memory.embedder)
    try:
        with contextlib.closing(Knowledge(home, embedder, settings.knowledge)) as knowledge:
            for fault in knowledge.check():
                yield MemoryFinding(kind="index", text=fault, hint="`rpla knowledge reindex` makes it anew.")
    except RplaError as error:
        yield MemoryFinding(kind="index", text=error.message, hint=error.hint)


def _told(report: Rescue) -> list[str]:
    told = [
        f"The damaged file is kept: {report.aside}",
        "The chats are remembered anew when they are next opened.",
    ]
    if report.kept:
        told.append(f"Brought over: {report.kept} memories that were noted by hand or pinned.")
    if not report.readable:
        told.append("Nothing could be read: what was noted by hand, and which memories were pinned, is lost.")
    elif report.unread:
        told.append(f"{report.unread} memories could not be read; what among them was noted or pinned is lost.")
    if report.insights:
        told.append(f"{report.insights} pinned insights are lost, with the memories they stood on.")
    if not report.forgotten:
        told.append("What was forgotten may be remembered again from the chats: forget it again, or erase it.")
    return told


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"
