"""Search under a character's memory: by words and by meaning, with a little help from what was said around."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from rpla.memory.words import WordIndex, best, fold, has_cjk, words_of

Vectors = NDArray[np.float32]

# The recipe, chosen on the five conversations of LoCoMo's dev part (rpla/bench/locomo.py). The figures are recall@10
# where a part is left out; with all of them it is 0.813. Near these values it changes little: 0.80 to 0.81.
_MEANING = 0.4
"""Weight of the meaning; the words have the rest. Words alone 0.766, meaning alone 0.698."""
_LENT_BY_BEFORE = 0.2
_LENT_BY_AFTER = 0.3
_LENT_OVER = 2
"""How much of their scores the entries beside an entry lend it, and how far: what is asked for was often said in answer
to the words that find it, or is taken up in the next. Without 0.795."""
_OTHERS = 0.6
"""Where the query names a speaker, what others said counts for so much. Without 0.768."""

# Not strftime's, which speaks the language of the machine.
_MONTH_NAMES = "January February March April May June July August September October November December"
_MONTHS = _MONTH_NAMES.split()
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
_NOBODY = 0
_NO_KEY = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Something that can be found."""

    key: int
    text: str
    context: str = ""
    """Words said just before, two turns or so: searched, never shown. Without 0.792."""
    speaker: str = ""
    when: float | None = None
    """In seconds since the epoch; found by the words of its date, in local time. Without 0.797."""
    before: int | None = None
    """Key of the entry that was said just before, in one sitting; it need not be there."""
    vector: Vectors | None = None
    """Of the text alone, of unit length. An entry without one is found by words."""


@dataclass(frozen=True, slots=True)
class Match:
    """Something that was found, and why."""

    key: int
    score: float
    """0 to 1, seldom above: not set against the best of its query, so that it can be held against a floor."""
    words: float
    """0 to 1: the share of the query's words, rare ones counting more, that the entry holds."""
    meaning: float
    """0 to 1: cosine of entry and query."""


class MemoryIndex:
    """The memories of one character, all in memory and compared exactly. Not for several threads at once."""

    # Each entry has a row; rows that are free again are used first. Rows are the keys of the word index, so that words
    # and vectors meet without a look into a dictionary.

    def __init__(self) -> None:
        self._words = WordIndex()
        self._rows: dict[int, int] = {}
        self._free: list[int] = []
        self._keys = np.empty(0, np.int64)
        self._before = np.empty(0, np.int64)
        self._speakers = np.empty(0, np.int32)
        self._embedded = np.empty(0, np.bool_)
        self._vectors: Vectors = np.empty((0, 0), np.float32)
        self._names = _Names()
        self._links: tuple[NDArray[np.intp], NDArray[np.intp]] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, entries: Sequence[Entry]) -> None:
        """Take in entries; each in place of the one that had its key before."""
        self._links = None
        self._make_room(len(entries))
        for entry in entries:
            if entry.key in self._rows:
                self.remove([entry.key])
            row = self._free.pop()
            self._rows[entry.key] = row
            self._keys[row] = entry.key
            self._before[row] = _NO_KEY if entry.before is None else entry.before
            self._speakers[row] = self._names.number(entry.speaker)
            self._words.add(row, " ".join((_date(entry.when), entry.speaker, entry.text, entry.context)))
            if entry.vector is not None:
                if not self._vectors.shape[1]:
                    self._vectors = np.zeros((len(self._keys), len(entry.vector)), np.float32)
                self._vectors[row] = entry.vector
                self._embedded[row] = True

    def remove(self, keys: Iterable[int]) -> None:
        """Forget entries; KeyError where there is none of a key."""
        self._links = None
        for key in keys:
            row = self._rows.pop(key)
            self._words.remove(row)
            self._keys[row] = self._before[row] = _NO_KEY
            self._embedded[row] = False
            self._vectors[row] = 0
            self._speakers[row] = _NOBODY
            self._free.append(row)

    def vector(self, key: int) -> Vectors | None:
        """The vector of an entry; KeyError where there is none of that key."""
        row = self._rows[key]
        return self._vectors[row].copy() if self._embedded[row] else None

    def to_embed(self, query: str) -> str:
        """The query without the names of the speakers: embed this.

        A name in a question says who spoke, and `search` sees to that. In an embedding it finds the words of all
        others, who say it when they greet. Recall@10 is 0.793 where the query is embedded whole.
        """
        return self._names.split(query)[0]

    def search(self, query: str, vector: Vectors | None, limit: int) -> list[Match]:
        """What fits a query, best first. `vector` is of `to_embed(query)`; without it, words alone are searched."""
        words = np.zeros(len(self._keys), np.float32)
        rows, shares = self._words.shares(query)
        words[rows] = shares
        total, meaning = words, np.zeros_like(words)
        if vector is not None and self._vectors.shape[1]:
            # Row by row. `@` takes all cores, and waits 20 ms for them where a model is using them.
            meaning = np.clip(np.vecdot(self._vectors, vector), 0, 1)
            # What has no vector is not held to be without meaning: its words stand for all.
            total = np.where(self._embedded, (1 - _MEANING) * words + _MEANING * meaning, words)
        total = self._lend(total)
        asked = np.isin(self._speakers, list(self._names.split(query)[1]))
        if asked.any():
            total[~asked & (self._speakers != _NOBODY)] *= _OTHERS
        found = np.flatnonzero((total > 0) & (self._keys != _NO_KEY))
        found = found[best(self._keys[found], total[found], limit)]
        return [Match(int(self._keys[row]), float(total[row]), float(words[row]), float(meaning[row])) for row in found]

    def _lend(self, own: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores with what the entries before and after lend; what is next but one lends the square."""
        if self._links is None:
            self._links = self._link()
        rows, rows_before = self._links
        total = own.copy()
        from_before = from_after = own
        for _ in range(_LENT_OVER):
            from_before, after, before = np.zeros_like(own), from_after, from_before
            from_before[rows] = _LENT_BY_BEFORE * before[rows_before]
            from_after = np.zeros_like(own)
            # Several entries may follow one, on the branches of a chat: the best of them lends.
            np.maximum.at(from_after, rows_before, _LENT_BY_AFTER * after[rows])
            total += from_before + from_after
        return total

    def _link(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows of entries whose entry before is there, and its rows."""
        order = np.argsort(self._keys, kind="stable")
        wanting = np.flatnonzero(self._before != _NO_KEY)
        place = np.searchsorted(self._keys, self._before[wanting], sorter=order)
        rows_before = order[np.minimum(place, len(order) - 1)]
        there = self._keys[rows_before] == self._before[wanting]
        return wanting[there], rows_before[there]

    def _make_room(self, more: int) -> None:
        size = len(self._keys)
        if more <= len(self._free):
            return
        added = max(more - len(self._free), size // 2, 64)
        self._keys = np.append(self._keys, np.full(added, _NO_KEY, np.int64))
        self._before = np.append(self._before, np.full(added, _NO_KEY, np.int64))
        self._speakers = np.append(self._speakers, np.zeros(added, np.int32))
        self._embedded = np.append(self._embedded, np.zeros(added, np.bool_))
        self._vectors = np.append(self._vectors, np.zeros((added, self._vectors.shape[1]), np.float32), axis=0)
        self._free += range(size + added - 1, size - 1, -1)


class _Names:
    """The speakers' names, found in a query by any of their words."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {"": _NOBODY}
        self._by_part: dict[str, list[int]] = {}
        self._unspaced: list[str] = []

    def number(self, name: str) -> int:
        """The number of a speaker; one that is new is learned."""
        if (number := self._numbers.get(name)) is None:
            number = self._numbers[name] = len(self._numbers)
            for part in set(_WORD.findall(fold(name))):
                if len(part) < 2 or not words_of(part):  # Will and The are too common to be taken for somebody
                    continue
                if has_cjk(part) and part not in self._by_part:
                    self._unspaced.append(part)
                self._by_part.setdefault(part, []).append(number)
        return number

    def split(self, query: str) -> tuple[str, set[int]]:
        """The query without the names in it, or whole where nothing else is, and the numbers of those it names."""
        named: set[int] = set()
        rest = query
        for part in self._unspaced:
            if part in rest:
                named.update(self._by_part[part])
                rest = rest.replace(part, " ")

        def dropped(word: re.Match[str]) -> str:
            numbers = self._by_part.get(fold(word[0]).removesuffix("'s"))
            named.update(numbers or ())
            return word[0] if numbers is None else " "

        rest = " ".join(_WORD.sub(dropped, rest).split())
        return (rest if _WORD.search(rest) else query), named


def _date(when: float | None) -> str:
    """The words by which a date is asked for."""
    if when is None:
        return ""
    try:
        date = datetime.fromtimestamp(when)
    except (OverflowError, OSError, ValueError):  # no year that a calendar has
        return ""
    return f"{date.day} {_MONTHS[date.month - 1]} {date.year}"
