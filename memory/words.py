"""Search by words: an index of texts that come and go, ranked by BM25."""

import math
import re
import unicodedata
from array import array
from collections import Counter
from functools import lru_cache
from itertools import pairwise

import numpy as np
import Stemmer
from numpy.typing import NDArray

_K1 = 1.2
_B = 0.75
"""The common values of BM25: how soon a repeated word stops to count, how much a long text is held against it."""
_NOWHERE = (array("I"), array("I"))
_SWEEP_FROM = 64
"""Removed texts that are too few to be worth a sweep."""
_STOP_WORDS = """
    a about after again all also am an and any are as at be because been before being but by ca can could did do does
    doing done each even ever for from get go going got had has have having he her here hers him his how i if in into is
    it its just ll like me more most much my no not now of off on once one only or other our out over own re really s
    same she should so some such t than that the their them then there these they this those through to too up us ve
    very was we were what when where which while who whom whose why will with wo would you your d m n yes yeah
    """
_STOP = frozenset(_STOP_WORDS.split())
_CONTRACTED = re.compile(r"n't\b|'(?:s|m|d|re|ve|ll)\b")
_CJK = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_RUN = re.compile(rf"[^\W_{_CJK}]+|(?:(?![\W_])[{_CJK}])+")
_IS_CJK = re.compile(f"[{_CJK}]")
_ACCENT = re.compile("[\u0300-\u036f]")
# The stemmer's own cache is not made for threads: without it (size 0), and with Python's, one serves them all.
_STEM = lru_cache(1 << 15)(Stemmer.Stemmer("english", 0).stemWord)


def words_of(text: str) -> list[str]:
    """The words a text is found by: folded, stemmed, without the commonest; CJK as characters and pairs of them."""
    words: list[str] = []
    for run in _RUN.findall(_CONTRACTED.sub(" ", fold(text))):
        if not run.isascii() and _IS_CJK.match(run):
            # Nothing shows where a word ends: single characters find, pairs tell apart.
            words += run
            words += map("".join, pairwise(run))
        elif run not in _STOP:
            words.append(_STEM(run))
    return words


def has_cjk(text: str) -> bool:
    """Whether some of it is written without spaces between words."""
    return _IS_CJK.search(text) is not None


def fold(text: str) -> str:
    """The text in lower case and in one spelling, without accents: é as e. Marks of other scripts stay."""
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'").lower()
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _ACCENT.sub("", unicodedata.normalize("NFD", text)))


class WordIndex:
    """BM25 over texts that come and go. Not for several threads at once."""

    # Each text has a slot, which is never used again: a removed one is only marked, until a sweep. The arrays grow
    # cheaply and numpy reads them in place.

    def __init__(self) -> None:
        self._postings: dict[str, tuple[array[int], array[int]]] = {}
        """For each word the slots of the texts that hold it, and how often each does."""
        self._slots: dict[int, int] = {}
        self._keys = array("q")
        self._lengths = array("I")
        self._alive = bytearray()
        self._total_length = 0

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: int) -> bool:
        return key in self._slots

    def add(self, key: int, text: str) -> None:
        """Take in a text; in place of the one that had its key before."""
        if key in self._slots:
            self.remove(key)
        words = words_of(text)
        slot = len(self._keys)
        self._slots[key] = slot
        self._keys.append(key)
        self._lengths.append(len(words))
        self._alive.append(1)
        self._total_length += len(words)
        for word, count in Counter(words).items():
            if (posting := self._postings.get(word)) is None:
                posting = self._postings[word] = (array("I"), array("I"))
            posting[0].append(slot)
            posting[1].append(count)

    def remove(self, key: int) -> None:
        """Forget a text; KeyError where there is none of that key."""
        slot = self._slots.pop(key)
        self._alive[slot] = 0
        self._total_length -= self._lengths[slot]
        if len(self._keys) > 2 * len(self._slots) + _SWEEP_FROM:
            self._sweep()

    def search(self, query: str, limit: int) -> list[tuple[int, float]]:
        """The keys of the texts that match best, best first, with scores above zero; equals by key."""
        keys, scores = self.scores(query)
        return [(int(keys[n]), float(scores[n])) for n in best(keys, scores, limit)]

    def scores(self, query: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The keys and scores of all texts with a word of the query, in no order."""
        keys, scores, _ = self._weigh(query)
        return keys, scores

    def shares(self, query: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The same with scores from 0 to 1, of the most that a text could have: comparable between queries."""
        keys, scores, most = self._weigh(query)
        return keys, scores / np.float32(most or 1)

    def _weigh(self, query: str) -> tuple[NDArray[np.int64], NDArray[np.float32], float]:
        """Keys, scores, and what a text that says nothing but the query, again and again, would come near to."""
        total = np.zeros(len(self._keys), np.float32)
        most = 0.0
        alive = np.frombuffer(self._alive, np.bool_)
        lengths = np.frombuffer(self._lengths, np.uint32)
        average = self._total_length / max(1, len(self._slots))
        for word in dict.fromkeys(words_of(query)):
            slots, counts = (np.frombuffer(part, np.uint32) for part in self._postings.get(word, _NOWHERE))
            living = alive[slots]
            slots, tf = slots[living], counts[living].astype(np.float32)
            idf = math.log1p((len(self._slots) - len(slots) + 0.5) / (len(slots) + 0.5))
            dampened = tf + _K1 * (1 - _B + _B * lengths[slots] / average)
            total[slots] += (idf * (_K1 + 1) * tf / dampened).astype(np.float32)
            most += idf * (_K1 + 1)
        found = np.flatnonzero(total)
        return np.frombuffer(self._keys, np.int64)[found], total[found], most

    def _sweep(self) -> None:
        """Give the living texts new slots, without gaps. Each removal pays for a few of the moves."""
        alive = np.frombuffer(self._alive, np.bool_)
        moved = (np.cumsum(alive) - 1).astype(np.uint32)
        kept: dict[str, tuple[array[int], array[int]]] = {}
        for word, posting in self._postings.items():
            slots, counts = np.frombuffer(posting[0], np.uint32), np.frombuffer(posting[1], np.uint32)
            living = alive[slots]
            if living.any():
                kept[word] = (_array("I", moved[slots[living]]), _array("I", counts[living]))
        self._postings = kept
        self._keys = _array("q", np.frombuffer(self._keys, np.int64)[alive])
        self._lengths = _array("I", np.frombuffer(self._lengths, np.uint32)[alive])
        self._slots = {key: slot for slot, key in enumerate(self._keys)}
        self._alive = bytearray(b"\1" * len(self._keys))


def best(keys: NDArray[np.int64], scores: NDArray[np.float32], limit: int) -> NDArray[np.intp]:
    """Where the highest scores stand, highest first; equal ones by key, so that the order of adding plays no part."""
    if limit <= 0 or not len(scores):
        return np.empty(0, np.intp)
    if limit < len(scores):
        least = np.partition(scores, len(scores) - limit)[len(scores) - limit]
        among = np.flatnonzero(scores >= least)
    else:
        among = np.arange(len(scores))
    return among[np.lexsort((keys[among], -scores[among]))][:limit]


def _array(kind: str, values: NDArray[np.generic]) -> "array[int]":
    made = array(kind)
    made.frombytes(values.tobytes())
    return made
