"""How well memory finds what was said: questions over long conversations, in LoCoMo's published form."""

import json
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rpla.bench.result import Result, percentile
from rpla.core.errors import RplaError
from rpla.memory.index import Entry, MemoryIndex

Embed = Callable[[Sequence[str]], NDArray[np.float32]]

_LIMIT = 10
_CATEGORIES = (1, 2, 3, 4)
"""Category 5 asks for what was never said."""
_CONTEXT_TURNS = 2
_SESSION = re.compile(r"session_(\d+)")
_DATE = "%I:%M %p on %d %B, %Y"
# Some evidence holds several ids, and some is mistyped: "D8:6; D9:17", "D:11:26", "D30:05".
_EVIDENCE = re.compile(r"D:?(\d+):(\d+)")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation: all that may be taken in. What a picture shows was not said, and is left out."""

    id: str
    speaker: str
    text: str
    session: int
    when: float


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and the turns that answer it."""

    text: str
    category: int
    evidence: frozenset[str]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation of two over months, and what is asked about it."""

    id: str
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]


class Searcher(Protocol):
    """A memory under measurement; a fresh one for each conversation."""

    def add(self, turns: Sequence[Turn]) -> None:
        """Take in a whole conversation, in order."""

    def search(self, question: str, limit: int) -> Sequence[str]:
        """Ids of turns, best first."""


@dataclass(frozen=True, slots=True)
class LocomoResult:
    """Figures over the questions of categories 1 to 4 that have evidence."""

    questions: int
    recall_at_10: float
    """Mean share of a question's evidence among ten turns."""
    hit_at_10: float
    """Share of questions with some evidence among them."""
    recall_by_category: Mapping[int, float]
    questions_by_category: Mapping[int, int]
    recall_by_conversation: Mapping[str, float]
    query_p95_ms: float
    """The embedding of the question included."""

    def results(self) -> list[Result]:
        """The figures with their targets, for `rpla bench`."""
        targets = {1: "≥ 0.45"}
        return [
            Result("recall_at_10", self.recall_at_10, "≥ 0.77"),
            Result("hit_at_10", self.hit_at_10, "≥ 0.84"),
            *(
                Result(f"category_{category}_recall_at_10", recall, targets.get(category, ""))
                for category, recall in self.recall_by_category.items()
            ),
            Result("query_p95_ms", self.query_p95_ms),
        ]


class MemorySearcher:
    """The index under a character's memory."""

    def __init__(self, embed: Embed) -> None:
        self._embed, self._index = embed, MemoryIndex()
        self._ids: list[str] = []

    def add(self, turns: Sequence[Turn]) -> None:
        """Take in turns as memories of what was said, each with the two turns before it as context."""
        vectors = self._embed([turn.text for turn in turns])
        entries: list[Entry] = []
        for number, turn in enumerate(turns):
            earlier = [
                other for other in turns[max(0, number - _CONTEXT_TURNS) : number] if other.session == turn.session
            ]
            entries.append(
                Entry(
                    key=len(self._ids) + number,
                    text=turn.text,
                    context=" ".join(other.text for other in earlier),
                    speaker=turn.speaker,
                    when=turn.when,
                    before=len(self._ids) + number - 1 if earlier else None,
                    vector=vectors[number],
                )
            )
        self._index.add(entries)
        self._ids += [turn.id for turn in turns]

    def search(self, question: str, limit: int) -> list[str]:
        """Ids of turns, best first."""
        vector = self._embed([self._index.to_embed(question)])[0]
        return [self._ids[match.key] for match in self._index.search(question, vector, limit)]


def measure_locomo(path: Path, embed: Embed) -> LocomoResult:
    """What the memory index finds. `embed` makes one row of unit length for each text."""
    return measure_searcher(path, lambda: MemorySearcher(embed))


def measure_searcher(path: Path, new_searcher: Callable[[], Searcher]) -> LocomoResult:
    """What any memory finds, on the same questions."""
    found: list[tuple[str, int, float]] = []
    times: list[float] = []
    for conversation in read_locomo(path):
        searcher = new_searcher()
        searcher.add(conversation.turns)
        for question in conversation.questions:
            begun = time.perf_counter()
            ids = searcher.search(question.text, _LIMIT)
            times.append(time.perf_counter() - begun)
            # Whoever answers with one turn twice, or with more than ten, gains nothing by it.
            among = set(list(dict.fromkeys(ids))[:_LIMIT])
            recall = len(question.evidence & among) / len(question.evidence)
            found.append((conversation.id, question.category, recall))
    if not found:
        raise RplaError(f"{path} asks nothing that its turns answer.", "Give LoCoMo's file as published.")
    categories = sorted({category for _, category, _ in found})
    return LocomoResult(
        questions=len(found),
        recall_at_10=statistics.fmean(recall for *_, recall in found),
        hit_at_10=statistics.fmean(recall > 0 for *_, recall in found),
        recall_by_category={
            wanted: statistics.fmean(recall for _, category, recall in found if category == wanted)
            for wanted in categories
        },
        questions_by_category={wanted: sum(category == wanted for _, category, _ in found) for wanted in categories},
        recall_by_conversation={
            wanted: statistics.fmean(recall for id, _, recall in found if id == wanted)
            for wanted in dict.fromkeys(id for id, *_ in found)
        },
        query_p95_ms=1000 * percentile(times, 95),
    )


def read_locomo(path: Path) -> list[Conversation]:
    """The conversations of a file. Raises RplaError where it is not LoCoMo."""
    try:
        # Some copies hold the sessions apart from the questions, under "conversation".
        return [_conversation(row | row.get("conversation", {})) for row in json.loads(path.read_text("utf-8"))]
    except OSError as error:
        raise RplaError(f"{path} cannot be read: {error.strerror}.", "Give the path of LoCoMo's JSON file.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RplaError(
            f"{path} is not LoCoMo: {type(error).__name__}: {error}.",
            "It is a JSON list of conversations with session_1, session_1_date_time and qa.",
        ) from error


def _conversation(row: dict[str, Any]) -> Conversation:
    turns = [
        Turn(
            id=_text(turn["dia_id"]),
            speaker=_text(turn["speaker"]),
            text=_text(turn["text"]),
            session=session,
            when=datetime.strptime(row[f"session_{session}_date_time"], _DATE).timestamp(),
        )
        for session in sorted(int(match[1]) for match in map(_SESSION.fullmatch, row) if match)
        for turn in row[f"session_{session}"]
    ]
    if not turns:
        raise ValueError("a conversation has no session")
    questions = [
        Question(_text(asked["question"]), asked["category"], evidence)
        for asked in row["qa"]
        if asked["category"] in _CATEGORIES and (evidence := _evidence(asked.get("evidence") or []))
    ]
    return Conversation(str(row["sample_id"]), tuple(turns), tuple(questions))


def _evidence(written: Sequence[str]) -> frozenset[str]:
    """Ids of turns; leading zeros are dropped. An id that no turn has stays: it cannot be found, by anyone."""
    return frozenset(f"D{int(session)}:{int(turn)}" for text in written for session, turn in _EVIDENCE.findall(text))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} stands where a text should")
    return value
