"""Which of a local model's slots serves which conversation.

llama.cpp itself gives a request the slot with the longest common prefix. Two chats with one character share the card,
so each would take over the other's slot and throw its history away, turn after turn.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class _Slot:
    conversation: str = ""
    last_used: int = 0
    active: int = 0


class Slots:
    """Keeps every conversation on the slot that holds its past, as long as there are slots enough."""

    def __init__(self, count: int) -> None:
        self._slots = [_Slot() for _ in range(count)]
        self._uses = 0
        self._lock = threading.Lock()

    @contextmanager
    def slot_for(self, conversation: str) -> Iterator[int]:
        """The number of the slot to run a request on, taken until the context is left; -1 leaves it to llama.cpp."""
        if not conversation:
            yield -1
            return
        with self._lock:
            number = self._choose(conversation)
            slot = self._slots[number]
            self._uses += 1
            slot.conversation, slot.last_used = conversation, self._uses
            slot.active += 1
        try:
            yield number
        finally:
            with self._lock:
                slot.active -= 1

    def _choose(self, conversation: str) -> int:
        for number, slot in enumerate(self._slots):
            if slot.conversation == conversation:
                return number
        return min(range(len(self._slots)), key=lambda n: (self._slots[n].active, self._slots[n].last_used))
