from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import HumanMessage

from rpla.core.history import MESSAGE_TOKENS, History, Summary


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


def summary_of(turns: int, text: str = "They talked.", first: int = 1) -> Summary:
    through = first + turns - 1
    return Summary(chat="c", first=f"t{first}", last=f"t{through}", turns=turns, through=through, text=text)


def counted(text: str) -> int:
    return 94


def loaded(turns: int, *summaries: Summary, room: int = 1000) -> History:
    return History.load(room, [HumanMessage(str(n)) for n in range(turns)], counted, summaries)


def test_a_prepared_summary_takes_the_place_of_what_it_covers_at_the_next_drop_and_not_before() -> None:
    history = filled(1000, [94] * 8)
    history.prepare(summary_of(6), counted)
    history.append(HumanMessage("9"), 94)
    assert (history.summarised, history.dropped) == (None, 0)
    history.append(HumanMessage("10"), 94)
    history.append(HumanMessage("11"), 94)
    assert (history.summarised, history.dropped) == (summary_of(6), 6)
    assert (history.tokens, history.summary_tokens, history.prepared) == (500, 100, None)


def test_what_was_summed_up_stays_the_same_until_the_next_drop() -> None:
    history = filled(1000, [94] * 8)
    history.prepare(summary_of(6), counted)
    for number in range(40):
        before, dropped = history.summarised, history.dropped
        history.append(HumanMessage(f"more {number}"), 94)
        if history.dropped == dropped:
            assert history.summarised is before
        elif history.prepared is None and history.summarised is before:
            assert history.tokens + history.summary_tokens <= 500
        if history.nearly_full and history.prepared is None:
            history.prepare(summary_of(history.next_drop(100), f"Wider {number}."), counted)
    assert history.summarised is not None
    assert history.summarised.text.startswith("Wider")


def test_without_a_new_summary_the_old_one_stays_and_the_half_goes_without() -> None:
    history = filled(1000, [94] * 8)
    history.prepare(summary_of(6), counted)
    for number in range(8):
        history.append(HumanMessage(f"more {number}"), 94)
    assert history.summarised == summary_of(6)
    assert history.dropped > 6
    assert history.tokens + history.summary_tokens <= 1000


@given(
    st.lists(st.tuples(st.integers(1, 900), st.integers(0, 250), st.booleans()), max_size=60), st.integers(300, 2000)
)
def test_the_window_and_its_summary_never_overflow(steps: list[tuple[int, int, bool]], room: int) -> None:
    history, sizes = History(room), []
    for size, summary_size, pop in steps:
        history.append(HumanMessage(str(len(sizes))), size)
        sizes.append(size)
        if pop and len(history.window) > 1:
            history.pop()
            sizes.pop()
        if history.nearly_full and history.prepared is None:
            through = history.next_drop(summary_size)
            history.prepare(summary_of(through), lambda _, size=summary_size: size)
        alone = len(history.window) == 1 and history.summarised is None
        assert history.tokens + history.summary_tokens <= room or alone
        assert history.dropped + len(history.window) == len(sizes)
        assert history.tokens == sum(sizes[history.dropped :]) + MESSAGE_TOKENS * len(history.window)
        assert history.window[-1].text == str(len(sizes) - 1)
        for summary in (history.summarised, history.prepared):
            assert summary is None or summary.through < len(sizes)


def test_taking_turns_back_takes_back_a_summary_that_covers_them() -> None:
    history = filled(1000, [94] * 8)
    history.prepare(summary_of(6), counted)
    history.pop()
    history.pop()
    assert history.prepared == summary_of(6)
    history.pop()
    assert history.prepared is None


def test_a_message_as_large_as_the_room_leaves_none_for_a_summary() -> None:
    history = filled(1000, [94] * 8)
    history.prepare(summary_of(6), counted)
    history.append(HumanMessage("huge"), 960)
    assert [message.text for message in history.window] == ["huge"]
    assert history.summarised is None


def test_a_summary_of_nothing_in_the_window_or_of_all_of_it_is_not_taken() -> None:
    history = filled(1000, [94] * 11)
    assert history.dropped == 6
    for turns in (5, 6, 11, 12):
        history.prepare(summary_of(turns), counted)
        assert history.prepared is None


def test_a_chat_that_is_opened_again_begins_right_after_its_summary() -> None:
    history = loaded(20, summary_of(12))
    assert (history.summarised, history.dropped) == (summary_of(12), 12)
    assert history.tokens == 800


def test_a_chat_that_is_opened_again_stands_as_it_was_left() -> None:
    history = loaded(20, summary_of(6), summary_of(12), summary_of(17))
    assert (history.summarised, history.dropped) == (summary_of(12), 12)
    assert history.prepared == summary_of(17)


def test_a_chat_that_fits_whole_needs_no_summary_yet() -> None:
    history = loaded(8, summary_of(6))
    assert (history.summarised, history.dropped, history.prepared) == (None, 0, summary_of(6))


def test_after_a_summary_of_long_ago_the_newest_turns_stand() -> None:
    history = loaded(50, summary_of(6))
    assert (history.summarised, history.dropped) == (summary_of(6), 41)
    assert history.tokens + history.summary_tokens == 1000


def test_a_summary_of_the_whole_branch_is_not_used() -> None:
    history = loaded(20, summary_of(20))
    assert (history.summarised, history.prepared, history.dropped) == (None, None, 10)


def test_a_summary_names_its_turns() -> None:
    assert summary_of(30, first=11).source == "summary of turns 11 to 40"
