"""Memories in the prompt: what comes to mind at what the user has just said."""

import asyncio
from collections.abc import Callable, Sequence

from rpla.core.chatlog import Turn
from rpla.core.macros import Macros
from rpla.core.prompt import Item, Section
from rpla.core.settings import MemorySettings
from rpla.memory.episodic import EpisodicMemory, Viewpoint
from rpla.memory.memories import Memory, Recalled
from rpla.memory.recall import Moment
from rpla.memory.store import now

_DAY_S = 86_400.0
_FEW_WORDS = 5
"""A shorter message is searched for together with what it answers."""
_SAID = {"told": "{user} said", "said": "{char} said", "hearsay": "{user} passed on, unproven,"}


class MemoryRecaller:
    """Episodes and insights that fit the newest message, as one section."""

    def __init__(
        self,
        memory: EpisodicMemory,
        macros: Macros,
        count_tokens: Callable[[str], int],
        settings: MemorySettings,
        *,
        insights: bool = True,
    ) -> None:
        self._memory, self._macros, self._count = memory, macros, count_tokens
        self._settings, self._insights = settings, insights

    async def __call__(self, moment: Moment) -> list[Section]:
        """What is remembered, in the section's budget of tokens; with why each came to mind."""
        return await asyncio.to_thread(self._recall, moment)

    def _recall(self, moment: Moment) -> list[Section]:
        embedder = self._memory.embedder
        recalled = self._memory.recall(query_of(moment), viewpoint_of(moment))
        recalled = [one for one in recalled if self._insights or one.memory.kind != "insight"]
        lines = {one.memory.id: self._line(one.memory) for one in recalled}
        tokens, kept = self._count(self._heading), set[str]()
        for one in sorted(recalled, key=lambda one: (not one.memory.pinned, -one.score)):
            size = self._count(lines[one.memory.id]) + 1
            if tokens + size <= self._settings.tokens:
                kept.add(one.memory.id)
                tokens += size
        if not kept:
            return []
        recalled = [one for one in recalled if one.memory.id in kept]
        source = f"{len(kept)} of what is remembered"
        if embedder is not None and embedder.missing:
            source += f"; by words alone: {embedder.missing}"
        return [
            Section(
                name="memories",
                text="\n".join([self._heading, *(lines[one.memory.id] for one in recalled)]),
                source=source,
                tokens=tokens,
                items=tuple(map(_item, recalled)),
            )
        ]

    @property
    def _heading(self) -> str:
        return f"{self._macros.char} remembers of {self._macros.user}, the newest first:"

    def _line(self, memory: Memory) -> str:
        names = {"user": self._macros.user, "char": self._macros.char}
        if memory.provenance in _SAID:
            said = _SAID[memory.provenance].format(**names)
            return f'- {said} {ago(now() - memory.created)}: "{memory.text}"'
        if memory.provenance == "inferred":
            return f"- {names['char']} has come to think: {memory.text}"
        return f"- {memory.text}"


def query_of(moment: Moment) -> str:
    """What is searched for: the newest message of the user, with what it answers where it is short."""
    asked = next((place for place in reversed(range(len(moment.turns))) if moment.turns[place].role == "user"), None)
    if asked is None:
        return moment.turns[-1].text if moment.turns else ""
    text = moment.turns[asked].text
    if asked and len(text.split()) < _FEW_WORDS:
        return f"{moment.turns[asked - 1].text}\n{text}"
    return text


def viewpoint_of(moment: Moment) -> Viewpoint:
    """From where a turn looks back."""
    return viewpoint_at(moment.chat, moment.turns, window=moment.window)


def viewpoint_at(chat: str, branch: Sequence[Turn], *, window: int = 0) -> Viewpoint:
    """The viewpoint at the end of a branch whose newest `window` turns stand in the prompt."""
    shown = branch[len(branch) - window :] if window else ()
    return Viewpoint(chat=chat, turns=_with_originals(branch), shown=_with_originals(shown))


def _with_originals(turns: Sequence[Turn]) -> frozenset[str]:
    """Ids of turns, and of those they say again after an edit of an earlier one: what was remembered then holds."""
    ids = {turn.id for turn in turns}
    return frozenset(ids.union(turn.meta["same"] for turn in turns if "same" in turn.meta))


def ago(seconds: float) -> str:
    """How long ago, in words a person would use."""
    days = max(0, int(seconds // _DAY_S))
    if seconds < 3600:
        return "just now"
    if days == 0:
        return "earlier today"
    if days == 1:
        return "yesterday"
    for size, name in ((365, "year"), (30, "month"), (7, "week")):
        if days >= 2 * size:
            return f"{days // size} {name}s ago"
    return f"{days} days ago"


def _item(recalled: Recalled) -> Item:
    return Item(id=recalled.memory.id, score=recalled.score, reason=recalled.reason)
