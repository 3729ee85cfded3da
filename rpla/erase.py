"""Erasing: what was said is overwritten in the chat log, in memories and summaries, in snapshots and in what was typed.

First a plan is made, which says what would go and can be shown; `erase` carries it out. It can be cut off anywhere and
done again. No other program may use this home meanwhile, and no Agent of this process: what they hold in memory they
would write anew.
"""

import contextlib
import re
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rpla.core.chatlog import ChatInfo, ChatLog, Turn
from rpla.core.errors import RplaError
from rpla.core.files import write_file
from rpla.core.home import Home
from rpla.core.settings import load_settings
from rpla.core.snapshot import take_snapshot
from rpla.memory.embedder import lazy_embedder
from rpla.memory.gate import pieces_of
from rpla.memory.remember import QUOTED
from rpla.memory.store import MemoryStore
from rpla.memory.summaries import drop_summaries

_SHORTEST_BEGINNING = 12
"""From so many characters on, a turn that begins with another in its place is taken to be that one, gone on with."""
_OCTAL = re.compile(rb"\\([0-7]{3})")
_LIBEDIT = b"_HiStOrY_V2_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be erased."""

    turns: tuple[Turn, ...] = ()
    """Turns that are overwritten; they stay in their chats, empty."""
    copies: int = 0
    """How many of these were not named, but hold the same: edited versions, and turns of the same text."""
    chats: tuple[ChatInfo, ...] = ()
    """Chats that go as a whole."""
    scopes: tuple[tuple[str, str], ...] = ()
    """Users and characters, as ids: all that the one remembers of the other goes, what was noted by hand too."""
    knowledge: str | None = None
    """The character whose knowledge goes, as an id."""
    all_typed: bool = False
    """Whether all goes that was typed in the line chat, and not only what is erased."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """What `erase` did."""

    turns: int
    chats: int
    memories: int
    """Insights included."""
    summaries: int
    typed: int
    """Lines that were typed in the line chat."""
    sources: int
    """Documents that the character knew."""
    files: tuple[Path, ...]
    """Copies that are gone: snapshots, damaged files that had been set aside."""
    snapshot: Path | None
    """The new one; None where nothing is left to be copied."""


def plan_turn(log: ChatLog, turn: str) -> Plan:
    """Erase a turn, and in its chat every turn that holds the same.

    These are what it was edited from and to, turns of the same text (an edit says those after it again), and in its
    place a reply that goes on from it. Raises RplaError where there is no such turn.
    """
    named = log.turn(turn)
    others = log.turns(named.chat)
    found = {named.id: named}
    left = [named]
    while left:
        one = left.pop()
        for other in others:
            if other.id not in found and _same(one, other):
                found[other.id] = other
                left.append(other)
    return Plan(turns=tuple(one for one in others if one.id in found), copies=len(found) - 1)


def plan_chat(log: ChatLog, chat: str) -> Plan:
    """Erase a chat. Raises RplaError where there is none of this id."""
    return Plan(chats=(log.chat(chat),))


def plan_between(home: Home, log: ChatLog, *, user: str, character: str) -> Plan:
    """Erase all that a user and a character said, and what the character remembers of this user. These are ids."""
    return _plan(home, log, user, character)


def plan_user(home: Home, log: ChatLog, user: str) -> Plan:
    """Erase all that a user said to anyone, what characters remember of this user, and all that was typed."""
    return _plan(home, log, user, None)


def plan_character(home: Home, log: ChatLog, character: str) -> Plan:
    """Erase all that anyone said to a character, what it remembers, and what it knows from documents.

    The card stays: `rpla characters remove` removes that.
    """
    return _plan(home, log, None, character)


def erase(home: Home, log: ChatLog, plan: Plan) -> Erased:
    """Carry a plan out: no file of this home holds the text afterwards.

    Snapshots and damaged files that were set aside go as a whole; a new snapshot is taken. Raises RplaError where a
    file is read by another process meanwhile, which keeps the old pages: then it is to be done again. Files that were
    exported are elsewhere, and stay.
    """
    memory = MemoryStore(home.memory) if home.memory.exists() else None
    with contextlib.closing(memory) if memory is not None else contextlib.nullcontext():
        chats = {info.id: log.turns(info.id) for info in plan.chats}
        turns = [*plan.turns, *(turn for chat in chats.values() for turn in chat)]
        noted = _memory_texts(memory, plan) if memory is not None else []
        typed = _erase_typed(home.history, [*(turn.text for turn in turns), *noted], everything=plan.all_typed)
        files = _remove_copies(home)
        memories = summaries = 0
        if memory is not None:
            memories, summaries = _erase_memories(memory, log, plan, chats)
        sources = _erase_knowledge(home, plan.knowledge) if plan.knowledge is not None else 0
        log.erase(turn.id for turn in plan.turns)
        _erase_titles(log, plan.turns)
        for info in plan.chats:
            log.erase_chat(info.id)
        # The rows of a chat go last: until all is overwritten, it can be named and erased again.
        if memory is not None:
            memory.scrub()
        log.scrub()
        for info in plan.chats:
            log.remove(info.id)
    return Erased(
        turns=len(turns),
        chats=len(plan.chats),
        memories=memories,
        summaries=summaries,
        typed=typed,
        sources=sources,
        files=tuple(files),
        snapshot=None if log.empty else take_snapshot(log, home),
    )


def _same(one: Turn, other: Turn) -> bool:
    if one.meta.get("edited") == other.id or other.meta.get("edited") == one.id:
        return True
    mine, its = one.text.strip(), other.text.strip()
    if not mine or not its:
        return False
    if mine == its:
        return True
    shorter, longer = sorted((mine, its), key=len)
    beside = one.role == other.role and one.parent == other.parent
    return beside and len(shorter) >= _SHORTEST_BEGINNING and longer.startswith(shorter)


def _plan(home: Home, log: ChatLog, user: str | None, character: str | None) -> Plan:
    chats = [chat for deleted in (False, True) for chat in log.chats(user=user, character=character, deleted=deleted)]
    scopes: list[tuple[str, str]] = []
    if home.memory.exists():
        with contextlib.closing(MemoryStore(home.memory)) as memory:
            scopes = [
                (of, by)
                for of, by, _ in memory.scopes()
                if (user is None or of == user) and (character is None or by == character)
            ]
    return Plan(
        chats=tuple(chats),
        scopes=tuple(scopes),
        knowledge=character if user is None else None,
        all_typed=character is None,
    )


def _memory_texts(memory: MemoryStore, plan: Plan) -> list[str]:
    """What goes of memories: a note was typed, too."""
    ids = [id for chat in plan.chats for id in memory.from_turns(chat.id)]
    for turn in plan.turns:
        ids += memory.from_turns(turn.chat, [turn.id])
    texts = [one.text for one in memory.find(ids)]
    return [*texts, *(row.memory.text for scope in plan.scopes for row in memory.rows(*scope))]


def _erase_memories(memory: MemoryStore, log: ChatLog, plan: Plan, chats: dict[str, list[Turn]]) -> tuple[int, int]:
    memories = summaries = 0
    for chat in dict.fromkeys(turn.chat for turn in plan.turns):
        gone = {turn.id: turn for turn in plan.turns if turn.chat == chat}
        after = _followers(log.turns(chat), gone)
        summaries += drop_summaries(memory, log, chat, gone)
        memories += len(memory.erase(chat, list(gone), _words(gone.values()), after))
    for chat, turns in chats.items():
        summaries += len(memory.summaries(chat))
        memories += len(memory.erase(chat, None, _words(turns), ()))
    for user, character in plan.scopes:
        memories += memory.erase_scope(user, character)
    return memories, summaries


def _followers(turns: Sequence[Turn], gone: Collection[str]) -> list[str]:
    """Those turns after what is erased whose memories quote it."""
    by_id = {turn.id: turn for turn in turns}
    found: list[str] = []
    for turn in turns:
        before = turn.parent
        for _ in range(QUOTED):
            if before in gone:
                found.append(turn.id)
                break
            before = by_id[before].parent if before is not None else None
    return found


def _words(turns: Iterable[Turn]) -> list[str]:
    return [piece for turn in turns for piece in pieces_of(turn.text)]


def _erase_titles(log: ChatLog, turns: Sequence[Turn]) -> None:
    for chat in {turn.chat for turn in turns}:
        title = log.chat(chat).title
        if title and any(turn.text.startswith(title) for turn in turns):
            log.rename(chat, "")


def _erase_knowledge(home: Home, character: str) -> int:
    if not home.knowledge.exists():
        return 0
    from rpla.memory.knowledge import Knowledge

    settings = load_settings(home)
    with contextlib.closing(Knowledge(home, lazy_embedder(settings.memory.embedder), settings.knowledge)) as knowledge:
        sources = len(knowledge.sources(character))
        knowledge.erase(character)
        return sources


def _remove_copies(home: Home) -> list[Path]:
    """Snapshots, and what a repair or a killed process left behind: each may hold what is erased."""
    gone: list[Path] = []
    for name in (f"{home.snapshots.name}/*.*", "*.db.damaged-*", ".restore-*", ".*.tmp"):
        for file in sorted(home.root.glob(name)):
            try:
                shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
            except OSError as error:
                raise RplaError(
                    f"{file} could not be removed: {error.strerror}.", "Remove it, and erase again."
                ) from error
            gone.append(file)
    return gone


def _erase_typed(file: Path, texts: Sequence[str], *, everything: bool) -> int:
    """Take lines out of the file that the line chat keeps for its arrow keys; how many."""
    if not file.exists():
        return 0
    try:
        lines = file.read_bytes().splitlines(keepends=True)
        sought = {_on_one_line(text) for text in texts}
        kept = [
            line for line in lines if line.startswith(_LIBEDIT) or not (everything or sought.intersection(_typed(line)))
        ]
        if len(kept) < len(lines):
            write_file(file, b"".join(kept))
    except OSError as error:
        raise RplaError(f"{file} could not be changed: {error.strerror}.", "Remove it, and erase again.") from error
    return len(lines) - len(kept)


def _typed(line: bytes) -> set[str]:
    """What a line may have said: itself, or what stands behind a slash command and its number."""
    # Where Python is built with libedit, it writes spaces and the like as octal numbers.
    decoded = _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), line)
    said: set[str] = set()
    for text in {_on_one_line(line.decode(errors="replace")), _on_one_line(decoded.decode(errors="replace"))}:
        said.add(text)
        if text.startswith("/"):
            said |= {text[1:], text.partition(" ")[2], text.partition(" ")[2].partition(" ")[2]}
    return said - {""}


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
