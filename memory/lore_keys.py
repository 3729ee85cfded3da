"""The keys of a book, found in a text in time that grows with the text and not with the book."""

import re
from collections import Counter
from collections.abc import Iterator
from operator import add

from rpla.core.lorebook import pattern_of
from rpla.memory.lore_patterns import Patterns

_WORD = re.compile(r"\w+")
_CJK = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_REMEMBERED = 256


class Keys:
    """Give every key to `number`, then `settle`, then ask `found`. Equal keys have equal numbers."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, bool, bool], int] = {}
        self._pattern_numbers: dict[str, int] = {}
        self._texts: list[str] = []
        self._by_word: dict[str, list[tuple[str, bool, int]]] = {}
        self._by_gram: dict[str, list[tuple[str, bool, int]]] = {}
        self._patterns = Patterns([])
        self._seen: dict[str, frozenset[int]] = {}

    def number(self, key: str, *, regex: bool, case_sensitive: bool, whole_words: bool) -> int:
        """The number of a key: of a pattern, or of words."""
        pattern = pattern_of(key, regex=regex, case_sensitive=case_sensitive) if regex or key[:1] == "/" else None
        if pattern is not None:
            number = self._pattern_numbers.setdefault(pattern, len(self._texts))
        else:
            key = key.strip()
            spaced = whole_words and _WORD.search(key) is not None and not _CJK.search(key)
            searched = key if case_sensitive else key.lower()
            number = self._numbers.setdefault((searched, case_sensitive, spaced), len(self._texts))
        if number == len(self._texts):
            self._texts.append(key[:60])
        return number

    def text(self, number: int) -> str:
        """A key by its number, shortened."""
        return self._texts[number]

    def settle(self) -> None:
        """All keys are known."""
        # Each key waits under its rarest word: a book full of "the …" is not searched whole at every "the". Where
        # words are not spaced, or need not be whole, it waits under its rarest three characters.
        words, grams = Counter[str](), Counter[str]()
        for key, _, spaced in self._numbers:
            (words if spaced else grams).update(set(_parts(key.lower(), spaced)))
        for (key, case_sensitive, spaced), number in self._numbers.items():
            counts, waiting = (words, self._by_word) if spaced else (grams, self._by_gram)
            if parts := _parts(key.lower(), spaced):
                rarest = min(parts, key=counts.__getitem__)
                waiting.setdefault(rarest, []).append((key, case_sensitive, number))
        self._patterns = Patterns(
            [(found, number, self._texts[number]) for found, number in self._pattern_numbers.items()]
        )

    @property
    def notices(self) -> list[str]:
        """Which patterns are not run, and why."""
        return self._patterns.notices

    def found(self, text: str) -> frozenset[int]:
        """The numbers of the keys that stand in the text. What was searched lately is not searched again."""
        seen = self._seen.get(text)
        if seen is None:
            while len(self._seen) >= _REMEMBERED:
                del self._seen[next(iter(self._seen))]
            seen = self._seen[text] = frozenset(self._search(text))
        return seen

    def _search(self, text: str) -> set[int]:
        lowered = text.lower()
        found: set[int] = set()
        for word in set(_WORD.findall(lowered)):
            for key, case_sensitive, number in self._by_word.get(word, ()):
                if number not in found and _stands(text if case_sensitive else lowered, key):
                    found.add(number)
        if self._by_gram:
            for gram in self._by_gram.keys() & set(_grams(lowered)):
                for key, case_sensitive, number in self._by_gram[gram]:
                    if key in (text if case_sensitive else lowered):
                        found.add(number)
        return found | self._patterns.found(text) if self._pattern_numbers else found


def _parts(key: str, spaced: bool) -> list[str]:
    """What a key may wait under: its words, or the longest pieces of it that `_grams` yields."""
    return _WORD.findall(key) if spaced else [key[at : at + 3] for at in range(max(1, len(key) - 2))]


def _grams(text: str) -> Iterator[str]:
    """Each one, two and three characters that follow one another."""
    yield from text
    yield from map(add, text, text[1:])
    yield from map("".join, zip(text, text[1:], text[2:], strict=False))


def _stands(text: str, key: str) -> bool:
    """Whether the key stands in the text as whole words. No pattern is compiled: a book has thousands of keys."""
    at = text.find(key)
    while at >= 0:
        before, after = text[at - 1 : at], text[at + len(key) : at + len(key) + 1]
        if not (_is_word(before) or _is_word(after)):
            return True
        at = text.find(key, at + 1)
    return False


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"
