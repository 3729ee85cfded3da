import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rpla.bench import at_hand, hygiene, scale
from rpla.bench.at_hand import AtHand, embedded
from rpla.bench.memory import MemoryBench
from rpla.bench.novels import read_novels
from rpla.bench.result import Result
from rpla.cli.main import app
from rpla.core.errors import RplaError
from rpla.memory import store
from rpla.memory.embedder import HashingEmbedder, Vectors
from tests.test_locomo import conversation, write

SCALE = [
    "recall_p50_ms",
    "recall_p95_ms",
    "open_ms",
    "exact_recall_at_10",
    "writes_per_s",
    "bytes_per_memory",
    "peak_rss_mb",
    "memories",
    "distinct_memories",
]
HYGIENE = ["stored_precision", "stored_recall", "echoes", "superseded_above"]
BENCH = MemoryBench(embedder="hashing", memories=60, turns=6)


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(at_hand, "user_cache_path", lambda *_, **__: tmp_path / "cache")


@pytest.fixture
def novels(tmp_path: Path) -> Path:
    folder = tmp_path / "novels"
    (folder / "Tides").mkdir(parents=True)
    sentences = [
        f"The keeper wrote entry {n} of the {n % 17}th\nledger on a {n * n % 13} knot wind." for n in range(700)
    ]
    (folder / "Tides" / "novel_text.txt").write_text(" ".join(sentences[:400]), encoding="utf-8")
    (folder / "gales.txt").write_text("\n\n".join(sentences[300:]), encoding="utf-8")
    return folder


def names(results: Sequence[Result]) -> list[str]:
    return [result.name for result in results]


def values(results: Sequence[Result]) -> dict[str, float]:
    return {result.name: result.value for result in results}


def test_locomo_gives_recall_of_each_category(tmp_path: Path) -> None:
    results = replace(BENCH, locomo=write(tmp_path, conversation())).measure("locomo")
    categories = [f"category_{number}_recall_at_10" for number in (1, 2, 4)]  # it asks nothing of category 3
    assert names(results) == ["recall_at_10", "hit_at_10", *categories, "query_p95_ms"]
    assert values(results)["recall_at_10"] == pytest.approx(2 / 3)


def test_sentences_are_read_once_and_whole(novels: Path) -> None:
    sentences = read_novels(novels)
    assert len(sentences) == 700
    assert "The keeper wrote entry 31 of the 14th ledger on a 12 knot wind." in sentences


def test_scale_uses_sentences_again_where_there_are_too_few(novels: Path) -> None:
    results = values(replace(BENCH, texts=novels, size=1000).measure("scale"))
    assert list(results) == SCALE
    assert (results["memories"], results["distinct_memories"]) == (1000, 20 * (35 - 15))
    assert results["exact_recall_at_10"] > 0.97


def test_each_character_remembers_its_own_part_and_not_what_it_is_asked(novels: Path) -> None:
    sentences = read_novels(novels)
    shares = scale.shares_of(sentences, embedded(sentences, HashingEmbedder()), 1000)
    assert len({text for share in shares for text in (*share.texts, *share.queries)}) == 700
    assert {share.distinct for share in shares} == {20}
    assert {share.distinct for share in scale.shares_of(sentences, np.zeros((700, 2), np.float32), 200)} == {10}
    for share in shares:
        assert len(share.texts) == len(share.vectors) == 50
        assert not set(share.texts) & set(share.queries)
        assert np.allclose(np.linalg.norm(share.vectors, axis=1), 1, atol=1e-5)
        # Used again is the same sentence with another vector, near the first.
        assert share.texts[20:40] == share.texts[:20]
        assert np.all(np.sum(share.vectors[20:40] * share.vectors[:20], axis=1) > 0.98)
        assert not np.any(np.all(share.vectors[20:40] == share.vectors[:20], axis=1))


def test_a_store_that_rounds_too_much_is_seen(novels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def coarse(vector: Vectors) -> bytes:
        return np.sign(vector).astype(np.float16).tobytes()

    monkeypatch.setattr(store, "_packed", coarse)
    results = values(replace(BENCH, texts=novels, size=1000).measure("scale"))
    assert results["exact_recall_at_10"] < 0.97


def test_turn_gives_two_figures() -> None:
    assert names(BENCH.measure("turn")) == ["turn_p50_ms", "turn_p95_ms"]


def test_a_turn_that_recalls_nothing_is_not_measured() -> None:
    with pytest.raises(RplaError, match="Nothing was recalled"):
        replace(BENCH, memories=0, turns=1).measure("turn")


def test_the_cached_share_is_llama_cpps() -> None:
    with pytest.raises(RplaError, match="not a llamacpp: model"):
        replace(BENCH, model="scripted:Quite so.", turns=1).measure("turn")


@pytest.mark.slow
def test_the_cached_share_comes_from_a_model(smollm2_gguf: Path) -> None:
    from rpla.bench.turn import measure_cached_share

    (share,) = measure_cached_share(f"llamacpp:{smollm2_gguf}", "hashing", memories=60, turns=3)
    assert (share.name, share.target) == ("cached_share", "≥ 0.90")
    assert 0 < share.value < 1


@pytest.fixture
def conversations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "conversations"
    said = [
        ("user", "My sister Ines moved to Lisbon and works in a bakery there.", "fact", ["Lisbon"], None),
        ("character", "Lisbon is far. What does she bake?", "chat", [], None),
        ("user", "Mostly bread, ha ha.", "chat", [], None),
        ("character", "Bread is honest work.", "chat", [], None),
        ("user", "My sister Ines moved to Porto in May; she left the bakery for a school.", "update", ["Porto"], "a.0"),
        ("character", "Then I shall write to Porto.", "chat", [], None),
    ]
    for half in ("seen", "unseen"):
        (folder / half).mkdir(parents=True)
        lines = [
            {
                "conversation": half,
                "turn": place,
                "speaker": speaker,
                "text": text,
                "kind": kind,
                "facts": [{"id": f"a.{place}", "keys": keys, "supersedes": supersedes, "probe": "Where is Ines?"}]
                if keys
                else [],
            }
            for place, (speaker, text, kind, keys, supersedes) in enumerate(said)
        ]
        (folder / half / "a.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    monkeypatch.setattr(hygiene, "CONVERSATIONS", folder)
    return folder


@pytest.mark.usefixtures("conversations")
def test_hygiene_gives_the_unseen_half_and_the_seen() -> None:
    results = BENCH.measure("hygiene")
    assert names(results) == [*HYGIENE, *(f"seen_{name}" for name in HYGIENE)]
    by_words = replace(BENCH, embedder="words").measure("hygiene")
    assert names(by_words) == names(results)
    assert values(results)["stored_recall"] == 1


@pytest.mark.usefixtures("conversations")
def test_hygiene_embeds_a_conversation_in_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []

    class Counted(HashingEmbedder):
        def __call__(self, texts: Sequence[str]) -> Vectors:
            batches.append(len(texts))
            return super().__call__(texts)

    embedder = hygiene.LazyEmbedder("hashing", Counted())
    first = hygiene.measure_hygiene(embedder, "unseen")
    assert batches == [7]  # six turns and a probe
    assert hygiene.measure_hygiene(embedder, "unseen") == first
    assert batches == [7]


def test_hygiene_wants_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hygiene, "CONVERSATIONS", tmp_path / "absent")
    with pytest.raises(RplaError, match="There is no"):
        BENCH.measure("hygiene")


def test_vectors_are_made_once() -> None:
    made: list[str] = []

    class Counted(HashingEmbedder):
        def __call__(self, texts: Sequence[str]) -> Vectors:
            made.extend(texts)
            return super().__call__(texts)

    texts = [f"Entry {n}." for n in range(1500)]
    first = embedded(texts, Counted())
    assert np.array_equal(embedded(texts, Counted()), first)
    assert made == texts
    assert first.dtype == np.float32
    assert np.array_equal(first, HashingEmbedder()(texts))
    assert embedded([], HashingEmbedder()).shape == (0, 256)


def test_vectors_at_hand_are_not_made_again() -> None:
    texts = ["One thing.", "Another thing."]
    known = AtHand("hashing-256", texts, np.eye(2, 256, dtype=np.float32))
    assert known(["Another thing."])[0, 1] == 1
    with pytest.raises(KeyError):
        known(["A third."])
    others = AtHand("hashing-256", texts, np.eye(2, 256, dtype=np.float32), HashingEmbedder())
    assert np.array_equal(others(["A third."]), HashingEmbedder()(["A third."]))


def test_sections_are_those_with_data_where_none_is_named(tmp_path: Path) -> None:
    assert MemoryBench().sections(None) == ["turn", "hygiene"]
    given = MemoryBench(locomo=tmp_path, texts=tmp_path, novel=tmp_path)
    assert given.sections([]) == ["locomo", "scale", "turn", "hygiene", "knowledge"]
    assert given.sections(["turn", "scale", "turn"]) == ["turn", "scale"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("recall", "Unknown section 'recall'"),
        ("locomo", "--locomo FILE"),
        ("scale", "--texts FOLDER"),
        ("knowledge", "--character100 FOLDER"),
    ],
)
def test_a_section_that_is_unknown_or_lacks_its_data_is_refused(section: str, message: str) -> None:
    with pytest.raises(RplaError, match=message):
        MemoryBench().sections(["turn", section])


def test_data_that_is_not_what_it_should_be_is_refused(tmp_path: Path, novels: Path) -> None:
    with pytest.raises(RplaError, match="cannot be read"):
        replace(BENCH, locomo=tmp_path / "absent.json").measure("locomo")
    (tmp_path / "wrong.json").write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(RplaError, match="is not LoCoMo"):
        replace(BENCH, locomo=tmp_path / "wrong.json").measure("locomo")
    with pytest.raises(RplaError, match="holds no novels"):
        replace(BENCH, texts=tmp_path).measure("scale")
    with pytest.raises(RplaError, match="too few"):
        replace(BENCH, texts=novels, size=19).measure("scale")
    (tmp_path / "short.txt").write_text("It was a dark and stormy night, and nothing else.", encoding="utf-8")
    with pytest.raises(RplaError, match="too few"):
        replace(BENCH, texts=tmp_path).measure("scale")
    (tmp_path / "short.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RplaError, match="cannot be read"):
        replace(BENCH, texts=tmp_path).measure("scale")


def test_the_command_prints_json_with_these_keys(tmp_path: Path) -> None:
    file = write(tmp_path, conversation())
    done = CliRunner().invoke(
        app, ["bench", "memory", "--locomo", str(file), "--section", "locomo", "--embedder", "hashing", "--json"]
    )
    assert done.exit_code == 0
    assert list(json.loads(done.stdout)) == [
        "recall_at_10",
        "hit_at_10",
        "category_1_recall_at_10",
        "category_2_recall_at_10",
        "category_4_recall_at_10",
        "query_p95_ms",
    ]
