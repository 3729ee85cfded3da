"""Remembering: goes through what was said since the last time, and keeps what passes the gate."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from rpla.core.chatlog import ChatLog, Turn
from rpla.core.ids import new_id
from rpla.memory.embedder import Vectors
from rpla.memory.episodic import EpisodicMemory
from rpla.memory.gate import COMPARED, EARLIER, Gate, Said, known_words, pieces_of
from rpla.memory.memories import Memory
from rpla.memory.remembering import viewpoint_at
from rpla.memory.words import words_of

_OWN_WORDS = 0.5
"""What the character said of itself matters half as much: a model may have made it up."""
_SAME = 0.75
"""Cosine from which a memory without a new word in it says the same as an older one."""
QUOTED = 2
"""How many of the turns before it are kept beside a memory."""
_CONTEXT = 200
"""Most characters of each of them."""
_GRAVE = frozenset(
    words_of(
        "died death dead funeral cancer hospital pregnant born baby married wedding divorce engaged love hate promise "
        "secret afraid allergic fired quit moved ill diagnosed accident war prison"
    )
)


def remember(memory: EpisodicMemory, log: ChatLog, chat: str, stop: threading.Event | None = None) -> list[Memory]:
    """Remember what was said in a chat since the last time; returns the new memories. `stop` ends it between turns.

    Each turn is gone through once, whichever branch it is on and however often the process dies: what is kept and how
    far it was gone through are written together. What says nothing new renews the memory that said it first.
    """
    kept: list[Memory] = []
    with memory.remembering:
        pending = log.turns_after(chat, memory.store.remembered(chat))
        if not pending:
            return []
        by_id = {turn.id: turn for turn in log.turns(chat)}
        # Gone through anew after the log was restored, a turn is not remembered twice.
        known = memory.store.turns_remembered(chat)
        for num, turn in pending:
            if stop is not None and stop.is_set():
                break
            kept += _remember(memory, num, turn, by_id, again=turn.id in known or "same" in turn.meta)
    return kept


def _remember(memory: EpisodicMemory, num: int, turn: Turn, by_id: dict[str, Turn], *, again: bool) -> list[Memory]:
    """Go through one turn; what was said `again` after an edit is marked, and no more."""
    embedder = memory.embedder.ready if memory.embedder is not None else None
    gate = _gate(embedder.name if embedder is not None else "")
    vectors = _Vectors(memory)
    branch = _branch(turn, by_id)
    passed: list[tuple[Said, float]] = []
    if not again and "greeting" not in turn.meta:  # the card says that, to everyone
        for said in said_of(branch, vectors):
            if (verdict := gate(said)).keep and not memory.store.was_forgotten(turn.chat, said.text):
                passed.append((said, verdict.fact))
    # What is renewed, what is new and how far it was gone through: together, or a kill in between renews twice.
    with memory.transaction():
        if memory.store.remembered(turn.chat) >= num:
            return []  # another process was quicker
        fresh = [one for said, fact in passed for one in _taken(memory, said, turn, branch, fact)]
        made = [vectors.of(one.text) for one in fresh] if embedder else None
        return memory.add(fresh, made, remembered={turn.chat: num})


def said_of(branch: Sequence[Turn], vectors: "_Vectors") -> list[Said]:
    """The last turn of a branch before the gate, in pieces."""
    turn, earlier = branch[-1], branch[:-1]
    compared = [one.text for one in earlier[-COMPARED:]]
    known = known_words([one.text for one in earlier[-EARLIER:]])
    return [
        Said(
            text=piece,
            by_user=turn.role == "user",
            before=earlier[-1].text if earlier else "",
            known=known,
            place=len(earlier),
            vector=vectors.of(piece),
            earlier=vectors.all(compared),
        )
        for piece in pieces_of(turn.text)
    ]


def _taken(memory: EpisodicMemory, said: Said, turn: Turn, branch: Sequence[Turn], fact: float) -> list[Memory]:
    """The memory of what passed the gate; none where an older one says the same, which is renewed."""
    viewpoint = viewpoint_at(turn.chat, branch)
    words = set(words_of(said.text))
    for older, _ in memory.nearest(said.text, said.vector, viewpoint, 3):
        likeness = memory.likeness(older.id, said.vector) if said.vector is not None else None
        nothing_new = words <= set(words_of(older.text))
        if nothing_new and not older.pinned and (likeness is None or likeness >= _SAME):
            memory.change(older.id, renewed=max(older.renewed, turn.created), mentions=older.mentions + 1)
            return []
    return [
        Memory(
            id=new_id(),
            user=memory.user,
            character=memory.character,
            text=said.text,
            context=" ".join(one.text[-_CONTEXT:] for one in branch[-1 - QUOTED : -1]),
            provenance="told" if said.by_user else "said",
            chat=turn.chat,
            turn=turn.id,
            created=turn.created,
            renewed=turn.created,
            importance=_importance(fact, words) * (1 if said.by_user else _OWN_WORDS),
        )
    ]


def _importance(fact: float, words: set[str]) -> float:
    """How much it matters, without a model: how surely it is a fact, and whether it speaks of what marks a life."""
    return round(min(1.0, 0.2 + 0.4 * fact + 0.2 * min(2, len(words & _GRAVE))), 3)


def _branch(turn: Turn, by_id: dict[str, Turn]) -> list[Turn]:
    branch = [turn]
    while branch[-1].parent is not None:
        branch.append(by_id[branch[-1].parent])
    return branch[::-1]


@dataclass(slots=True)
class _Vectors:
    """Vectors of what was said, each made once."""

    memory: EpisodicMemory

    def of(self, text: str) -> Vectors | None:
        return self.memory.embedder.query(text) if self.memory.embedder is not None else None

    def all(self, texts: Sequence[str]) -> Vectors | None:
        vectors = [vector for text in texts if (vector := self.of(text)) is not None]
        return np.stack(vectors) if vectors else None


@cache
def _gate(embedder: str) -> Gate:
    return Gate(embedder)
