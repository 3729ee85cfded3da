"""The one background event loop that serves synchronous callers.

Work that outlives a call (reading a finished turn into the model's cache, say) goes on there between calls, and it
works alike in scripts, threads and notebooks that run a loop of their own.
"""

import asyncio
import contextlib
import queue
import sys
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, TypeVar

from rpla.core.errors import RplaError

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop, started on first use in a daemon thread."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="rpla-loop", daemon=True).start()
        return _loop


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on the background loop; an interrupt here cancels it there."""
    future = asyncio.run_coroutine_threadsafe(coroutine, background_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def iterate_sync(stream: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """Iterate an async generator from synchronous code; leaving the loop early closes the generator."""
    end = object()
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    failures: list[RplaError] = []

    async def pump() -> None:
        try:
            async with contextlib.aclosing(stream):
                async for item in stream:
                    items.put(item)
        except RplaError as error:
            failures.append(error)
            raise
        finally:
            items.put(end)

    future = asyncio.run_coroutine_threadsafe(pump(), background_loop())
    try:
        while (item := items.get()) is not end:
            yield item
        future.result()
    finally:
        # At the interpreter's end the loop's thread is gone, and nobody would answer.
        if not future.done() and not sys.is_finalizing():
            future.cancel()
            while items.get() is not end:
                pass
            # What went wrong while it was closed (a full disk, say) must not pass in silence.
            if failures:
                raise failures[0]
