"""What is done once a reply is out, while the user reads and types; it makes way as soon as the user speaks."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence

from rpla.core.errors import RplaError

Step = Callable[[], Awaitable[None]]

_log = logging.getLogger(__name__)


class Afterwards:
    """Runs steps one after another. The first (reading the turn into the model's cache) pays for itself in the next
    turn, so that is waited for; the others are cut off and done later, since nothing they do is half-kept.
    """

    def __init__(self) -> None:
        self._first: asyncio.Task[None] | None = None
        self._rest: asyncio.Task[None] | None = None

    def start(self, first: Step | None, rest: Sequence[Step]) -> None:
        """Begin; what was under way must have been waited for or made way."""
        self._first = asyncio.create_task(_run(first)) if first is not None else None
        self._rest = asyncio.create_task(self._after_first(rest)) if rest else None

    async def settled(self) -> None:
        """Wait until all of it is done."""
        for task in (self._first, self._rest):
            if task is not None:
                await asyncio.gather(task, return_exceptions=True)

    async def make_way(self) -> None:
        """Wait for the first step, and cut the others off."""
        if self._first is not None:
            await asyncio.gather(self._first, return_exceptions=True)
        if self._rest is not None and not self._rest.done():
            self._rest.cancel()
            await asyncio.wait([self._rest])
        self._first = self._rest = None

    def stop(self) -> None:
        """Cut all of it off, from any thread, without waiting."""
        for task in (self._first, self._rest):
            if task is not None and not task.done() and not task.get_loop().is_closed():
                task.get_loop().call_soon_threadsafe(task.cancel)

    async def _after_first(self, steps: Sequence[Step]) -> None:
        if self._first is not None:
            await asyncio.wait([self._first])
        for step in steps:
            await _run(step)


async def _run(step: Step) -> None:
    """What fails here is told in the log alone: the reply is out, and the next turn or start tries again."""
    try:
        await step()
    except RplaError as error:
        _log.warning("%s", error)
    except Exception:  # noqa: BLE001 - told, and the steps after it go on
        # At the end of the process no thread can be started: that is no fault.
        if not sys.is_finalizing():
            _log.exception("Work in the background failed; it is tried again after the next turn.")
