import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rpla.core.chatlog import ChatInfo, ChatLog, Turn
from rpla.core.errors import RplaError
from rpla.core.ids import id_of
from rpla.core.transcript import (
    LONGEST_LINE,
    Names,
    export_json,
    export_markdown,
    export_sillytavern,
    import_chat,
    import_json,
    import_sillytavern,
)

WHO = {"user": id_of("user", "me"), "character": id_of("bundled", "ada-lovelace")}
NAMES = Names(user="Charles", character="Ada")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ChatLog]:
    opened = ChatLog(tmp_path / "chats.db")
    yield opened
    opened.close()


@pytest.fixture
def chat(log: ChatLog) -> ChatInfo:
    # Greeting, question, two answers of which the first is open, and a turn after the second.
    info = log.create_chat(**WHO, title="On engines")
    greeting = log.append(info.id, None, "character", "Good day.", meta={"greeting": 0})
    question = log.append(info.id, greeting.id, "user", "What does it weave?")
    first = log.append(info.id, question.id, "character", "Numbers.", meta={"finish": "length"})
    second = log.append(info.id, question.id, "character", "Algebraic\n\npatterns \u2028 \x9b2J “so”.")
    log.append(info.id, second.id, "user", "Like a loom?")
    log.set_head(info.id, first.id)
    return log.chat(info.id)


def shape(log: ChatLog, info: ChatInfo) -> list[tuple[Any, ...]]:
    # All turns, without what an import gives anew.
    turns = log.turns(info.id)
    place = {turn.id: number for number, turn in enumerate(turns)}
    return [(t.parent and place[t.parent], t.role, t.text, t.created, dict(t.meta), t.id == info.head) for t in turns]


def lines(*messages: dict[str, Any] | str) -> str:
    return "".join((m if isinstance(m, str) else json.dumps(m)) + "\n" for m in messages)


def branch(log: ChatLog, info: ChatInfo) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in log.branch(info.head)]


HEADER = {"user_name": "Charles", "character_name": "Ada", "create_date": "2024-3-1 @10h 21m 3s 45ms"}
HELLO = {"name": "Ada", "is_user": False, "mes": "Hello"}


def test_markdown_reads_as_the_open_branch(log: ChatLog, chat: ChatInfo) -> None:
    expected = "# On engines\n\n**Ada:**\n\nGood day.\n\n**Charles:**\n\nWhat does it weave?\n\n**Ada:**\n\nNumbers.\n"
    assert export_markdown(chat, log.turns(chat.id), NAMES) == expected
    assert export_markdown(chat, log.branch(chat.head), NAMES) == expected


def test_markdown_of_an_empty_chat_is_its_title(log: ChatLog) -> None:
    assert export_markdown(log.create_chat(**WHO), [], NAMES) == "# Ada\n"


def test_json_brings_back_every_turn_branch_date_and_meta(log: ChatLog, chat: ChatInfo) -> None:
    text = export_json(chat, log.turns(chat.id), NAMES)
    document = json.loads(text)
    assert (document["format"], document["version"], len(document["turns"])) == ("rpla-chat", 1, 5)
    assert document["branch"] == [turn.id for turn in log.branch(chat.head)]
    again = import_json(text, log, **WHO)
    assert again.notes == ()
    assert shape(log, again.chat) == shape(log, chat)
    assert again.chat.title == "On engines"
    assert {turn.id for turn in log.turns(again.chat.id)}.isdisjoint(turn.id for turn in log.turns(chat.id))


def test_sillytavern_brings_back_the_open_branch_and_its_alternatives(log: ChatLog, chat: ChatInfo) -> None:
    text = export_sillytavern(chat, log.turns(chat.id), NAMES)
    again = import_sillytavern(text, log, **WHO)
    assert branch(log, again.chat) == branch(log, chat)
    last = log.turn(again.chat.head or "")
    assert [t.text for t in log.children(again.chat.id, last.parent)] == [
        "Numbers.",
        "Algebraic\n\npatterns \u2028 \x9b2J “so”.",
    ]
    assert [t.created for t in log.branch(again.chat.head)] == [t.created for t in log.branch(chat.head)]
    assert again.chat.turns == 4
    assert again.notes == ()


def test_sillytaverns_lines_are_as_that_program_writes_them(log: ChatLog, chat: ChatInfo) -> None:
    header, *messages = [
        json.loads(line) for line in export_sillytavern(chat, log.turns(chat.id), NAMES).split("\n")[:-1]
    ]
    assert header["user_name"] == "Charles"
    assert header["character_name"] == "Ada"
    assert header["chat_metadata"] == {}
    assert [m["name"] for m in messages] == ["Ada", "Charles", "Ada"]
    assert [m["is_user"] for m in messages] == [False, True, False]
    assert all(m["swipes"][m["swipe_id"]] == m["mes"] and m["is_system"] is False for m in messages)
    assert len(messages[2]["swipes"]) == 2


@pytest.mark.parametrize("export", [export_json, export_sillytavern])
def test_the_format_of_a_file_is_recognised(log: ChatLog, chat: ChatInfo, export: Any) -> None:
    text = export(chat, log.turns(chat.id), NAMES)
    assert branch(log, import_chat("\ufeff" + text, log, **WHO).chat) == branch(log, chat)


def test_the_chosen_swipe_goes_on_and_the_others_stand_beside_it(log: ChatLog) -> None:
    info = import_sillytavern(
        lines(
            HEADER,
            {"name": "Ada", "is_user": False, "mes": "b", "swipes": ["a", "b", "c"], "swipe_id": 1},
            {"name": "Charles", "is_user": True, "mes": "yes"},
        ),
        log,
        **WHO,
    ).chat
    assert branch(log, info) == [("character", "b"), ("user", "yes")]
    assert [t.text for t in log.children(info.id, None)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("swipes", "swipe_id", "expected"),
    [
        (None, None, ["said"]),
        ([], 0, ["said"]),
        (["other"], 0, ["other", "said"]),
        (["said", "other"], 9, ["said", "other"]),
        (["other", "said"], "x", ["other", "said"]),
        (["", "said", None, 5, "  "], 1, ["said"]),
        ("said", 0, ["said"]),
        (["said", "said"], 1, ["said", "said"]),
    ],
)
def test_odd_swipes_lose_nothing_that_was_said(
    log: ChatLog, swipes: object, swipe_id: object, expected: list[str]
) -> None:
    message = {"name": "Ada", "is_user": False, "mes": "said", "swipes": swipes, "swipe_id": swipe_id}
    info = import_sillytavern(lines(HEADER, message), log, **WHO).chat
    assert [t.text for t in log.children(info.id, None)] == expected
    assert branch(log, info) == [("character", "said")]


def test_blank_lines_carriage_returns_byte_order_marks_and_missing_headers_are_no_matter(log: ChatLog) -> None:
    text = "\ufeff\r\n" + lines({"mes": "Hello\u2028there"}, "", "  ", {"mes": "Hi", "is_user": True}).replace(
        "\n", "\r\n"
    )
    info = import_sillytavern(text, log, **WHO).chat
    assert branch(log, info) == [("character", "Hello\u2028there"), ("user", "Hi")]


def test_a_raw_line_separator_inside_a_message_does_not_end_the_line(log: ChatLog) -> None:
    info = import_sillytavern('{"mes": "one\u2028two\x85three"}', log, **WHO).chat
    assert branch(log, info) == [("character", "one\u2028two\x85three")]


def test_what_is_left_out_is_counted(log: ChatLog) -> None:
    system = {"name": "System", "is_user": False, "is_system": True, "mes": "joined"}
    empty = {"name": "Ada", "is_user": False, "mes": " "}
    other = {"name": "Holmes", "is_user": False, "mes": "Elementary."}
    half = {"name": "Ada", "is_user": False, "mes": "half \ud800"}
    imported = import_sillytavern(lines(HEADER, HELLO, system, system, empty, other, half), log, **WHO)
    assert imported.notes == (
        "2 lines of the system were left out.",
        "1 message without text was left out.",
        "1 message is by another character of a group.",
        "1 text held half a character; U+FFFD stands for it.",
    )
    assert [text for _, text in branch(log, imported.chat)] == ["Hello", "Elementary.", "half \ufffd"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not a JSON object"),
        ('"text"', "is not a JSON object"),
        ('{"name": "Ada"}', "no text in mes"),
        ('{"mes": 5}', "no text in mes"),
        ('{"mes": null}', "no text in mes"),
        ('{"mes": ' + "[" * 100_000, "is not valid JSON"),
        ('{"mes": "x", "n": ' + "9" * 10_000 + "}", "is not valid JSON"),
        ('{"mes": "' + "x" * LONGEST_LINE + '"}', "is longer than"),
    ],
    ids=["cut", "list", "text", "no mes", "number", "null", "deep", "digits", "long"],
)
def test_a_bad_line_is_named_and_nothing_is_created(log: ChatLog, bad: str, reason: str) -> None:
    with pytest.raises(RplaError, match=f"Line 4 .*{reason}"):
        import_sillytavern(lines(HEADER, HELLO, "", bad, HELLO), log, **WHO)
    assert log.chats() == []


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_an_empty_file_is_refused(log: ChatLog, text: str) -> None:
    with pytest.raises(RplaError, match="holds no chat"):
        import_chat(text, log, **WHO)
    assert log.chats() == []


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("2024-03-01T10:21:03.045Z", datetime(2024, 3, 1, 10, 21, 3, 45000, UTC)),
        ("2024-3-1 @10h 21m 3s 45ms", datetime(2024, 3, 1, 10, 21, 3, 45000, UTC)),
        ("2024-3-1@10h21m3s", datetime(2024, 3, 1, 10, 21, 3, 0, UTC)),
        ("March 1, 2024 2:21pm", datetime(2024, 3, 1, 14, 21)),
        (1709288463045, datetime(2024, 3, 1, 10, 21, 3, 45000, UTC)),
        ("1709288463045", datetime(2024, 3, 1, 10, 21, 3, 45000, UTC)),
    ],
)
def test_dates_are_read_in_all_the_ways_they_were_written(log: ChatLog, date: object, expected: datetime) -> None:
    info = import_sillytavern(lines({**HELLO, "send_date": date}), log, **WHO).chat
    assert log.turns(info.id)[0].created == expected.timestamp()
    assert info.created == expected.timestamp()


@pytest.mark.parametrize("date", ["soon", "", -1, 1e300, 10**400, True, [], "9" * 19, "2024-99-99 @1h 1m 1s 1ms"])
def test_a_date_that_is_none_is_the_one_before(log: ChatLog, date: object) -> None:
    info = import_sillytavern(lines({**HELLO, "send_date": 1709288463045}, {**HELLO, "send_date": date}), log, **WHO)
    assert [t.created for t in log.turns(info.chat.id)] == [1709288463.045] * 2


def test_ten_thousand_lines_come_in_within_seconds(log: ChatLog) -> None:
    messages = [
        {"name": "x", "is_user": n % 2 == 1, "mes": f"message {n}", "swipes": [f"message {n}", "other"], "swipe_id": 0}
        for n in range(10_000)
    ]
    started = time.monotonic()
    info = import_sillytavern(lines(HEADER, *messages), log, **WHO).chat
    assert time.monotonic() - started < 10
    assert info.turns == 20_000
    assert len(log.branch(info.head)) == 10_000


def ours(**changes: Any) -> str:
    turn: dict[str, Any] = {"id": "a", "parent": None, "role": "user", "text": "hello", "created": 5.0, "meta": {}}
    return json.dumps(
        {"format": "rpla-chat", "version": 1, "branch": ["a"], "turns": [turn | changes.pop("turn", {})]} | changes
    )


def test_the_least_that_our_format_needs_is_enough(log: ChatLog) -> None:
    info = import_json(ours(), log, **WHO).chat
    assert branch(log, info) == [("user", "hello")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "Upgrade rpla"),
        ({"format": "other"}, "not a chat that rpla exported"),
        ({"turns": None}, "turns in the file is not valid"),
        ({"branch": ["b"]}, "before it comes"),
        ({"turn": {"role": "system"}}, "turns.0.role"),
        ({"turn": {"text": None}}, "turns.0.text"),
        ({"turn": {"parent": "a"}}, "before it comes"),
        ({"turn": {"created": float("inf")}}, "turns.0.created"),
        ({"turn": {"created": float("nan")}}, "turns.0.created"),
        ({"turn": {"meta": {"greeting": "first"}}}, "turns.0.meta.greeting"),
        ({"turn": {"meta": {"sections": [1]}}}, "turns.0.meta.sections"),
        ({"turn": {"meta": []}}, "turns.0.meta"),
    ],
)
def test_what_our_format_does_not_allow_is_named_and_nothing_is_created(
    log: ChatLog, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RplaError) as raised:
        import_json(ours(**changes), log, **WHO)
    assert reason in str(raised.value)
    assert log.chats() == []


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]", "5"])
def test_what_is_not_our_format_at_all_is_refused(log: ChatLog, text: str) -> None:
    with pytest.raises(RplaError):
        import_json(text, log, **WHO)


def test_half_characters_in_our_format_are_replaced_everywhere(log: ChatLog) -> None:
    text = ours(turn={"text": "half \ud800", "meta": {"note": ["\ud800"]}}, title="t \ud800")
    imported = import_json(text, log, **WHO)
    turn: Turn = log.turns(imported.chat.id)[0]
    assert (turn.text, dict(turn.meta)) == ("half \ufffd", {"note": ["\ufffd"]})
    assert imported.chat.title == "t \ufffd"
    assert len(imported.notes) == 1
