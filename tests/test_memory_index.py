import math
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rpla.memory.index import Entry, Match, MemoryIndex

WORDS = ["lamp", "ledger", "harbour", "storm", "灯台", "tea"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)


def toward(*weights: float) -> NDArray[np.float32]:
    """A unit vector that leans to some of three axes."""
    vector = np.array([*weights, *[0.0] * (3 - len(weights))], np.float32)
    return vector / np.linalg.norm(vector)


def index(*entries: Entry) -> MemoryIndex:
    made = MemoryIndex()
    made.add(entries)
    return made


def said(key: int, text: str, **fields) -> Entry:
    return Entry(key=key, text=text, **fields)


def keys(matches: list[Match]) -> list[int]:
    return [match.key for match in matches]


def test_an_empty_index_finds_nothing() -> None:
    assert MemoryIndex().search("lamp", None, 5) == []
    assert MemoryIndex().search("lamp", toward(1), 5) == []
    assert index(said(1, "lamp", vector=toward(1))).search("", None, 5) == []
    assert index(said(1, "lamp")).search("lamp", None, 0) == []


def test_words_and_meaning_both_find_and_together_find_best() -> None:
    made = index(
        said(1, "the lamp is lit", vector=toward(0, 1)),
        said(2, "a light burns in the tower", vector=toward(1)),
        said(3, "the lamp burns in the tower", vector=toward(1)),
        said(4, "soup again", vector=toward(0, 0, 1)),
    )
    found = made.search("lamp", toward(1), 10)
    assert keys(found)[0] == 3
    assert set(keys(found)) == {1, 2, 3}
    by_key = {match.key: match for match in found}
    assert (by_key[1].meaning, by_key[2].words) == (0, 0)
    assert by_key[2].meaning == pytest.approx(1)
    assert by_key[1].words > 0


def test_without_a_vector_words_alone_are_searched() -> None:
    made = index(said(1, "lamp", vector=toward(1)), said(2, "ledger", vector=toward(1)))
    (match,) = made.search("lamp", None, 5)
    assert (match.key, match.meaning, match.score) == (1, 0, match.words)


def test_an_entry_without_a_vector_is_found_by_its_words() -> None:
    made = index(said(1, "lamp"), said(2, "ledger", vector=toward(1)))
    assert made.vector(1) is None
    assert keys(made.search("lamp", toward(0, 1), 5)) == [1]
    assert keys(index(said(1, "lamp")).search("lamp", toward(1), 5)) == [1]


def test_context_speaker_and_date_are_searched() -> None:
    when = datetime(2023, 5, 8, 12).timestamp()
    made = index(
        said(1, "Yes!", context="Did you sail?"), said(2, "Hm.", speaker="Morwenna"), said(3, "No.", when=when)
    )
    assert keys(made.search("sailing", None, 5)) == [1]
    assert keys(made.search("morwenna", None, 5)) == [2]
    assert keys(made.search("on the 8th of May 2023, in May", None, 5)) == [3]
    assert made.search("June", None, 5) == []


def test_a_date_beyond_the_calendar_is_no_hindrance() -> None:
    made = index(said(1, "lamp", when=1e18), said(2, "lamp", when=-1e18), said(3, "lamp", when=math.inf))
    assert keys(made.search("lamp", None, 5)) == [1, 2, 3]


def test_what_the_named_speaker_said_stands_above_what_was_said_to_them() -> None:
    made = index(
        said(1, "Ann, I like your boat very much", speaker="Bob"),
        said(2, "I like my boat very much indeed", speaker="Ann"),
        said(3, "somebody has a boat that is much liked", speaker=""),
    )
    assert keys(made.search("What boat does Ann like?", None, 5))[0] == 2
    assert keys(made.search("What boat does bob's like?", None, 5))[0] == 1
    without = {match.key: match.score for match in made.search("boat", None, 5)}
    named = {match.key: match.score for match in made.search("boat of Bob Ann", None, 5)}
    assert len(without) == len(named) == 3


def test_a_query_is_embedded_without_the_speakers_names() -> None:
    made = index(
        said(1, "lamp", speaker="Mary Ann O'Brien"), said(2, "灯台", speaker="小明"), said(3, "so", speaker="Will")
    )
    assert made.to_embed("What did MARY’s sister tell O'Brien?") == "What did sister tell ?"
    assert made.to_embed("小明喜欢什么?") == "喜欢什么?"
    assert made.to_embed("Will Josephine sail?") == "Will Josephine sail?"
    assert made.to_embed("Mary Ann?") == "Mary Ann?"


def test_neighbours_lend_to_what_was_said_beside_what_is_found() -> None:
    made = index(
        said(1, "Off we went."),
        said(2, "Where did you sail?", before=1),
        said(3, "To Lisbon.", before=2),
        said(4, "Nothing else.", before=99),
        said(5, "Where did she sail?"),
    )
    found = made.search("sail", None, 5)
    assert keys(found) == [2, 5, 1, 3]
    assert found[2].words == found[3].words == 0
    made.remove([2])
    assert keys(made.search("sail", None, 5)) == [5]
    made.add([said(2, "Where did you sail?", before=1)])
    assert keys(made.search("sail", None, 5)) == [2, 5, 1, 3]


def test_many_branches_after_one_turn_lend_as_much_as_the_best_of_them() -> None:
    one = index(said(1, "Hm."), said(2, "lamp", before=1), said(9, "x"))
    many = index(said(1, "Hm."), said(9, "x"), *(said(key, "lamp", before=1) for key in range(2, 8)))
    score_of_one, score_of_many = (
        {match.key: match.score / made.search("lamp", None, 9)[0].score for match in made.search("lamp", None, 9)}[1]
        for made in (one, many)
    )
    assert score_of_one == pytest.approx(score_of_many)


def test_scores_can_be_compared_between_queries() -> None:
    made = index(said(1, "the lamp is lit", vector=toward(1)), said(2, "soup", vector=toward(0, 1)))
    (good, *_) = made.search("is the lamp lit", toward(1), 1)
    (poor, *_) = made.search("lamp compass sextant barometer", toward(0.1, 0, 1), 1)
    assert 0 < poor.score < 0.5 * good.score
    assert good.score <= 1


def test_what_is_removed_is_gone_and_its_key_may_come_again() -> None:
    made = index(said(1, "lamp", vector=toward(1)), said(2, "ledger", vector=toward(1)))
    made.remove([1])
    assert keys(made.search("lamp ledger", toward(1), 5)) == [2]
    assert len(made) == 1
    for use in (lambda: made.remove([1]), lambda: made.vector(1)):
        with pytest.raises(KeyError):
            use()
    made.add([said(1, "harbour", vector=toward(0, 1))])
    assert keys(made.search("harbour", toward(0, 1), 5)) == [1]
    np.testing.assert_allclose(made.vector(1), toward(0, 1))
    made.add([said(1, "storm"), said(1, "tea")])
    assert (keys(made.search("tea", None, 5)), keys(made.search("storm harbour", None, 5))) == ([1], [])
    assert len(made) == 2


def test_hundreds_are_found_after_growing() -> None:
    made = MemoryIndex()
    for key in range(500):
        made.add([said(key, f"number{key}", vector=toward(math.cos(key / 400), math.sin(key / 400)))])
    assert keys(made.search("number321", None, 5)) == [321]
    assert keys(made.search("", toward(math.cos(1.0), math.sin(1.0)), 1)) == [400]
    assert len(made.search("", toward(1, 1), 1000)) == 500


ENTRIES = st.builds(
    Entry,
    key=st.integers(0, 15),
    text=TEXTS,
    context=TEXTS,
    speaker=st.sampled_from(["", "Ann", "Bob", "小明"]),
    when=st.sampled_from([None, 0.0, 1.7e9]),
    before=st.one_of(st.none(), st.integers(0, 15)),
    vector=st.one_of(
        st.none(),
        st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: math.hypot(*v) > 0.1).map(lambda v: toward(*v)),
    ),
)


@given(st.lists(st.one_of(ENTRIES, st.integers(0, 15)), max_size=60), TEXTS, st.sampled_from(["", " Ann", " 小明 Bob"]))
def test_a_used_index_answers_as_a_fresh_one(changes: list[Entry | int], text: str, name: str) -> None:
    used, entries = MemoryIndex(), {}
    for change in changes:
        if isinstance(change, Entry):
            used.add([change])
            entries[change.key] = change
        elif change in entries:
            used.remove([change])
            del entries[change]
    fresh = index(*entries.values())
    assert len(used) == len(entries)
    for vector in (None, toward(1, 0.5)):
        found, wanted = (made.search(text + name, vector, 50) for made in (used, fresh))
        assert {match.key: match.score for match in found} == pytest.approx(
            {match.key: match.score for match in wanted}, rel=1e-5
        )
        assert all(math.isfinite(match.score) and match.score > 0 for match in found)
        assert [match.score for match in found] == sorted((match.score for match in found), reverse=True)
