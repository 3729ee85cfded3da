"""What others find and cost, on the same texts, with the same embedder, beside `rpla bench memory`.

    .venv-peers/bin/python peers/memory_compare.py --locomo FILE --texts FOLDER --size 10000

`make peers` installs what it needs into `.venv-peers`. Vectors are made beforehand and given to all alike, so no time
here is spent on embedding. All figures are printed as one JSON object.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import memory_stores
import numpy as np
from memory_stores import PACKAGES, PEERS, Embed, Peer

from rpla.bench.at_hand import AtHand, embedded
from rpla.bench.locomo import LocomoResult, Turn, measure_locomo, measure_searcher, read_locomo
from rpla.bench.novels import read_novels
from rpla.bench.result import percentile
from rpla.bench.scale import Share, measure_scale, shares_of
from rpla.memory.embedder import Embedder, open_embedder

_AT_ONCE = 100
"""Memories added with one call."""
_FOUND = 10


class TooSlow(Exception):
    """It takes longer than it was given."""


def main() -> None:
    """Measure rpla and every peer, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--locomo", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--size", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=15, help="time for the writes of each peer")
    parser.add_argument("--only", nargs="*", choices=["rpla", *PEERS], default=["rpla", *PEERS])
    asked = parser.parse_args()
    embedder = open_embedder("minilm")
    report: dict[str, object] = {
        "embedder": embedder.name,
        "versions": {name: {package: version(package) for package in PACKAGES[name]} for name in PEERS},
    }
    if asked.locomo:
        at_hand = _locomo_at_hand(asked.locomo, embedder)
        report["locomo"] = {
            name: _tried(name, lambda name=name: _locomo(name, asked.locomo, at_hand)) for name in asked.only
        }
    if asked.texts:
        texts = read_novels(asked.texts)
        vectors = embedded(texts, embedder)

        def scale(name: str) -> dict[str, object]:
            if name == "rpla":
                results = measure_scale(texts, vectors, embedder.name, asked.size)
                return {result.name: round(result.value, 4) for result in results}
            return _scale(PEERS[name], shares_of(texts, vectors, asked.size), embedder.name, asked.minutes)

        report[f"scale_{asked.size}"] = {name: _tried(name, lambda name=name: scale(name)) for name in asked.only}
    print(json.dumps(report, indent=2))


def _tried(name: str, measure: Callable[[], dict[str, object]]) -> dict[str, object]:
    print(f"{name} …", file=sys.stderr, flush=True)
    try:
        figures = measure()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what became of this peer
        figures = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(figures), file=sys.stderr, flush=True)  # whoever stops the run keeps what there is
    return figures


def _locomo_at_hand(file: Path, embedder: Embedder) -> AtHand:
    """The embedder, with all turns and questions embedded in large batches."""
    conversations = read_locomo(file)
    texts = [_plain(turn) for one in conversations for turn in one.turns]
    texts += [turn.text for one in conversations for turn in one.turns]
    texts += [question.text for one in conversations for question in one.questions]
    texts = list(dict.fromkeys(texts))
    return AtHand(embedder.name, texts, embedded(texts, embedder), embedder)


def _plain(turn: Turn) -> str:
    """A turn as anyone would hand it to a store: who said it, when, and what."""
    date = datetime.fromtimestamp(turn.when)
    return f"{turn.speaker} ({date.day} {date:%B %Y}): {turn.text}"


class _Searcher:
    """A peer with one conversation."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def add(self, turns: Sequence[Turn]) -> None:
        for start in range(0, len(turns), _AT_ONCE):
            part = turns[start : start + _AT_ONCE]
            self._peer.add("conversation", [turn.id for turn in part], [_plain(turn) for turn in part])
        self._peer.open("conversation")

    def search(self, question: str, limit: int) -> list[str]:
        return self._peer.search("conversation", question, limit)


def _locomo(name: str, file: Path, embed: Embed) -> dict[str, object]:
    if name == "rpla":
        return _shown(measure_locomo(file, embed))
    opened: list[Peer] = []
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:

        def fresh() -> _Searcher:
            own = Path(folder) / str(len(opened))
            own.mkdir()
            opened.append(PEERS[name](own, embed))
            return _Searcher(opened[-1])

        result = measure_searcher(file, fresh)
        for peer in opened:
            peer.close()
    return _shown(result)


def _shown(result: LocomoResult) -> dict[str, object]:
    # rpla embeds a question without the names in it, for which no vector is at hand: its time is not comparable.
    return {one.name: round(one.value, 4) for one in result.results() if one.name != "query_p95_ms"}


def _scale(make: type[Peer], shares: Sequence[Share], embedder: str, minutes: float) -> dict[str, object]:
    """Sentences that are used again would be given twice with one vector: of each only the first is kept."""
    texts = [text for share in shares for text in (*share.texts[: share.distinct], *share.queries)]
    vectors = np.concatenate(
        [part for share in shares for part in (share.vectors[: share.distinct], share.query_vectors)]
    )
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        peer = make(Path(folder), AtHand(embedder, texts, vectors))
        writing_s, written = 0.0, 0
        for share in shares:
            for start in range(0, share.distinct, _AT_ONCE):
                places = range(start, min(start + _AT_ONCE, share.distinct))
                ids = [f"{share.number}-{place}" for place in places]
                begun = time.perf_counter()
                peer.add(share.character, ids, [share.texts[place] for place in places])
                writing_s += time.perf_counter() - begun
                written += len(ids)
                if writing_s > minutes * 60:
                    raise TooSlow(f"{written} memories were written in {writing_s:.0f} s")
        open_ms: list[float] = []
        search_ms: list[float] = []
        exact: list[float] = []
        for share in shares:
            begun = time.perf_counter()
            peer.open(share.character)
            peer.search(share.character, share.queries[0], _FOUND)
            open_ms.append((time.perf_counter() - begun) * 1000)
            for query, vector in zip(share.queries, share.query_vectors, strict=True):
                begun = time.perf_counter()
                ids = peer.search(share.character, query, _FOUND)
                search_ms.append((time.perf_counter() - begun) * 1000)
                best = np.argsort(-(share.vectors[: share.distinct] @ vector))[:_FOUND]
                exact.append(len({f"{share.number}-{place}" for place in best} & set(ids)) / _FOUND)
        peer.close()
    figures: dict[str, object] = {
        "recall_p50_ms": round(percentile(search_ms, 50), 2),
        "recall_p95_ms": round(percentile(search_ms, 95), 2),
        "open_ms": round(percentile(open_ms, 50), 1),
        "writes_per_s": round(written / writing_s),
        "memories": written,
    }
    # Of a fusion with words, the nearest vectors are not the exact answer.
    if make is not memory_stores.LlamaIndexFusion:
        figures["exact_recall_at_10"] = round(float(np.mean(exact)), 4)
    return figures


if __name__ == "__main__":
    main()
