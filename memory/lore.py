"""Lore by keys: notes of a card's book that enter the prompt when they are spoken of."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace

from rpla.core.character import Lore, LoreEntry
from rpla.core.macros import Macros
from rpla.core.prompt import Section
from rpla.memory.recall import Moment

_WORD = re.compile(r"\w+")
_CJK = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]")


class LoreRecaller:
    """Matches whole words, in time that grows with the words spoken, not with the size of the book."""

    def __init__(self, lore: Lore, macros: Macros, count_tokens: Callable[[str], int]) -> None:
        entries = [entry for entry in lore.entries if entry.enabled and not entry.constant]
        self._lore, self._count = lore, count_tokens
        self._entries = [
            replace(entry, content=macros.expand(entry.content), keys=tuple(map(macros.expand, entry.keys)))
            for entry in entries
        ]
        self._by_first_word: dict[str, list[tuple[str, int]]] = {}
        self._unspaced: list[tuple[str, int]] = []
        for number, entry in enumerate(self._entries):
            for key in filter(None, (key.strip() for key in entry.keys)):
                words = _WORD.findall(key.lower())
                if not words or _CJK.search(key):
                    self._unspaced.append((key, number))
                else:
                    self._by_first_word.setdefault(words[0], []).append((key, number))

    async def __call__(self, moment: Moment) -> list[Section]:
        """One section with the entries that are spoken of in the newest turns, within the book's budget."""
        # A local model's tokenizer is behind a socket.
        return await asyncio.to_thread(self._recall, moment)

    def _recall(self, moment: Moment) -> list[Section]:
        entries = self.matching("\n".join(moment.texts[-self._lore.scan_depth :]))
        kept: list[LoreEntry] = []
        tokens = 0
        for entry in entries:
            size = self._count(entry.content) + 1
            if tokens + size <= self._lore.token_budget:
                kept.append(entry)
                tokens += size
        if not kept:
            return []
        names = ", ".join(entry.name or entry.keys[0] for entry in kept)
        return [
            Section(
                name="lore", text="\n".join(entry.content for entry in kept), source=f"lore: {names}", tokens=tokens
            )
        ]

    def matching(self, text: str) -> list[LoreEntry]:
        """The entries with a key in the text, in the book's order."""
        lowered = text.lower()
        found: set[int] = set()
        for word in set(_WORD.findall(lowered)):
            for key, number in self._by_first_word.get(word, ()):
                if number not in found and self._holds(text, lowered, key, self._entries[number].case_sensitive):
                    found.add(number)
        for key, number in self._unspaced:
            if key in text or (not self._entries[number].case_sensitive and key.lower() in lowered):
                found.add(number)
        return [self._entries[number] for number in sorted(found, key=lambda n: (self._entries[n].order, n))]

    @staticmethod
    def _holds(text: str, lowered: str, key: str, case_sensitive: bool) -> bool:
        pattern = r"(?<!\w)" + re.escape(key if case_sensitive else key.lower()) + r"(?!\w)"
        return re.search(pattern, text if case_sensitive else lowered) is not None
