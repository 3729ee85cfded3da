"""How a turn recalls: each source looks at the moment and answers with sections for the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rpla.core.chatlog import Turn
from rpla.core.prompt import Section

_SCANNED_TURNS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a source may look at."""

    turns: Sequence[Turn]
    """The open branch, oldest first; the turn to answer, or to go on with, is the last."""
    window: int = 0
    """How many of the newest turns stand in the prompt anyway."""
    chat: str = ""
    """The chat's id: the seed of what is drawn by lot."""

    @property
    def texts(self) -> list[str]:
        """Texts of the newest turns, the newest last."""
        return [turn.text for turn in self.turns[-_SCANNED_TURNS:]]


class Recaller(Protocol):
    """A source of what is recalled: lore, passages, episodes.

    One with something to tell the user (a pattern that is not run, an index that is damaged) has ``take_notices()``,
    which gives each notice once.
    """

    async def __call__(self, moment: Moment) -> list[Section]:
        """Sections for the end of the prompt; an empty list where nothing comes to mind."""
