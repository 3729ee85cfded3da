"""A model that plays enqueued replies: for tests, documents and demonstrations, without a model's cost or whims."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Sequence

from langchain_core.messages import BaseMessage
from pydantic import PrivateAttr

from rpla.core.errors import RplaError
from rpla.core.models.base import Capabilities, Options, Piece, RplaChatModel, Usage

Reply = str | Callable[[Sequence[BaseMessage]], str]


class ScriptedModel(RplaChatModel):
    """Plays its replies in order, a word at a time; each prompt it was given is kept in `history`.

    A reply may be a function of the prompt. With `cycle` the last reply never runs out.
    """

    context: int = 8192
    delay_s: float = 0.0
    """Seconds between words."""
    cycle: bool = False
    _replies: list[Reply] = PrivateAttr(default_factory=list)
    _history: list[list[BaseMessage]] = PrivateAttr(default_factory=list)
    _options: list[Options] = PrivateAttr(default_factory=list)

    def __init__(self, *replies: Reply, context: int = 8192, delay_s: float = 0.0, cycle: bool = False) -> None:
        super().__init__(context=context, delay_s=delay_s, cycle=cycle)
        self._replies = list(replies)

    def enqueue(self, *replies: Reply) -> None:
        """Add replies to play after those already there."""
        self._replies += replies

    @property
    def history(self) -> list[list[BaseMessage]]:
        """The prompts of all requests so far, oldest first."""
        return self._history

    @property
    def requests(self) -> list[Options]:
        """The options of all requests so far, oldest first."""
        return self._options

    @property
    def capabilities(self) -> Capabilities:
        """It streams, and nothing else."""
        return Capabilities()

    @property
    def name_string(self) -> str:
        """``scripted:``."""
        return "scripted:"

    @property
    def context_window(self) -> int:
        """As given."""
        return self.context

    async def pieces(self, messages: Sequence[BaseMessage], options: Options) -> AsyncGenerator[Piece, None]:
        """The next reply, honouring `stop` and `max_tokens` (counted in words)."""
        self._history.append(list(messages))
        self._options.append(options)
        if not self._replies:
            raise RplaError("The scripted model has no reply left.", "Enqueue one for each reply that is asked for.")
        reply = self._replies[0] if self.cycle and len(self._replies) == 1 else self._replies.pop(0)
        text = reply if isinstance(reply, str) else reply(messages)
        finish = "stop"
        for stop in options.stop:
            text = text.partition(stop)[0]
        words = re.findall(r"\s*\S+\s*$|\s*\S+", text)
        if options.max_tokens is not None and len(words) > options.max_tokens:
            words, finish = words[: options.max_tokens], "length"
        for word in words:
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            yield Piece(text=word)
        prompt = sum(len(message.content) for message in messages) // 4
        yield Piece(finish=finish, usage=Usage(prompt_tokens=prompt, completion_tokens=len(words)))
