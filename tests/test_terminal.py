import random
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpla.core.terminal import TerminalSafeStream, terminal_safe

BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
FRAGMENTS = [
    "\x1b[31m", "\x1b[2J", "\x1b]52;c;aGk=\x07", "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "\x9b5n",
    "\x1bP1$r\x1b\\",
    "\x90q\x9c", "\x1b_apc\x1b\\", "\x1b^pm\x1b\\", "\x1bX sos\x1b\\", "\x1bc", "\x1b(0", "\x1b", "\x9d0;t\x9c",
    "\u202e", "\u2066", "\u200f", "\x00", "\x08", "\x7f", "\r", "\r\n", "\u2028", "\ud800",
    "plain", " text ", "\n", "\t", "世界", "👩‍🚀", "é", "[31m", "]52;", "m", "\x07", "\x1b[", "\x1b]", "\x85",
]  # fmt: skip


def unsafe_in(text: str) -> list[str]:
    return [
        character
        for character in text
        if (unicodedata.category(character) == "Cc" and character not in "\n\t")
        or unicodedata.bidirectional(character) in BIDI
        or character in "\u200e\u200f\u061c\u2028\u2029"
        or unicodedata.category(character) == "Cs"
    ]


def test_ten_thousand_hostile_strings_leave_nothing_that_a_terminal_obeys() -> None:
    chance = random.Random(20260)
    for _ in range(10_000):
        text = "".join(
            chance.choice(FRAGMENTS) if chance.random() < 0.7 else chr(chance.randrange(0x110000)) for _ in range(12)
        )
        assert unsafe_in(terminal_safe(text)) == [], repr(text)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join), st.data())
def test_pieces_are_as_safe_as_the_whole(text: str, data: st.DataObject) -> None:
    stream, shown, rest = TerminalSafeStream(), "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        shown += stream.feed(rest[:size])
        rest = rest[size:]
    shown += stream.close()
    assert unsafe_in(shown) == []


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a\x1b[31mred\x1b[0mb", "aredb"),
        ("copy \x1b]52;c;c2VjcmV0\x07this", "copy this"),
        ("over\rwritten\r\nline", "over\nwritten\nline"),
        ("abc\u202edcba", "abcdcba"),
        ("caf\u00e9 世界 👩‍🚀\ttab\n", "caf\u00e9 世界 👩‍🚀\ttab\n"),
        ("half \ud83d a character", "half \ufffd a character"),
    ],
)
def test_sequences_go_whole_and_text_stays(text: str, safe: str) -> None:
    assert terminal_safe(text) == safe


def test_a_sequence_cut_in_two_is_removed() -> None:
    stream = TerminalSafeStream()
    assert [stream.feed("a\x1b]52;c;c2Vj"), stream.feed("cmV0"), stream.feed("\x07b"), stream.close()] == [
        "a",
        "",
        "b",
        "",
    ]


def test_an_endless_sequence_does_not_hold_text_back_for_ever() -> None:
    stream = TerminalSafeStream()
    shown = "".join(stream.feed("\x1b]" + "x" * 5000) for _ in range(3)) + stream.close()
    assert re.search("x{1000}", shown)
    assert unsafe_in(shown) == []
