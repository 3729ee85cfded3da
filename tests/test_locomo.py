import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rpla.bench.locomo import Turn, measure_locomo, measure_searcher, read_locomo
from rpla.core.errors import RplaError
from rpla.memory.embedder import HashingEmbedder


def conversation(**fields: object) -> dict[str, object]:
    lines = [
        ("Morwenna", "I have kept the lamp at Skerry Point for eleven years."),
        ("Sam", "Do you ever get visitors out here, Morwenna?"),
        ("Morwenna", "My brother wrote from Lisbon. His ship is the Corrigan."),
        ("Sam", "I sold my bicycle and bought a small red boat."),
    ]
    made: dict[str, object] = {
        "sample_id": "conv-1",
        "speaker_a": "Morwenna",
        "speaker_b": "Sam",
        "session_10_date_time": "9:05 am on 2 June, 2023",
        "session_10": [
            {"speaker": "Sam", "dia_id": "D10:1", "text": "The boat is called Petrel.", "blip_caption": "a walrus"},
            *({"speaker": "Morwenna", "dia_id": f"D10:{n}", "text": f"Rain again, bucket {n}."} for n in range(2, 30)),
        ],
        "session_2_date_time": "1:56 pm on 8 May, 2023",
        "session_2": [
            {"speaker": speaker, "dia_id": f"D2:{n}", "text": text} for n, (speaker, text) in enumerate(lines, 1)
        ],
        "qa": [
            {"question": "What did Sam buy, and its name?", "evidence": ["D2:4; D10:01"], "category": 1},
            {"question": "When did the brother write from Lisbon?", "evidence": ["D:2:3"], "category": 2},
            {"question": "Is there a walrus?", "evidence": ["D99:1"], "category": 4},
            {"question": "Nothing answers this", "evidence": [], "category": 3},
            {"question": "Malformed", "evidence": ["D"], "category": 4},
            {"question": "What did Morwenna sell?", "evidence": ["D2:4"], "category": 5},
        ],
    }
    return made | fields


def write(folder: Path, *rows: object) -> Path:
    path = folder / "locomo.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_turns_come_in_the_order_of_the_sessions_with_their_dates(tmp_path: Path) -> None:
    (read,) = read_locomo(write(tmp_path, conversation()))
    assert [turn.id for turn in read.turns[:5]] == ["D2:1", "D2:2", "D2:3", "D2:4", "D10:1"]
    assert read.turns[3].when < read.turns[4].when
    assert "walrus" not in read.turns[4].text


def test_evidence_may_hold_several_ids_or_mistyped_ones(tmp_path: Path) -> None:
    (read,) = read_locomo(write(tmp_path, conversation()))
    assert [question.evidence for question in read.questions] == [{"D2:4", "D10:1"}, {"D2:3"}, {"D99:1"}]


def test_the_memory_index_finds_what_was_said(tmp_path: Path) -> None:
    result = measure_locomo(write(tmp_path, conversation()), HashingEmbedder())
    assert result.recall_by_category == {1: 1.0, 2: 1.0, 4: 0.0}
    assert result.questions_by_category == {1: 1, 2: 1, 4: 1}
    assert result.recall_at_10 == result.hit_at_10 == pytest.approx(2 / 3)
    assert result.recall_by_conversation == {"conv-1": result.recall_at_10}
    assert result.query_p95_ms > 0


def test_only_turns_are_embedded_and_questions_without_the_speakers_names(tmp_path: Path) -> None:
    seen: list[str] = []

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        seen.extend(texts)
        return HashingEmbedder()(texts)

    measure_locomo(write(tmp_path, conversation()), embed)
    assert "What did buy, and its name?" in seen
    assert not [text for text in seen if "walrus" in text and text != "Is there a walrus?"]


class Repeats:
    """Says the same turn again and again, and then too many."""

    def __init__(self) -> None:
        self._ids: list[str] = []

    def add(self, turns: Sequence[Turn]) -> None:
        self._ids += [turn.id for turn in turns]

    def search(self, question: str, limit: int) -> list[str]:
        return [self._ids[-1]] * limit + self._ids[::-1]


def test_any_searcher_is_measured_by_its_first_ten_distinct_turns(tmp_path: Path) -> None:
    few = conversation(qa=[{"question": "?", "evidence": ["D10:29", "D10:20", "D10:19"], "category": 1}])
    result = measure_searcher(write(tmp_path, few, few | {"sample_id": "conv-2"}), Repeats)
    assert (result.questions, result.recall_at_10, result.hit_at_10) == (2, pytest.approx(2 / 3), 1.0)
    assert [row.name for row in result.results()][:3] == ["recall_at_10", "hit_at_10", "category_1_recall_at_10"]


def test_sessions_may_stand_apart_from_the_questions(tmp_path: Path) -> None:
    row = conversation()
    apart = {"sample_id": row.pop("sample_id"), "qa": row.pop("qa"), "conversation": row}
    assert read_locomo(write(tmp_path, apart)) == read_locomo(write(tmp_path, conversation()))


@pytest.mark.parametrize(
    "row",
    [
        "text",
        7,
        {},
        {"sample_id": "x", "qa": []},
        conversation(session_2=[{"speaker": "Sam", "dia_id": "D2:1"}]),
        conversation(session_2=[{"speaker": "Sam", "dia_id": "D2:1", "text": None}]),
        conversation(session_2_date_time="yesterday"),
        conversation(qa=[{"question": "?", "evidence": 7, "category": 1}]),
        conversation(conversation=[]),
    ],
)
def test_what_is_not_locomo_is_refused(tmp_path: Path, row: object) -> None:
    with pytest.raises(RplaError, match="is not LoCoMo"):
        read_locomo(write(tmp_path, row))


def test_a_file_that_is_absent_binary_or_asks_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RplaError, match="cannot be read"):
        read_locomo(tmp_path / "absent.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RplaError, match="is not LoCoMo"):
        read_locomo(tmp_path / "binary")
    with pytest.raises(RplaError, match="asks nothing"):
        measure_locomo(write(tmp_path, conversation(qa=[])), HashingEmbedder())
