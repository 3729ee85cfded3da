"""The part of a branch that is in the prompt: it grows turn by turn and shrinks in large steps.

A window that slides by one turn changes the prompt's beginning each time, and the model would read everything again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from langchain_core.messages import BaseMessage

MESSAGE_TOKENS = 6
"""What a chat template adds around one message, in tokens."""
_FILLED = 0.7
"""Share of the room from which the next drop is near."""
_KEPT = 2
"""How many of the newest messages the next drop is taken to leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What was said in a run of turns, in a few sentences. It holds on the branches that its last turn is on."""

    chat: str
    first: str
    """Id of the first turn that it covers."""
    last: str
    """Id of the last one."""
    turns: int
    """How many it covers."""
    through: int
    """How many turns a branch has up to the last one."""
    text: str

    @property
    def note(self) -> str:
        """The summary as the model reads it."""
        return f"[Before this: {self.text}]"

    @property
    def source(self) -> str:
        """Which turns it stands for."""
        return f"summary of turns {self.through - self.turns + 1} to {self.through}"


class History:
    """Messages of one branch, the newest last; costs of a turn do not grow with the branch.

    What left the window may stand before it as a summary, which changes only when the window drops its older half: the
    model's cache keeps it until then.
    """

    def __init__(self, room: int) -> None:
        """`room` is the most tokens that the window may hold, the summary before it included."""
        self.room = room
        self._messages: list[BaseMessage] = []
        self._tokens: list[int] = []
        self._before = 0
        self.tokens = 0
        """Tokens of the window."""
        self.summarised: Summary | None = None
        """What stands before the window."""
        self.summary_tokens = 0
        """Tokens of that."""
        self.prepared: Summary | None = None
        """What will stand there after the next drop."""
        self._prepared_tokens = 0

    @classmethod
    def load(
        cls,
        room: int,
        messages: Sequence[BaseMessage],
        count_tokens: Callable[[str], int],
        summaries: Sequence[Summary] = (),
    ) -> "History":
        """The newest messages of a branch, as many as fit: older ones are not even counted.

        `summaries` are those that hold on this branch, the shortest first. Of those after which the rest of the branch
        fits, the shortest stands before the window, as it did when the chat was left; where there is none, the longest.
        """
        history = cls(room)
        newest: list[tuple[BaseMessage, int]] = []
        total = 0
        for message in reversed(messages):
            tokens = count_tokens(message.text) + MESSAGE_TOKENS
            if newest and total + tokens > room:
                break
            newest.append((message, tokens))
            total += tokens
        history._before = len(messages) - len(newest)
        history._messages = [message for message, _ in reversed(newest)]
        history._tokens = [tokens for _, tokens in reversed(newest)]
        history.tokens = total
        usable = [summary for summary in summaries if summary.through < len(messages)]
        if history._before and usable:
            sizes = [_note_tokens(summary, count_tokens) for summary in usable]
            place = next(
                (place for place, size in enumerate(sizes) if history._left_after(usable[place]) + size <= room), -1
            )
            history._stand(usable[place], sizes[place])
            history._drop_to(room)
        if usable:
            history.prepare(usable[-1], count_tokens)
        return history

    @property
    def window(self) -> list[BaseMessage]:
        """The messages that are in the prompt, oldest first."""
        return self._messages

    @property
    def dropped(self) -> int:
        """How many older messages are not in the window."""
        return self._before

    @property
    def newest_tokens(self) -> int:
        """Tokens of the last message."""
        return self._tokens[-1] if self._tokens else 0

    @property
    def nearly_full(self) -> bool:
        """Whether the next drop is near."""
        return self.tokens + self.summary_tokens > self.room * _FILLED

    def next_drop(self, summary_tokens: int) -> int:
        """How many of the branch's turns will have left when the window has dropped its older half the next time.

        So many go that a summary of that size fits in their place.
        """
        gone, tokens = 0, 0
        while gone < len(self._tokens) - _KEPT and tokens < self.room // 2 + summary_tokens - self.summary_tokens:
            tokens += self._tokens[gone]
            gone += 1
        return self._before + gone

    def prepare(self, summary: Summary, count_tokens: Callable[[str], int]) -> None:
        """Have a summary stand before the window once it drops; it must hold on this branch.

        One that covers nothing of the window, or all of it, is of no use and not taken.
        """
        if self._before < summary.through < self._before + len(self._messages):
            self.prepared, self._prepared_tokens = summary, _note_tokens(summary, count_tokens)

    def append(self, message: BaseMessage, tokens: int) -> None:
        """Add the branch's next message; where the window overflows, its older half goes."""
        self._messages.append(message)
        self._tokens.append(tokens + MESSAGE_TOKENS)
        self.tokens += tokens + MESSAGE_TOKENS
        if self._overflows:
            if self.prepared is not None:
                self._stand(self.prepared, self._prepared_tokens)
            if self._overflows:
                self._drop_to(self.room // 2)

    def pop(self) -> None:
        """Take the newest message back, as regenerating a reply does."""
        self._messages.pop()
        self.tokens -= self._tokens.pop()
        if self.prepared is not None and self.prepared.through > self._before + len(self._messages):
            self.prepared = None

    @property
    def _overflows(self) -> bool:
        return self.tokens + self.summary_tokens > self.room

    def _left_after(self, summary: Summary) -> float:
        """Tokens of the window without what a summary covers; infinite where it does not reach up to the window."""
        gone = summary.through - self._before
        return sum(self._tokens[gone:]) if gone >= 0 else inf

    def _stand(self, summary: Summary, tokens: int) -> None:
        """Put a summary before the window, in the place of what it covers."""
        self._drop(max(0, summary.through - self._before))
        self.summarised, self.summary_tokens, self.prepared = summary, tokens, None

    def _drop_to(self, room: int) -> None:
        """Drop the oldest messages, without a word in their place, until the rest takes no more than that."""
        gone, left = 0, self.tokens + self.summary_tokens
        while len(self._messages) - gone > 1 and left > room:
            left -= self._tokens[gone]
            gone += 1
        self._drop(gone)
        if self._overflows:  # one message takes all the room there is
            self.summarised, self.summary_tokens = None, 0

    def _drop(self, count: int) -> None:
        self.tokens -= sum(self._tokens[:count])
        self._messages, self._tokens = self._messages[count:], self._tokens[count:]
        self._before += count
        if self.prepared is not None and self.prepared.through <= self._before:
            self.prepared = None


def _note_tokens(summary: Summary, count_tokens: Callable[[str], int]) -> int:
    return count_tokens(summary.note) + MESSAGE_TOKENS
