"""How a turn recalls: each source looks at the moment and answers with sections for the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rpla.core.prompt import Section


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a source may look at."""

    texts: Sequence[str]
    """The newest turns of the branch, the newest last."""


class Recaller(Protocol):
    """A source of what is recalled: lore, passages, episodes."""

    async def __call__(self, moment: Moment) -> list[Section]:
        """Sections for the end of the prompt; an empty list where nothing comes to mind."""
