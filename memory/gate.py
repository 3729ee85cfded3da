"""The write gate: which of the things said are worth remembering. It needs no language model.

A linear classifier looks at the words of a turn, at what is new in it, and, where there is an embedder, at its meaning.
Its weights are in ``gate.json``; `rpla.training.gate` fits them to conversations labelled by hand.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rpla.memory.embedder import Vectors
from rpla.memory.words import words_of

Label = Literal["chat", "fact", "hearsay", "echo"]
LABELS: tuple[Label, ...] = ("chat", "fact", "hearsay", "echo")

EARLIER = 200
"""How many turns back a word counts as known."""
COMPARED = 32
"""How many turns back meanings are compared."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_SELF = _set("i i'm i've i'd i'll im ive id my me mine myself we we're we've we'd we'll our us")
_YOU = _set("you your you're you've you'd you'll yours yourself ye u ur")
_OTHERS = _set("he she him her his hers they them their he's she's they're")
_NUMBERS = _set(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen eighteen twenty "
    "thirty forty fifty sixty seventy eighty ninety hundred monday tuesday wednesday thursday friday saturday sunday "
    "january february march april june july august september october november december"
)
_KIN = _set(
    "mum mom mam mother dad father parents sister brother wife husband son daughter kid kids child children baby aunt "
    "uncle cousin nan gran grandma grandmother grandad granddad grandfather niece nephew partner girlfriend boyfriend "
    "fiancé fiancée fiance boss landlord dog cat puppy kitten friend mate flatmate roommate job work shop school uni "
    "college house flat apartment car farm"
)
_HEARD = re.compile(
    r"\b(says?|said|saying|reckons?|claims?|claimed|told|tells|heard|apparently|rumou?rs?|read|according|swears?|swore|"
    r"supposedly|allegedly|thinks|insists?|word is|they say|gossip|article|papers?|news|posted?|podcast|radio|"
    r"convinced|informs?)\b"
)
_UNREAL = re.compile(
    r"\b(if|would|wouldn't|could|might|imagine|suppose|maybe|perhaps|dream|dreamt|dreamed|wish|film|movie|book|song|"
    r"novel|episode|joke|kidding|pretend|what if)\b"
)
_AGAIN = re.compile(
    r"\b(remember|remind|as i said|like i said|told you|i mentioned|you said|you told|mentioned|still|again|then)\b"
)
_CHANGED = re.compile(
    r"\b(actually|no longer|any ?more|instead|now|changed|moved|turns out|correction|switched|cancell?ed|after all|"
    r"used to|new|gone|scrap|swapped|forget)\b"
)
_PAST = re.compile(
    r"\b(was|were|had|did|been|went|came|got|left|lost|bought|born|grew|met|made|took|gave|won|broke|\w{3,}ed)\b"
)
_PROMISE = re.compile(r"\b(i'll|i will|i shall|promise|vow|swear|my word|you have my)\b")
_NAME = re.compile(r"(?<=[\w,;:] )[A-Z]\w+")
_CAPITAL = re.compile(r"\b[A-Z]\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|\n+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A turn before the gate."""

    text: str
    by_user: bool
    before: str = ""
    """What was said just before."""
    known: frozenset[str] = frozenset()
    """Stems of all words said earlier on this branch."""
    place: int = 0
    """How many turns came before."""
    vector: Vectors | None = None
    earlier: Vectors | None = None
    """Vectors of earlier turns, the latest last: (turns, dimensions)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate takes a turn to be, and how likely it states something worth keeping."""

    label: Label
    fact: float
    keep: bool


class Gate:
    """Judges turns. The weights hold for one embedder; without it, or with another, the words alone decide."""

    def __init__(self, embedder: str) -> None:
        weights = _weights()
        self._with_meaning = weights.get(embedder)
        self._by_words = weights["words"]

    def __call__(self, said: Said) -> Verdict:
        """What the turn is taken to be."""
        meaning = self._with_meaning is not None and said.vector is not None
        layer = self._with_meaning if meaning and self._with_meaning is not None else self._by_words
        features = features_of(said, meaning=meaning)
        scores = layer.weights @ ((features - layer.mean) / layer.scale) + layer.bias
        odds = np.exp(scores - scores.max())
        odds /= odds.sum()
        fact = float(odds[LABELS.index("fact")])
        return Verdict(label=LABELS[int(odds.argmax())], fact=fact, keep=fact >= layer.threshold)


@dataclass(frozen=True, slots=True)
class _Layer:
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]
    """(labels, features)."""
    bias: NDArray[np.float64]
    threshold: float
    """Least probability of a fact that is kept: where nine of ten kept are facts."""


def features_of(said: Said, *, meaning: bool) -> NDArray[np.float64]:
    """What the classifier sees of a turn; with `meaning`, its vector and its likeness to what was said before."""
    text, lowered = said.text, said.text.lower().replace("’", "'")
    tokens = re.findall(r"[\w']+", lowered)
    length = max(1, len(tokens))
    stems = frozenset(words_of(text))
    new = stems - said.known
    names = set(_CAPITAL.findall(text))
    sentences = [sentence for sentence in _SENTENCE_END.split(text) if sentence]
    of_self = sum(token in _SELF for token in tokens)

    def share(words: frozenset[str]) -> float:
        return sum(token in words for token in tokens) / length

    features = [
        text.count("!") / length,
        np.log(length),
        of_self / length,
        min(of_self, 3),
        min(len(_NAME.findall(text)), 4),
        min(sum(not said.known.issuperset(words_of(name)) for name in names), 4),
        min(sum(token in _NUMBERS or token.isdecimal() for token in tokens), 4),
        share(_YOU),
        "?" in text,
        sum(sentence.rstrip().endswith("?") for sentence in sentences) / max(1, len(sentences)),
        len(new) / max(1, len(stems)),
        min(len(new), 30) / 10,
        bool(_HEARD.search(lowered)),
        bool(_UNREAL.search(lowered)),
        bool(_AGAIN.search(lowered)),
        bool(_CHANGED.search(lowered)),
        min(len(_PAST.findall(lowered)), 4),
        share(_OTHERS),
        min(sum(token in _KIN for token in tokens), 3),
        said.by_user,
        said.by_user * of_self / length,
        not said.by_user and bool(_PROMISE.search(lowered)),
        not said.by_user and of_self > 0,
        len(stems.intersection(words_of(said.before))) / max(1, len(stems)),
        "?" in said.before,
        said.place < 4,
        bool(tokens) and tokens[0] in _SELF,
    ]
    if not meaning:
        return np.array(features, dtype=np.float64)
    assert said.vector is not None
    likeness = said.earlier @ said.vector if said.earlier is not None and len(said.earlier) else np.zeros(1)
    vector = said.vector.astype(np.float64)
    return np.concatenate([features, [likeness.max(), likeness[-1]], vector, vector * said.by_user])


@cache
def _weights() -> dict[str, _Layer]:
    stored = json.loads((files("rpla.memory") / "gate.json").read_text("utf-8"))
    return {
        name: _Layer(
            **{key: np.array(layer[key]) for key in ("mean", "scale", "weights", "bias")}, threshold=layer["threshold"]
        )
        for name, layer in stored.items()
    }


def pieces_of(text: str, longest: int = 400, most: int = 32) -> list[str]:
    """A text in parts of whole sentences that can each be remembered; of a very long one only the first parts."""
    if len(text) <= longest:
        return [text.strip()] if text.strip() else []
    pieces: list[str] = []
    for sentence in _SENTENCE_END.split(text):
        for start in range(0, len(sentence), longest):
            part = sentence[start : start + longest].strip()
            if pieces and len(pieces[-1]) + len(part) < longest:
                pieces[-1] = f"{pieces[-1]} {part}".strip()
            elif part:
                pieces.append(part)
            if len(pieces) > most:
                return pieces[:most]
    return pieces


def known_words(texts: Sequence[str]) -> frozenset[str]:
    """Stems of all the words of some turns."""
    return frozenset(stem for text in texts for stem in words_of(text))
