"""No key of a card may stop a chat, however it is written."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpla.core.character import Lore, LoreEntry
from rpla.core.chatlog import Turn
from rpla.core.lorebook import MOST_PATTERNS, pattern_of, pattern_problem, read_lore
from rpla.core.macros import Macros
from rpla.core.models.base import estimate_tokens
from rpla.core.untrusted_json import Repairs
from rpla.memory.lore import LoreRecaller
from rpla.memory.lore_keys import Keys
from rpla.memory.lore_patterns import Patterns
from rpla.memory.recall import Moment

MATCHING = ("(a+)+$", "(x|x)*", "(a|a)*b?", "(.*)*", "([a-z]+)*$", "^(a?){50}a{50}", "(a*)*b|a", "a{1,999}", "")
REFUSED = (
    *("a{1000}{1000}", "(.{100}){100}", "((a{100}){100}){100}", r"\p{L}{1000}", "(?=a)a", "(?<!b)a", r"(a)\1", "(?>a)"),
    *("(", "[", "*", "a**", "\\", "(?P<n>a", "a{2,1}", "(?<n", r"\u{110000}", "a" * 1001, "(" * 2000, "\ud800"),
)
TEXT = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"


def recaller(*keys: str, **fields: Any) -> LoreRecaller:
    entries = tuple(LoreEntry(keys=(key,), content=f"entry {place}", **fields) for place, key in enumerate(keys))
    return LoreRecaller(Lore(entries=entries, token_budget=10_000), Macros(char="A", user="B"), estimate_tokens)


async def recalled(lore: LoreRecaller, text: str) -> list[str]:
    turn = Turn(id="1", chat="c", parent=None, role="user", text=text, created=0.0)
    sections = await lore(Moment(turns=[turn]))
    return sections[0].text.split("\n") if sections else []


def keys_of(*keys: str, regex: bool, case_sensitive: bool = False, whole_words: bool = True) -> Keys:
    made = Keys()
    for key in keys:
        made.number(key, regex=regex, case_sensitive=case_sensitive, whole_words=whole_words)
    made.settle()
    return made


async def test_patterns_that_would_explode_elsewhere_match_all_of_a_long_text() -> None:
    lore = recaller(*MATCHING, regex=True)
    assert await recalled(lore, "a" * 100_000) == [f"entry {place}" for place in range(len(MATCHING) - 1)]
    assert lore.notices == []


@pytest.mark.parametrize("pattern", REFUSED)
async def test_a_refused_pattern_is_named_and_the_others_go_on(pattern: str) -> None:
    lore = recaller(pattern, "aa+", regex=True)
    assert await recalled(lore, TEXT) == ["entry 1"]
    (notice,) = lore.notices
    assert pattern[:10] in notice


@pytest.mark.parametrize("pattern", [pattern for pattern in REFUSED if pattern != "\ud800"])
def test_a_card_with_a_refused_pattern_says_so_when_it_is_read(pattern: str) -> None:
    repairs = Repairs()
    entry = {"keys": ["lamp", pattern], "content": "c", "use_regex": True}
    lore, _ = read_lore({"entries": [entry]}, "book", repairs)
    assert lore.entries[0].keys == ("lamp", pattern)
    (note,) = repairs.notes
    assert note.startswith("book.entries[0]: the key ")
    assert "is disabled" in note


def test_a_book_has_a_bounded_number_of_patterns() -> None:
    repairs = Repairs()
    keys = [f"/x{number}/" for number in range(MOST_PATTERNS + 5)]
    lore, _ = read_lore({"entries": [{"keys": keys, "content": "c"}]}, "book", repairs)
    assert [note for note in repairs.notes if "patterns are run" in note]
    found = keys_of(*lore.entries[0].keys, regex=False).found(f"x0 x{MOST_PATTERNS - 1} x{MOST_PATTERNS + 4}")
    assert MOST_PATTERNS - 1 in found
    assert MOST_PATTERNS + 4 not in found


def test_more_words_than_one_filter_holds_are_still_found() -> None:
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghij", k=300)) for _ in range(1000)]
    patterns = Patterns([(f"{word}(x|y)", number, word) for number, word in enumerate(words)])
    assert patterns.notices == []
    for number in (0, 499, 999):
        assert patterns.found(f"so {words[number]}x") == {number}
    assert patterns.found("nothing") == set()


def test_a_slow_pattern_rests_and_is_named() -> None:
    patterns = Patterns([("lamp", 0, "lamp"), ("oil", 1, "oil")], slow_s=-1.0)
    assert patterns.found("a lamp") == {0}
    assert patterns.found("a lamp, oil") == {1}
    assert ["lamp" in notice for notice in patterns.notices] == [True, False]


def test_patterns_have_a_bounded_time_for_one_text() -> None:
    patterns = Patterns([(f"la?mp{number}", number, "") for number in range(9)], patience_s=-1.0)
    assert len(patterns.found(" ".join(f"lamp{number}" for number in range(9)))) == 1
    (notice,) = patterns.notices
    assert "took too long" in notice


def test_of_a_long_text_patterns_search_the_end_and_words_the_whole() -> None:
    text = f"lamp {'so ' * 10_000} oil"
    assert keys_of("/lamp/", "/oil/", "lamp", "oil", regex=False).found(text) == {1, 2, 3}


_pieces = st.sampled_from(
    [
        *(
            "a",
            "b",
            "é",
            "灯",
            ".",
            r"\w",
            r"\b",
            "[ab]",
            "[^a]",
            "(",
            ")",
            "(?:",
            "(?=",
            "|",
            "*",
            "+",
            "?",
            "{9}",
            "/",
        ),
        *(
            "{1,50}",
            "{1000}",
            "^",
            "$",
            r"\1",
            "\\",
            r"\u0061",
            r"\p{L}",
            "{{user}}",
            " ",
            "\n",
            "(?i)",
            "\ud800",
            "\0",
        ),
    ]
)
_hostile = st.lists(_pieces, max_size=30).map("".join) | st.text(max_size=12) | st.sampled_from([*MATCHING, *REFUSED])
_texts = st.text(st.sampled_from("ab灯é \n"), max_size=60) | st.text(max_size=30) | st.just("ab" * 3000)


@settings(max_examples=300, deadline=None)
@given(st.lists(_hostile, max_size=6), st.lists(_texts, max_size=3), st.booleans(), st.booleans(), st.booleans())
def test_no_key_and_no_text_raises_and_every_pattern_is_run_or_named(
    keys: list[str], texts: list[str], regex: bool, case_sensitive: bool, whole_words: bool
) -> None:
    made = keys_of(*keys, regex=regex, case_sensitive=case_sensitive, whole_words=whole_words)
    for text in texts:
        assert made.found(text) <= set(range(len(keys)))
    patterns = {pattern_of(key, regex=regex, case_sensitive=case_sensitive) for key in keys} - {None}
    refused = [pattern for pattern in patterns if pattern is not None and pattern_problem(pattern)]
    assert bool(made.notices) == bool(refused)
    assert len(made.notices) <= len(refused)


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.sampled_from("ab灯 '-C+"), min_size=1, max_size=6), st.text(st.sampled_from("ab灯 '-C+"), max_size=20)
)
def test_words_are_found_where_python_finds_them(key: str, text: str) -> None:
    key = key.strip()
    inside = keys_of(key, regex=False, whole_words=False).found(text)
    assert bool(inside) == (key != "" and key.lower() in text.lower())
    whole = keys_of(key, regex=False).found(text)
    assert whole <= inside
    assert not key or keys_of(key, regex=False).found(f"x {key}, {text}")
