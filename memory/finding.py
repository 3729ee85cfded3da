"""How passages are found: by words and by meaning at once, and nothing where nothing fits."""

import math
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rpla.memory.embedder import Vectors
from rpla.memory.passage_store import PassageStore
from rpla.memory.words import WordIndex, best, words_of

CANDIDATES = 50
"""How far down each of the two lists is looked at."""
_RANK = 10
"""Reciprocal rank fusion adds 1 / (this + rank): the smaller, the more the first places of one list count."""
_MEANING = 0.5
"""What a place in the list by meaning counts for, beside one in the list by words."""
_STRONG = 0.4
"""The share of what the question asks for (its words, the rare ones counting more) that is a match by words alone."""
_TOKEN = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Match:
    """A passage that was found, by its number."""

    num: int
    score: float
    """From the two ranks; 1 for the first of both lists."""
    words: float
    """The share of what is asked for that its words hold."""
    meaning: float | None
    """The cosine with the question; None without an embedder."""


class Words:
    """BM25 over each character's passages, made when first asked and kept up with the store."""

    def __init__(self, store: PassageStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._indexes: dict[str, tuple[str, WordIndex, set[int]]] = {}

    def search(self, character: str, query: str, about: str, allowed: set[int] | None) -> list[tuple[int, float]]:
        """Numbers of the passages whose words fit best, with the share of the question that they hold.

        `about` counts in the ranking alone. Only what is `allowed` is ranked; None allows all.
        """
        with self._lock:
            index = self._of(character)
            keys, scores = index.scores(f"{about} {query}")
            if allowed is not None:
                inside = np.isin(keys, np.fromiter(allowed, np.int64, len(allowed)))
                keys, scores = keys[inside], scores[inside]
            found = [int(keys[place]) for place in best(keys, scores, CANDIDATES)]
            shares = _shares(index, query, found)
        return [(num, shares[num]) for num in found]

    def forget(self, character: str) -> None:
        """Drop what is kept in memory of a character."""
        with self._lock:
            self._indexes.pop(character, None)

    def _of(self, character: str) -> WordIndex:
        stamp = self._store.stamp(character)
        known, index, nums = self._indexes.get(character, (None, WordIndex(), set[int]()))
        if known != stamp:
            there = self._store.nums(character)
            for num in nums - there:
                index.remove(num)
            for num, text in self._store.texts(character, after=max(nums, default=0)):
                index.add(num, text)
            # What another process wrote in between is taken in next time: the stamp was read first.
            self._indexes[character] = (stamp, index, {num for num in there if num in index})
        return index


class ExactVectors:
    """Every vector of a character compared: for where Chroma cannot be used."""

    def __init__(self, store: PassageStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._kept: tuple[str, str, str] | None = None
        self._nums = np.zeros(0, np.int64)
        self._matrix: Vectors = np.zeros((0, 0), np.float32)

    def search(
        self, character: str, stamp: str, embedder: str, vector: Vectors, limit: int, allowed: set[int] | None
    ) -> list[tuple[int, float]]:
        """Numbers of the nearest passages that are allowed, with the cosine."""
        with self._lock:
            if self._kept != (character, stamp, embedder):
                nums, _, self._matrix = self._store.vectors(character, embedder)
                self._nums = np.array(nums, np.int64)
                self._kept = (character, stamp, embedder)
            nums_, matrix = self._nums, self._matrix
        if not len(nums_) or matrix.shape[1] != len(vector):
            return []
        if allowed is not None:
            inside = np.isin(nums_, np.fromiter(allowed, np.int64, len(allowed)))
            nums_, matrix = nums_[inside], matrix[inside]
        cosines = matrix @ vector
        return [(int(nums_[place]), float(cosines[place])) for place in best(nums_, cosines, limit)]

    def forget(self) -> None:
        """Drop what is kept in memory."""
        with self._lock:
            self._kept = None
            self._nums, self._matrix = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)


def fits(by_words: Sequence[tuple[int, float]], nearest: float, floor: float) -> bool:
    """Whether anything fits the question at all: the nearest passage by meaning, or any by words."""
    return nearest >= floor or any(share >= _STRONG for _, share in by_words)


def fused(
    by_words: Sequence[tuple[int, float]], by_meaning: Sequence[tuple[int, float]] | None, floor: float
) -> list[Match]:
    """Both lists as one, best first, by reciprocal rank, without what is below the floor in both.

    `by_meaning` is None without an embedder.
    """
    ranks = defaultdict[int, float](float)
    for rank, (num, _) in enumerate(by_words):
        ranks[num] += 1 / (_RANK + rank)
    for rank, (num, _) in enumerate(by_meaning or ()):
        ranks[num] += _MEANING / (_RANK + rank)
    most = (1.0 if by_meaning is None else 1 + _MEANING) / _RANK
    shares, cosines = dict(by_words), dict(by_meaning or ())
    found = [
        Match(num, min(1.0, ranks[num] / most), shares.get(num, 0.0), cosines.get(num))
        for num in sorted(ranks, key=lambda num: (-ranks[num], num))
    ]
    return [match for match in found if match.words >= floor or (match.meaning or 0.0) >= floor]


def _shares(index: WordIndex, query: str, nums: Sequence[int]) -> dict[int, float]:
    """What share of the question each passage holds: its words, weighed by how rare they are.

    One word of several is no share at all: any long text has it.
    """
    shares: dict[int, float] = dict.fromkeys(nums, 0.0)
    held = Counter[int]()
    whole = 0.0
    asked = 0
    for token in dict.fromkeys(_TOKEN.findall(query.lower())):
        if not words_of(token):
            continue
        keys, _ = index.scores(token)
        weight = math.log1p((len(index) - len(keys) + 0.5) / (len(keys) + 0.5))
        whole += weight
        asked += 1
        for num in shares.keys() & set(keys.tolist()):
            shares[num] += weight
            held[num] += 1
    return {num: share / whole if whole and held[num] >= min(2, asked) else 0.0 for num, share in shares.items()}
