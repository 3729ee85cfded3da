"""Passages in the prompt: what a character can look up about what the user has just said."""

import asyncio
from collections.abc import Callable, Sequence

from rpla.core.prompt import Item, Section
from rpla.core.settings import KnowledgeSettings
from rpla.memory.knowledge import Knowledge
from rpla.memory.passages import Passage
from rpla.memory.recall import Moment
from rpla.memory.remembering import query_of

_HEADING = "What {name} knows of this:"


class PassageRecaller:
    """The passages that fit the newest message, as one section."""

    def __init__(
        self,
        knowledge: Knowledge,
        character: str,
        name: str,
        count_tokens: Callable[[str], int],
        settings: KnowledgeSettings,
        *,
        cutoff: float | None = None,
    ) -> None:
        """`character` is the id, `name` what the character is called; `cutoff` overrides the character's own."""
        self._knowledge, self._character, self._name = knowledge, character, name
        self._count, self._settings, self._cutoff = count_tokens, settings, cutoff

    async def __call__(self, moment: Moment) -> list[Section]:
        """What is found, in the section's budget of tokens; nothing where nothing fits."""
        return await asyncio.to_thread(self._recall, moment)

    def take_notices(self) -> list[str]:
        """What is wrong with what is searched, each once."""
        return self._knowledge.take_notices()

    def _recall(self, moment: Moment) -> list[Section]:
        if not (asked := query_of(moment).strip()):
            return []
        # The user says "you", and the passages say the name.
        found = self._knowledge.search(
            self._character, asked, limit=self._settings.passages, cutoff=self._cutoff, about=self._name
        )
        embedder = self._knowledge.embedder
        lacking = f"; by words alone: {embedder.missing}" if embedder is not None and embedder.missing else ""
        return _sections(found, self._name, self._count, self._settings.tokens, lacking)


class GivenRecaller:
    """The passages that the caller gives with a turn, as they are: what retrieval would find at its best."""

    def __init__(
        self,
        passages: Sequence[Passage | str],
        name: str,
        count_tokens: Callable[[str], int],
        settings: KnowledgeSettings,
    ) -> None:
        self._given = [
            passage
            if isinstance(passage, Passage)
            else Passage(
                id=f"given-{number}", source="", place="", text=passage, score=1.0, story_time=None, reason="given"
            )
            for number, passage in enumerate(passages, 1)
        ]
        self._name, self._count, self._settings = name, count_tokens, settings

    async def __call__(self, moment: Moment) -> list[Section]:
        """What was given, in the section's budget of tokens."""
        return await asyncio.to_thread(_sections, self._given, self._name, self._count, self._settings.tokens, "")


def _sections(
    passages: Sequence[Passage], name: str, count_tokens: Callable[[str], int], budget: int, lacking: str
) -> list[Section]:
    lines: list[str] = []
    kept: list[Passage] = []
    heading = _HEADING.format(name=name)
    tokens = count_tokens(heading) + 1
    for passage in passages:
        where = ", ".join(filter(None, (passage.source, passage.place)))
        line = f"- {' '.join(passage.text.split())}" + (f" ({where})" if where else "")
        size = count_tokens(line) + 1
        if tokens + size <= budget:
            lines.append(line)
            kept.append(passage)
            tokens += size
    if not kept:
        return []
    sources = ", ".join(dict.fromkeys(passage.source or "given" for passage in kept))
    return [
        Section(
            name="knowledge",
            text="\n".join([heading, *lines]),
            source=f"knowledge: {sources}{lacking}",
            tokens=tokens,
            items=tuple(Item(passage.id, passage.score, passage.reason) for passage in kept),
        )
    ]
