"""What happens during a turn, as front ends see it."""

from collections.abc import Sequence
from dataclasses import dataclass

from rpla.core.chatlog import Turn
from rpla.core.models.base import Usage
from rpla.core.prompt import Section


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The user's text is on the disk, and the character begins to think."""

    asked: Turn | None
    """The user's turn; None where the character speaks unasked."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of the reply."""

    text: str


@dataclass(frozen=True, slots=True)
class TurnReplaced:
    """What was shown of this reply is void; it now reads `text`, and may go on."""

    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user should know of, such as a section that did not fit."""

    text: str


@dataclass(frozen=True, slots=True)
class TurnCommitted:
    """The reply is on the disk."""

    turn: Turn
    sections: Sequence[Section]
    """What the prompt was made of."""
    usage: Usage | None


TurnEvent = TurnStarted | TextDelta | TurnReplaced | Notice | TurnCommitted
