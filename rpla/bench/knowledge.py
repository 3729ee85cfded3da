"""How well passages are found, and how long a novel takes to add; on data that the user has."""

import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rpla.bench.result import Result, percentile
from rpla.core.errors import RplaError
from rpla.core.home import Home
from rpla.core.ids import id_of
from rpla.core.settings import KnowledgeSettings
from rpla.memory.embedder import LazyEmbedder
from rpla.memory.knowledge import Knowledge

_READER = id_of("bench", "reader")
_CHUNK_TOKENS = 200
_FOUND = 5
_WORD = re.compile(r"\w+")


def measure_finding(folder: Path, embedder: str = "minilm") -> list[Result]:
    """Of the questions of Character100, in how many one of the first five passages covers half of the evidence.

    `folder` holds ``qr.jsonl`` and ``articles/``; all articles are one character's, so that who is asked about must be
    told apart as well. A passage covers the share of the evidence's words (as a multiset) that are in it. Evidence can
    be longer than a passage: the ceiling is how often any passage at all covers half.
    """
    questions = folder / "qr.jsonl"
    if not questions.is_file():
        raise RplaError(f"There is no {questions}.", "Give the folder of Character100.")
    rows = [json.loads(line) for line in questions.read_text("utf-8").splitlines()]
    with tempfile.TemporaryDirectory(prefix="rpla-bench-") as home:
        knowledge = _knowledge(Path(home), embedder)
        knowledge.add(_READER, folder / "articles")
        passages = [
            _bag(piece.text) for source in knowledge.sources(_READER) for piece in knowledge._store.pieces_of(source.id)
        ]
        found_at: list[int | None] = []
        nothing = 0
        search_ms: list[float] = []
        ceiling = 0
        for row in rows:
            evidence = _bag(row["context"])
            begun = time.perf_counter()
            found = knowledge.search(_READER, row["question"], limit=_FOUND, about=str(row["person"]).replace("_", " "))
            search_ms.append((time.perf_counter() - begun) * 1000)
            nothing += not found
            ranks = (rank for rank, passage in enumerate(found) if _covers(_bag(passage.text), evidence))
            found_at.append(next(ranks, None))
            ceiling += any(_covers(passage, evidence) for passage in passages)
        notices = knowledge.take_notices()
        knowledge.close()
    if notices:
        raise RplaError(f"The figures would not be what they say: {notices[0]}")
    return [
        Result("evidence_in_5", _share(found_at, _FOUND), "≥ 0.85"),
        Result("evidence_in_1", _share(found_at, 1)),
        Result("evidence_in_any", ceiling / len(rows)),
        Result("nothing_found", nothing / len(rows)),
        Result("questions", len(rows)),
        Result("passages", len(passages)),
        Result("search_p50_ms", percentile(search_ms, 50)),
        Result("search_p95_ms", percentile(search_ms, 95)),
    ]


def measure_novel(file: Path, embedder: str = "minilm") -> list[Result]:
    """Seconds to add a novel as a story, with a loaded embedder, and again; what a cut-off at half lets through."""
    with tempfile.TemporaryDirectory(prefix="rpla-bench-") as home:
        knowledge = _knowledge(Path(home), embedder)
        assert knowledge.embedder is not None
        begun = time.perf_counter()
        knowledge.embedder.wait()
        loaded, spent = time.perf_counter(), time.process_time()
        report = knowledge.add(_READER, file, story=True)
        added, spent = time.perf_counter(), time.process_time() - spent
        again = knowledge.add(_READER, file, story=True)
        ended = time.perf_counter()
        assert again.unchanged
        knowledge.set_cutoff(_READER, 0.5)
        pieces = knowledge._store.pieces_of(knowledge.sources(_READER)[0].id)
        late = [piece for piece in pieces if (piece.story_time or 0) > 0.5]
        leaked = 0
        # Asked in the very words of what is yet to come.
        for piece in late[:: max(1, len(late) // 200)]:
            found = knowledge.search(_READER, piece.text[:200], limit=10)
            leaked += sum((passage.story_time or 0) > 0.5 for passage in found)
        notices = knowledge.take_notices()
        knowledge.close()
    if notices:
        raise RplaError(f"The figures would not be what they say: {notices[0]}")
    return [
        Result("novel_add_s", added - loaded, "≤ 60"),
        Result("novel_add_cpu_s", spent),
        Result("novel_again_s", ended - added, "≤ 3"),
        Result("novel_leaked", leaked, "0"),
        Result("novel_passages", report.passages),
        Result("embedder_load_s", loaded - begun),
    ]


def _knowledge(home: Path, embedder: str) -> Knowledge:
    return Knowledge(Home(home), LazyEmbedder(embedder), KnowledgeSettings(chunk_tokens=_CHUNK_TOKENS))


def _bag(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.lower()))


def _covers(passage: Counter[str], evidence: Counter[str]) -> bool:
    return 2 * (passage & evidence).total() >= evidence.total()


def _share(found_at: Sequence[int | None], places: int) -> float:
    return sum(rank is not None and rank < places for rank in found_at) / len(found_at)
