"""Pairs of memories that a person may want to look at: duplicates, echoes, contradictions. Nothing is changed."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rpla.memory.store import Row
from rpla.memory.words import words_of

Doubt = Literal["duplicate", "echo", "contradiction"]
Pair = tuple[Row, Row]
"""The newer and the older."""

_SAME = 0.95
"""Cosine from which two memories say the same."""
_MATTER = 0.6
"""Cosine from which two memories are of one matter; and the share of common words where there are no vectors."""
_COMMON = 0.4
_MOST = 50
"""Most pairs of a kind."""
_BLOCK = 512
_COMMON_WORD = 200
"""A word in more memories than that tells no two of them apart."""
_PARTICULAR = re.compile(r"(?<![.!?] )(?<!^)\b[A-Z]\w+|\b\d[\d.,:]*\b|\b(?:not|never|no longer|n't)\b")


@dataclass(frozen=True, slots=True)
class _Likeness:
    newer: int
    older: int
    cosine: float | None
    common: float
    """Share of the words of both that are in both."""


def doubts(rows: Sequence[Row]) -> dict[Doubt, list[Pair]]:
    """The pairs of each kind, the most alike first; no pair is of two kinds.

    A duplicate has the same words, or a vector so near that it says the same. An echo is what the character said
    without a word that the older memory does not hold. What may contradict is said by the same speaker of one matter,
    with other names or numbers, or a denial.
    """
    words = [frozenset(words_of(row.memory.text)) for row in rows]
    found: dict[Doubt, list[_Likeness]] = {"duplicate": [], "echo": [], "contradiction": []}
    for like in _alike(rows, words):
        if (kind := _kind(rows[like.newer], rows[like.older], words[like.newer], words[like.older], like)) is not None:
            found[kind].append(like)
    for likes in found.values():
        likes.sort(key=lambda like: like.cosine if like.cosine is not None else like.common, reverse=True)
    return {kind: [(rows[like.newer], rows[like.older]) for like in likes[:_MOST]] for kind, likes in found.items()}


def _kind(newer: Row, older: Row, new: frozenset[str], old: frozenset[str], like: _Likeness) -> Doubt | None:
    if (new and new == old) or (like.cosine or 0.0) >= _SAME:
        return "duplicate"
    if newer.memory.provenance == "said" and new and new <= old:
        return "echo"
    one_matter = like.cosine >= _MATTER if like.cosine is not None else like.common >= _COMMON
    if one_matter and newer.memory.provenance == older.memory.provenance and _particulars(newer) != _particulars(older):
        return "contradiction"
    return None


def _alike(rows: Sequence[Row], words: Sequence[frozenset[str]]) -> Iterator[_Likeness]:
    """All pairs that share much, by words or by meaning; the newer is the one written later."""
    seen = set[tuple[int, int]]()
    for newer, older, cosine in _near(rows):
        seen.add((newer, older))
        yield _Likeness(newer, older, cosine, _common(words[newer], words[older]))
    holding = defaultdict[str, list[int]](list)
    for place, of_one in enumerate(words):
        sharing = {older for word in of_one if len(holding[word]) <= _COMMON_WORD for older in holding[word]}
        for older in sharing:
            common = _common(of_one, words[older])
            if (place, older) not in seen and (common >= _COMMON or of_one <= words[older]):
                yield _Likeness(place, older, _cosine(rows[place], rows[older]), common)
        for word in of_one:
            holding[word].append(place)


def _near(rows: Sequence[Row]) -> Iterator[tuple[int, int, float]]:
    places = [place for place, row in enumerate(rows) if row.vector is not None]
    if not places:
        return
    vectors = np.stack([vector for row in rows if (vector := row.vector) is not None])
    for start in range(0, len(places), _BLOCK):
        block = vectors[start : start + _BLOCK] @ vectors[: start + _BLOCK].T
        for one, other in np.argwhere(block >= _MATTER):
            if start + one > other:
                yield places[start + one], places[other], float(block[one, other])


def _cosine(one: Row, other: Row) -> float | None:
    return None if one.vector is None or other.vector is None else float(np.dot(one.vector, other.vector))


def _common(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other) if one and other else 0.0


def _particulars(row: Row) -> frozenset[str]:
    return frozenset(match.lower() for match in _PARTICULAR.findall(row.memory.text.replace("’", "'")))
