"""The part of a branch that is in the prompt: it grows turn by turn and shrinks in large steps.

A window that slides by one turn changes the prompt's beginning each time, and the model would read everything again.
"""

from collections.abc import Callable, Sequence

from langchain_core.messages import BaseMessage

MESSAGE_TOKENS = 6
"""What a chat template adds around one message, in tokens."""


class History:
    """Messages of one branch, the newest last; costs of a turn do not grow with the branch."""

    def __init__(self, room: int) -> None:
        """`room` is the most tokens that the window may hold."""
        self._room = room
        self._messages: list[BaseMessage] = []
        self._tokens: list[int] = []
        self._before = 0
        self.tokens = 0
        """Tokens of the window."""

    @classmethod
    def load(cls, room: int, messages: Sequence[BaseMessage], count_tokens: Callable[[str], int]) -> "History":
        """The newest messages of a branch, as many as fit: older ones are not even counted."""
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

    def append(self, message: BaseMessage, tokens: int) -> None:
        """Add the branch's next message; where the window overflows, its older half goes."""
        self._messages.append(message)
        self._tokens.append(tokens + MESSAGE_TOKENS)
        self.tokens += tokens + MESSAGE_TOKENS
        if self.tokens > self._room:
            gone = 0
            while len(self._messages) - gone > 1 and self.tokens > self._room // 2:
                self.tokens -= self._tokens[gone]
                gone += 1
            self._messages, self._tokens = self._messages[gone:], self._tokens[gone:]
            self._before += gone

    def pop(self) -> None:
        """Take the newest message back, as regenerating a reply does."""
        self._messages.pop()
        self.tokens -= self._tokens.pop()
