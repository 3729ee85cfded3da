"""Fits the memory's write gate to labelled conversations: ``python -m rpla.training.gate FOLDER…`` writes its weights.

Conversations are JSON lines with ``conversation``, ``turn``, ``speaker``, ``text`` and ``kind``
(`rpla.bench.hygiene` describes them). Needs rpla[local], whose scikit-learn fits a multinomial logistic regression.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpla.memory.embedder import Embedder, open_embedder
from rpla.memory.gate import COMPARED, EARLIER, LABELS, Said, features_of, known_words

_REGULARIZATION = 0.03
_FOLDS = 10
_PRECISION = {True: 0.92, False: 0.85}
"""Of what is kept in held-out conversations, with meaning and by words alone, which tell less: there, as much again
would be lost for the last facts in ten."""
_WEIGHTS = Path(__file__).parent.parent / "memory" / "gate.json"


def read_conversations(folders: Sequence[Path]) -> list[list[dict[str, Any]]]:
    """The conversations of all JSONL files, a list of turns each."""
    conversations: dict[str, list[dict[str, Any]]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.jsonl")):
            for line in path.read_text("utf-8").splitlines():
                turn = json.loads(line)
                conversations.setdefault(turn["conversation"], []).append(turn)
    return list(conversations.values())


def fit(conversations: Sequence[list[dict[str, Any]]], embedder: Embedder) -> dict[str, Any]:
    """Two layers of weights: with meaning, under the embedder's name, and by words alone."""
    turns: list[list[Said]] = [_said(conversation, embedder) for conversation in conversations]
    labels = np.array([_label(turn["kind"]) for conversation in conversations for turn in conversation])
    groups = np.repeat(np.arange(len(turns)), [len(said) for said in turns])
    layers = {}
    for name, meaning in ((embedder.name, True), ("words", False)):
        features = np.array([features_of(said, meaning=meaning) for one in turns for said in one])
        layers[name] = _fit_layer(features, labels, groups, name, _PRECISION[meaning])
    return layers


def _said(conversation: Sequence[dict[str, Any]], embedder: Embedder) -> list[Said]:
    texts = [turn["text"] for turn in conversation]
    vectors = embedder(texts)
    return [
        Said(
            text=texts[place],
            by_user=turn["speaker"] == "user",
            before=texts[place - 1] if place else "",
            known=known_words(texts[max(0, place - EARLIER) : place]),
            place=place,
            vector=vectors[place],
            earlier=vectors[max(0, place - COMPARED) : place],
        )
        for place, turn in enumerate(conversation)
    ]


def _label(kind: str) -> int:
    return LABELS.index("fact" if kind == "update" else kind)


def _fit_layer(
    features: NDArray[np.float64], labels: NDArray[np.int64], groups: NDArray[np.int64], name: str, least: float
) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    mean, scale = features.mean(0), features.std(0) + 1e-6
    # A direction of the embedding is one of hundreds: alone it may say less than a word does.
    scale[_words_wide(features) :] *= 3
    scaled = (features - mean) / scale

    def model() -> Any:
        return LogisticRegression(C=_REGULARIZATION, max_iter=5000)

    facts = np.zeros(len(labels))
    for train, test in GroupKFold(_FOLDS).split(scaled, labels, groups):
        odds = model().fit(scaled[train], labels[train]).predict_proba(scaled[test])
        facts[test] = odds[:, LABELS.index("fact")]
    threshold, precision, recall = _threshold(facts, labels == LABELS.index("fact"), least)
    print(
        f"{name}: on held-out conversations precision {precision:.3f}, recall {recall:.3f} at {threshold:.3f}",
        file=sys.stderr,
    )
    whole = model().fit(scaled, labels)
    return {
        "mean": _rounded(mean),
        "scale": _rounded(scale),
        "weights": [_rounded(row) for row in whole.coef_],
        "bias": _rounded(whole.intercept_),
        "threshold": round(threshold, 4),
    }


def _words_wide(features: NDArray[np.float64]) -> int:
    return len(features_of(Said(text="", by_user=True), meaning=False))


def _threshold(scores: NDArray[np.float64], facts: NDArray[np.bool_], least: float) -> tuple[float, float, float]:
    order = np.argsort(-scores)
    hits = np.cumsum(facts[order])
    precision, recall = hits / np.arange(1, len(order) + 1), hits / facts.sum()
    place = int(np.flatnonzero(precision >= least).max(initial=0))
    return float(scores[order[place]]), float(precision[place]), float(recall[place])


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def main() -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    conversations = read_conversations(parser.parse_args().folders)
    layers = fit(conversations, open_embedder("minilm"))
    _WEIGHTS.write_text(json.dumps(layers, separators=(",", ":")) + "\n", "utf-8")
    print(f"{len(conversations)} conversations; wrote {_WEIGHTS}", file=sys.stderr)


if __name__ == "__main__":
    main()
