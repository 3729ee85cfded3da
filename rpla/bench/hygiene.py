"""What the memory keeps of conversations in free wording: facts, and neither hearsay nor echoes.

Conversations are JSON lines, a turn each, in ``rpla/bench/conversations``: ``seen`` ones the write gate was made on,
``unseen`` ones it was not. ``kind`` says what a turn is (fact, update, hearsay, echo, chat), ``facts`` what it states:
words that must be kept (``keys``), the fact it replaces (``supersedes``), and a question it answers (``probe``).
"""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpla.bench.at_hand import AtHand, embedded
from rpla.bench.result import Result
from rpla.core.chatlog import ChatLog, Role
from rpla.core.errors import RplaError
from rpla.core.ids import id_of
from rpla.core.settings import MemorySettings
from rpla.memory.embedder import LazyEmbedder
from rpla.memory.episodic import EpisodicMemory
from rpla.memory.gate import pieces_of
from rpla.memory.memories import Memory
from rpla.memory.remember import remember
from rpla.memory.remembering import viewpoint_at
from rpla.memory.store import MemoryStore

CONVERSATIONS = Path(__file__).parent / "conversations"
_RECALLED = 10
_IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - in a folder of its own


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of one conversation."""

    turns: Sequence[dict[str, Any]]
    memories: Sequence[Memory]
    texts: dict[str, int]
    """Turn id to the place of the turn in the conversation."""
    superseded_above: int
    superseded: int


def measure_hygiene(embedder: LazyEmbedder | None, half: str) -> list[Result]:
    """Precision and recall of what is kept, echoes among it, and old facts ranked above new ones."""
    if not (CONVERSATIONS / half).is_dir():
        raise RplaError(f"There is no {CONVERSATIONS / half}.", "The conversations are in rpla's repository.")
    kept = [_keep(turns, embedder) for turns in _conversations(CONVERSATIONS / half)]
    right = stored = echoes = found = facts = 0
    for one in kept:
        by_place: dict[int, list[Memory]] = {}
        for memory in one.memories:
            assert memory.turn is not None
            place = one.texts[memory.turn]
            by_place.setdefault(place, []).append(memory)
            kind = one.turns[place]["kind"]
            stored += 1
            right += kind in ("fact", "update")
            echoes += kind == "echo"
        for place, turn in enumerate(one.turns):
            for fact in turn["facts"]:
                facts += 1
                found += any(
                    key.lower() in memory.text.lower() for memory in by_place.get(place, ()) for key in fact["keys"]
                )
    return [
        Result("turns", sum(len(one.turns) for one in kept)),
        Result("stored_precision", right / max(1, stored), "≥ 0.9"),
        Result("stored_recall", found / max(1, facts), "≥ 0.8"),
        Result("echoes", echoes, "0"),
        Result("superseded_above", sum(one.superseded_above for one in kept), "0"),
        Result("superseded", sum(one.superseded for one in kept)),
    ]


def _conversations(folder: Path) -> Iterator[list[dict[str, Any]]]:
    for path in sorted(folder.glob("*.jsonl")):
        yield [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _read_ahead(turns: Sequence[dict[str, Any]], embedder: LazyEmbedder | None) -> LazyEmbedder | None:
    """The embedder, with the vectors of a conversation made in one batch: that takes a fraction of the time."""
    if embedder is None or (embed := embedder.ready) is None:
        return embedder
    texts = list(
        dict.fromkeys(
            text
            for turn in turns
            for text in (turn["text"], *pieces_of(turn["text"]), *(fact["probe"] for fact in turn["facts"]))
            if text
        )
    )
    return LazyEmbedder(embed.name, AtHand(embed.name, texts, embedded(texts, embed), embed))


def _keep(turns: Sequence[dict[str, Any]], embedder: LazyEmbedder | None) -> Kept:
    user, character = id_of("user", turns[0]["conversation"]), id_of("bench", "character")
    # Nothing here is timed, so nothing need be durable: in memory, where the system has such a folder.
    with tempfile.TemporaryDirectory(prefix="rpla-bench-", dir=_IN_MEMORY) as folder:
        log, store = ChatLog(Path(folder) / "chats.db"), MemoryStore(Path(folder) / "memory.db")
        memory = EpisodicMemory(
            store,
            log,
            user=user,
            character=character,
            embedder=_read_ahead(turns, embedder),
            settings=MemorySettings(floor=0),
        )
        chat = log.create_chat(user=user, character=character).id
        head: str | None = None
        places: dict[str, int] = {}
        for place, turn in enumerate(turns):
            role: Role = "user" if turn["speaker"] == "user" else "character"
            head = log.append(chat, head, role, turn["text"]).id
            places[head] = place
            if role == "character":
                remember(memory, log, chat)
        remember(memory, log, chat)
        viewpoint = viewpoint_at(chat, log.branch(head))
        memories = memory.all(viewpoint)
        stated = {fact["id"]: (place, fact) for place, turn in enumerate(turns) for fact in turn["facts"]}
        above = pairs = 0
        for place, fact in stated.values():
            if fact["supersedes"] is None:
                continue
            recalled = [
                places[one.memory.turn]
                for one in memory.recall(fact["probe"], viewpoint, limit=_RECALLED)
                if one.memory.turn is not None
            ]
            old = stated[fact["supersedes"]][0]
            pairs += 1
            above += old in recalled and (place not in recalled or recalled.index(old) < recalled.index(place))
        store.close()
        log.close()
    return Kept(turns, memories, places, above, pairs)
