"""Lore by keys: notes of a card's book that enter the prompt when they are spoken of."""

import asyncio
import re
from collections import Counter
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
        self._sizes: dict[str, int] = {}
        self._unspaced: list[tuple[str, int]] = []
        spaced: list[tuple[str, int]] = []
        for number, entry in enumerate(self._entries):
            for key in filter(None, (key.strip() for key in entry.keys)):
                unspaced = _CJK.search(key) or not _WORD.search(key)
                (self._unspaced if unspaced else spaced).append((key, number))
        shared = Counter(word for key, _ in spaced for word in set(_WORD.findall(key.lower())))
        # Each key waits under its rarest word: a book full of "the …" is not searched whole at every "the".
        self._by_word: dict[str, list[tuple[str, int]]] = {}
        for key, number in spaced:
            rarest = min(_WORD.findall(key.lower()), key=lambda word: shared[word])
            self._by_word.setdefault(rarest, []).append((key, number))

    async def __call__(self, moment: Moment) -> list[Section]:
        """One section with the entries that are spoken of in the newest turns, within the book's budget."""
        depth = self._lore.scan_depth
        entries = self.matching("\n".join(moment.texts[-depth:])) if depth else []
        if not_counted := [entry.content for entry in entries if entry.content not in self._sizes]:
            # A local model's tokenizer is behind a socket.
            self._sizes |= await asyncio.to_thread(lambda: {text: self._count(text) for text in not_counted})
        kept: list[LoreEntry] = []
        tokens = 0
        for entry in entries:
            size = self._sizes[entry.content] + 1
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
            for key, number in self._by_word.get(word, ()):
                if number not in found and self._holds(text, lowered, key, self._entries[number].case_sensitive):
                    found.add(number)
        for key, number in self._unspaced:
            if key in text or (not self._entries[number].case_sensitive and key.lower() in lowered):
                found.add(number)
        return [self._entries[number] for number in sorted(found, key=lambda n: (self._entries[n].order, n))]

    @staticmethod
    def _holds(text: str, lowered: str, key: str, case_sensitive: bool) -> bool:
        """Whether the key stands in the text as whole words. No pattern is compiled: a book has thousands of keys."""
        searched, key = (text, key) if case_sensitive else (lowered, key.lower())
        at = searched.find(key)
        while at >= 0:
            before, after = searched[at - 1 : at], searched[at + len(key) : at + len(key) + 1]
            if not (_is_word(before) or _is_word(after)):
                return True
            at = searched.find(key, at + 1)
        return False


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"
