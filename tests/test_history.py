from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage

from rpla.core.history import MESSAGE_TOKENS, History


def filled(room: int, sizes: list[int]) -> History:
    history = History(room)
    for number, size in enumerate(sizes):
        history.append(HumanMessage(str(number)), size)
    return history


@given(st.lists(st.integers(1, 200), max_size=60), st.integers(300, 2000))
def test_the_window_never_overflows_and_always_ends_with_the_newest(sizes: list[int], room: int) -> None:
    history = filled(room, sizes)
    assert history.tokens <= room
    assert history.dropped + len(history.window) == len(sizes)
    assert history.tokens == sum(sizes[history.dropped :]) + MESSAGE_TOKENS * len(history.window)
    if sizes:
        assert history.window[-1].text == str(len(sizes) - 1)


def test_an_overflow_takes_the_older_half_at_once() -> None:
    history = filled(1000, [94] * 10)
    assert history.dropped == 0
    history.append(HumanMessage("one more"), 94)
    assert history.dropped == 6
    assert history.tokens <= 500


def test_a_message_larger_than_the_room_stays_alone() -> None:
    history = filled(100, [10, 10, 500])
    assert [message.text for message in history.window] == ["2"]


def test_taking_back_undoes_the_last_append() -> None:
    history = filled(1000, [10, 20, 30])
    history.pop()
    assert (history.tokens, history.newest_tokens) == (10 + 20 + 2 * MESSAGE_TOKENS, 20 + MESSAGE_TOKENS)


def test_loading_counts_only_what_it_keeps() -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return 94

    history = History.load(1000, [HumanMessage(str(n)) for n in range(10_000)], count)
    assert history.dropped == 9990
    assert len(counted) == 11
    assert history.window[-1].text == "9999"
