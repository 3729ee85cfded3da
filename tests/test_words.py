import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpla.memory.words import WordIndex, words_of

SOME = ["lamp", "ledger", "harbour", "storm", "the", "灯台", "tea", "teas", "2023"]
TEXTS = st.lists(st.sampled_from(SOME), max_size=6).map(" ".join)


def index(*texts: str) -> WordIndex:
    made = WordIndex()
    for key, text in enumerate(texts):
        made.add(key, text)
    return made


def keys(made: WordIndex, query: str, limit: int = 10) -> list[int]:
    return [key for key, _ in made.search(query, limit)]


def test_words_are_folded_stemmed_and_without_the_commonest() -> None:
    assert words_of("She was PAINTING the Café’s walls, isn't it?") == ["paint", "cafe", "wall"]
    assert words_of("ﬁnally ８ May") == words_of("finally 8 may")
    assert words_of("") == words_of("... the — of") == []


def test_cjk_is_found_by_characters_and_pairs_beside_other_words() -> None:
    assert words_of("あの灯台9号, lamp") == ["あ", "の", "灯", "台", "あの", "の灯", "灯台", "9", "号", "lamp"]
    made = index("港の灯台の話", "台所と灯り", "a lamp")
    assert keys(made, "灯台はどこ?") == [0, 1]
    assert keys(made, "灯") == [1, 0]
    assert keys(index("등대는 멀다", "산"), "등대") == [0]


def test_marks_that_are_no_accents_stay() -> None:
    assert words_of("が") == ["が"]
    assert words_of("か") != words_of("が")
    assert words_of("e\u0301te\u0301") == words_of("ete")


def test_rare_words_and_short_texts_stand_above() -> None:
    made = index("tea and the harbour", "tea and the ledger", "tea", "tea and much else besides that was said of it")
    assert keys(made, "tea ledger")[0] == 1
    assert keys(made, "tea")[0] == 2
    assert keys(made, "tea", limit=2) == keys(made, "tea")[:2]
    assert keys(made, "tea", limit=0) == keys(made, "compass") == keys(made, "the") == []


def test_equal_texts_come_by_key() -> None:
    made = WordIndex()
    for key in (5, 3, 9):
        made.add(key, "lamp")
    assert keys(made, "lamp", limit=2) == [3, 5]


def test_shares_say_how_much_of_the_query_is_there() -> None:
    made = index("lamp oil", "ledger", "harbour")
    _, whole = made.shares("lamp oil")
    _, half = made.shares("lamp compass")
    assert 0 < half[0] < whole[0] <= 1


def test_a_removed_text_is_gone() -> None:
    made = index("lamp", "lamp ledger")
    made.remove(0)
    assert keys(made, "lamp") == [1]
    assert 0 not in made
    assert len(made) == 1
    with pytest.raises(KeyError):
        made.remove(0)
    with pytest.raises(KeyError):
        made.remove(7)


def test_a_key_that_is_added_again_has_its_new_text() -> None:
    made = index("lamp")
    made.add(0, "ledger")
    assert (keys(made, "lamp"), keys(made, "ledger"), len(made)) == ([], [0], 1)


def test_what_comes_and_goes_leaves_nothing_behind() -> None:
    made = WordIndex()
    for key in range(1000):
        made.add(key, f"lamp number{key}")
        if key >= 10:
            made.remove(key - 10)
    assert keys(made, "lamp", limit=99) == list(range(990, 1000))
    assert keys(made, "number5") == []
    assert len(made._keys) < 200


@given(st.lists(st.tuples(st.integers(0, 20), st.one_of(st.none(), TEXTS)), max_size=150), TEXTS)
def test_a_used_index_answers_as_a_fresh_one(changes: list[tuple[int, str | None]], query: str) -> None:
    used, texts = WordIndex(), {}
    for key, text in changes:
        if text is not None:
            used.add(key, text)
            texts[key] = text
        elif key in texts:
            used.remove(key)
            del texts[key]
    fresh = WordIndex()
    for key, text in texts.items():
        fresh.add(key, text)
    assert used.search(query, 50) == fresh.search(query, 50)


@given(st.lists(st.text(max_size=40), max_size=8), st.text(max_size=40))
def test_any_text_can_be_added_and_searched(texts: list[str], query: str) -> None:
    made = index(*texts)
    assert all(0 < score < float("inf") for _, score in made.search(query, 10))
    for key, text in enumerate(texts):
        assert (key in keys(made, text)) == bool(words_of(text))
