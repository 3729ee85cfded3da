import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest
from langchain_core.messages import BaseMessage

from rpla.core.character import Persona
from rpla.core.chatlog import ChatLog
from rpla.core.errors import RplaError
from rpla.core.events import Notice, TextDelta, TurnCommitted, TurnReplaced, TurnStarted
from rpla.core.models.base import Capabilities, Options, Piece
from rpla.core.models.scripted import ScriptedModel
from tests.stage import KEEPER, new_chat, open_log, play, said, scripted


@pytest.fixture
def log(tmp_path: Path) -> ChatLog:
    return open_log(tmp_path)


def texts(chat) -> list[str]:
    return [turn.text for turn in chat.turns]


async def test_a_turn_is_started_streamed_and_committed(log: ChatLog) -> None:
    chat = new_chat(log, scripted("Sit by the stove."))
    events = await play(chat.stream("Good evening."))
    assert isinstance(events[0], TurnStarted)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "Sit by the stove."
    assert isinstance(events[-1], TurnCommitted)
    assert [(turn.role, turn.text) for turn in log.branch(log.head(chat.id))] == [
        ("user", "Good evening."),
        ("character", "Sit by the stove."),
    ]


async def test_the_users_text_is_saved_before_the_model_is_asked(log: ChatLog) -> None:
    seen: list[list[str]] = []

    def reply(_: Sequence[BaseMessage]) -> str:
        seen.append([turn.text for turn in log.branch(log.head(chat.id))])
        return "Yes."

    chat = new_chat(log, ScriptedModel(reply))
    await play(chat.stream("Is it late?"))
    assert seen == [["Is it late?"]]


async def test_a_model_that_fails_loses_nothing_and_can_be_asked_again(log: ChatLog) -> None:
    model = scripted()
    chat = new_chat(log, model)
    with pytest.raises(RplaError, match="no reply left"):
        await play(chat.stream("Are you there?"))
    assert texts(chat) == ["Are you there?"]
    model.enqueue("I am now.")
    assert await said(chat.regenerate()) == "I am now."
    assert texts(chat) == ["Are you there?", "I am now."]


async def test_a_model_that_dies_in_mid_sentence_leaves_what_it_said(log: ChatLog) -> None:
    class Dying(ScriptedModel):
        async def pieces(self, messages: Sequence[BaseMessage], options: Options) -> AsyncGenerator[Piece, None]:
            yield Piece(text="The light went")
            raise RplaError("The endpoint is gone.")

    chat = new_chat(log, Dying())
    with pytest.raises(RplaError, match="gone"):
        await play(chat.stream("What happened?"))
    assert texts(chat) == ["What happened?", "The light went"]
    assert chat.turns[-1].meta["finish"] == "stopped"


async def test_leaving_the_stream_stops_the_model_and_keeps_what_came(log: ChatLog) -> None:
    model = ScriptedModel("one two three four five six seven eight nine ten", delay_s=0.01)
    chat = new_chat(log, model)
    stream = chat.stream("Count.")
    async for event in stream:
        if isinstance(event, TextDelta) and "three" in event.text:
            break
    await stream.aclose()
    assert texts(chat)[1].startswith("one two three")
    assert "ten" not in texts(chat)[1]
    assert chat.turns[-1].meta["finish"] == "stopped"
    assert len(log.branch(log.head(chat.id))) == 2


async def test_leaving_before_the_first_word_keeps_the_question_alone(log: ChatLog) -> None:
    chat = new_chat(log, ScriptedModel("late", delay_s=30))
    stream = chat.stream("Quick.")
    await anext(stream)
    await stream.aclose()
    assert texts(chat) == ["Quick."]


async def test_leaving_after_the_commit_does_not_save_the_reply_twice(log: ChatLog) -> None:
    chat = new_chat(log, scripted("Once."))
    stream = chat.stream("Say it.")
    async for event in stream:
        if isinstance(event, TurnCommitted):
            break
    await stream.aclose()
    assert texts(chat) == ["Say it.", "Once."]
    assert chat.info.turns == 2


async def test_empty_text_is_refused(log: ChatLog) -> None:
    with pytest.raises(RplaError, match="nothing to say"):
        await play(new_chat(log, scripted("x")).stream("  \n"))


async def test_messages_sent_at_once_are_answered_one_after_another(log: ChatLog) -> None:
    chat = new_chat(log, ScriptedModel("first", "second", "third", delay_s=0.005))
    await asyncio.gather(*(play(chat.stream(text)) for text in ("a", "b", "c")))
    assert texts(chat) == ["a", "first", "b", "second", "c", "third"]


async def test_leaving_the_role_is_repaired_once_and_counted(log: ChatLog) -> None:
    model = scripted("As an AI language model, I cannot keep a lighthouse.", "I keep it alone.")
    chat = new_chat(log, model)
    events = await play(chat.stream("Who keeps it?"))
    replaced = [event for event in events if isinstance(event, TurnReplaced)]
    assert [(event.text, event.reason) for event in replaced] == [("", "leaves the role")]
    assert chat.turns[-1].text == "I keep it alone."
    assert chat.turns[-1].meta["repairs"] == 1
    assert "Morwenna and nothing else" in model.history[1][-1].text


async def test_a_model_that_cannot_stay_in_the_role_is_not_asked_for_ever(log: ChatLog) -> None:
    model = scripted("I'm just an AI.", "I'm just an AI.", "never asked")
    chat = new_chat(log, model)
    await play(chat.stream("Who are you?"))
    assert len(model.history) == 2
    assert chat.turns[-1].text == "I'm just an AI."
    assert chat.turns[-1].meta["breach"] == "leaves the role"


async def test_what_is_said_for_the_user_is_cut_off(log: ChatLog) -> None:
    chat = new_chat(log, scripted("Come in.\n**Sam:** Thank you!\nMorwenna: Sit."))
    events = await play(chat.stream("Knock."))
    assert chat.turns[-1].text == "Come in."
    assert [event.text for event in events if isinstance(event, TurnReplaced)] == ["Come in."]


async def test_strict_shows_nothing_before_it_is_checked(log: ChatLog) -> None:
    model = scripted("I'm just an AI.", "The keeper, who else?")
    chat = new_chat(log, model, settings={"chat": {"strict": True}})
    events = await play(chat.stream("Who is there?"))
    assert not [event for event in events if isinstance(event, TextDelta)]
    assert [event.text for event in events if isinstance(event, TurnReplaced)] == ["The keeper, who else?"]


async def test_a_model_that_says_nothing_is_told_and_then_an_error(log: ChatLog) -> None:
    chat = new_chat(log, scripted("", "   "))
    with pytest.raises(RplaError, match="said nothing"):
        await play(chat.stream("Hello?"))
    assert texts(chat) == ["Hello?"]


async def test_a_preset_without_check_takes_what_it_gets(log: ChatLog) -> None:
    chat = new_chat(log, scripted("As an AI language model, yes."), alignment="bare")
    assert await said(chat.stream("Are you?")) == "As an AI language model, yes."


async def test_regenerating_makes_an_alternative_and_swiping_goes_round(log: ChatLog) -> None:
    chat = new_chat(log, scripted("one", "two", "three"))
    await play(chat.stream("Say a number."))
    await play(chat.regenerate())
    await play(chat.regenerate())
    assert [turn.text for turn in chat.alternatives(chat.head)] == ["one", "two", "three"]
    assert [chat.swipe(step).text for step in (1, 1, -1, -1)] == ["one", "two", "one", "three"]
    assert log.head(chat.id) == chat.head.id


async def test_greetings_are_swiped_through_the_cards_alternates(log: ChatLog) -> None:
    chat = new_chat(log, scripted(), greeting=True)
    assert [chat.head.text, chat.swipe().text, chat.swipe().text, chat.swipe().text] == [
        "Mind the third stair, Sam.",
        "You are wet. Sit.",
        "Another one.",
        "Mind the third stair, Sam.",
    ]
    assert chat.info.turns == 3


async def test_editing_mends_one_turn_and_keeps_what_followed(log: ChatLog) -> None:
    chat = new_chat(log, scripted("a", "b", "c"))
    for text in ("1", "2", "3"):
        await play(chat.stream(text))
    before = chat.turns
    chat.edit(chat.turns[1], "A, mended")
    assert texts(chat) == ["1", "A, mended", "2", "b", "3", "c"]
    chat.branch(before[-1])
    assert texts(chat) == ["1", "a", "2", "b", "3", "c"]


async def test_an_edited_turn_is_what_the_model_reads_next(log: ChatLog) -> None:
    model = scripted("a", "b", "c")
    chat = new_chat(log, model)
    await play(chat.stream("1"))
    await play(chat.stream("2"))
    chat.edit(chat.turns[0], "one, spelled out")
    await play(chat.stream("3"))
    read = [message.text for message in model.history[-1]]
    assert "one, spelled out" in read
    assert "1" not in read


async def test_rewinding_forgets_in_the_prompt_but_not_in_the_log(log: ChatLog) -> None:
    model = scripted("a", "b", "other b")
    chat = new_chat(log, model)
    await play(chat.stream("1"))
    await play(chat.stream("2 whispered"))
    chat.rewind()
    assert texts(chat) == ["1", "a"]
    await play(chat.stream("2 again"))
    assert not any("whispered" in message.text for message in model.history[-1])
    assert [leaf.text for leaf in chat.branches()] == ["other b", "b"]
    chat.branch(chat.branches()[1])
    assert texts(chat) == ["1", "a", "2 whispered", "b"]


async def test_rewinding_too_far_is_refused(log: ChatLog) -> None:
    chat = new_chat(log, scripted("a"))
    await play(chat.stream("1"))
    with pytest.raises(RplaError, match="1 exchanges"):
        chat.rewind(2)


async def test_continuing_makes_the_reply_longer_beside_the_short_one(log: ChatLog) -> None:
    chat = new_chat(log, scripted("The sea was calm", "until it was not."))
    await play(chat.stream("Tell me."))
    events = await play(chat.extend())
    assert chat.head.text == "The sea was calm until it was not."
    assert [turn.text for turn in chat.alternatives(chat.head)] == [
        "The sea was calm",
        "The sea was calm until it was not.",
    ]
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "until it was not."


async def test_deleting_can_be_undone_and_renaming_shows(log: ChatLog) -> None:
    chat = new_chat(log, scripted("a"))
    await play(chat.stream("A long first message"))
    assert log.chats()[0].title == "A long first message"
    chat.rename("The lighthouse")
    chat.delete()
    assert log.chats() == []
    chat.undelete()
    assert [info.title for info in log.chats()] == ["The lighthouse"]


async def test_two_sittings_on_one_chat_both_keep_their_words(log: ChatLog, tmp_path: Path) -> None:
    mine = new_chat(log, scripted("to me", "to me again"))
    await play(mine.stream("hello"))
    other_log = ChatLog(tmp_path / "chats.db")
    theirs = type(mine)(
        other_log,
        other_log.chat(mine.id),
        character=KEEPER,
        persona=mine.persona,
        model=scripted("to them"),
        alignment=mine.alignment,
        settings=mine._settings,
    )
    await play(theirs.stream("from elsewhere"))
    events = await play(mine.stream("from here"))
    assert any(isinstance(event, Notice) and "elsewhere" in event.text for event in events)
    assert texts(mine) == ["hello", "to me", "from here", "to me again"]
    assert texts(theirs) == ["hello", "to me", "from elsewhere", "to them"]
    assert {leaf.text for leaf in mine.branches()} == {"to me again", "to them"}


async def test_why_survives_a_restart(log: ChatLog) -> None:
    chat = new_chat(log, scripted("It is on the shelf."))
    await play(chat.stream("Where is the ledger?"))
    again = type(chat)(
        log,
        log.chat(chat.id),
        character=KEEPER,
        persona=chat.persona,
        model=scripted(),
        alignment=chat.alignment,
        settings=chat._settings,
    )
    assert [(s.name, s.source) for s in again.why()][-1] == ("lore", "lore: The ledger")
    assert again.why() == chat.why()


async def test_the_finished_turn_is_prefilled_without_its_notes(log: ChatLog) -> None:
    class Prefilling(ScriptedModel):
        @property
        def capabilities(self) -> Capabilities:
            return Capabilities(prefill=True)

        async def prefill(self, messages: Sequence[BaseMessage], conversation: str = "") -> None:
            prefilled.append([message.text for message in messages])

    prefilled: list[list[str]] = []
    chat = new_chat(log, Prefilling("On the shelf.", "Yes."))
    await play(chat.stream("Where is the ledger?"))
    await chat.settled()
    assert prefilled[0][-2:] == ["Where is the ledger?", "On the shelf."]
    await play(chat.stream("Thank you."))
    asked = [message.text for message in chat.model.history[1]]
    assert asked[: len(prefilled[0])] == prefilled[0]


def failing_append(log: ChatLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **also: object) -> None:
        raise RplaError("The disk is full.")

    monkeypatch.setattr(log, "append_all", refuse)


async def test_a_failed_regenerate_leaves_the_reply_that_was_there(log: ChatLog) -> None:
    chat = new_chat(log, scripted("r1"))
    await play(chat.stream("hi"))
    with pytest.raises(RplaError, match="no reply left"):
        await play(chat.regenerate())
    assert texts(chat) == ["hi", "r1"]
    assert log.head(chat.id) == chat.head.id


async def test_an_edit_that_cannot_be_saved_changes_nothing(log: ChatLog) -> None:
    chat = new_chat(log, scripted("a", "b", "c"))
    for text in ("1", "2"):
        await play(chat.stream(text))
    with pytest.raises(RplaError, match="lone surrogate"):
        chat.edit(chat.turns[1], "bad \udcff")
    assert texts(chat) == ["1", "a", "2", "b"]
    events = await play(chat.stream("3"))
    assert not [event for event in events if isinstance(event, Notice)]
    assert [turn.text for turn in log.branch(log.head(chat.id))] == ["1", "a", "2", "b", "3", "c"]


async def test_the_tree_stands_still_while_a_reply_is_under_way(log: ChatLog) -> None:
    chat = new_chat(log, scripted("a", "b c d"))
    await play(chat.stream("1"))
    async for event in chat.stream("2"):
        if isinstance(event, TextDelta):
            with pytest.raises(RplaError, match="under way"):
                chat.rewind()
    assert texts(chat) == ["1", "a", "2", "b c d"]


async def test_a_model_that_does_not_load_loses_no_text(log: ChatLog) -> None:
    class Unloadable(ScriptedModel):
        async def load(self) -> None:
            raise RplaError("There is no model file.")

    chat = new_chat(log, Unloadable("never"))
    with pytest.raises(RplaError, match="no model file"):
        await play(chat.stream("my precious long text"))
    assert [turn.text for turn in log.branch(log.head(chat.id))] == ["my precious long text"]


async def test_all_that_arrived_before_a_failure_is_kept(log: ChatLog) -> None:
    class Bursting(ScriptedModel):
        async def pieces(self, messages: Sequence[BaseMessage], options: Options) -> AsyncGenerator[Piece, None]:
            for word in ("one", " two", " three", " four"):
                yield Piece(text=word)
            raise RplaError("The endpoint is gone.")

    for settings in ({}, {"chat": {"strict": True}}):
        chat = new_chat(log, Bursting(), settings=settings)
        with pytest.raises(RplaError, match="gone"):
            await play(chat.stream("Count."))
        assert texts(chat) == ["Count.", "one two three four"]


async def test_stopping_on_a_full_disk_says_so(log: ChatLog, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = new_chat(log, ScriptedModel("one two three", delay_s=0.02))
    stream = chat.stream("Count.")
    async for event in stream:
        if isinstance(event, TextDelta):
            break
    failing_append(log, monkeypatch)
    with pytest.raises(RplaError, match="disk is full"):
        await stream.aclose()


async def test_what_changes_during_warming_up_counts(log: ChatLog) -> None:
    import time

    class SlowCounting(ScriptedModel):
        def count_tokens(self, text: str) -> int:
            time.sleep(0.01)
            return super().count_tokens(text)

    model = SlowCounting("a")
    chat = new_chat(log, model)
    warming = asyncio.create_task(chat.warm())
    await asyncio.sleep(0.02)
    chat.set_persona(Persona(name="Zebulon"))
    await warming
    await play(chat.stream("Who am I?"))
    assert "Zebulon" in model.history[0][0].text


async def test_retrieved_demonstrations_follow_the_first_message_that_is_there(log: ChatLog) -> None:
    exchanges = "".join(
        f"<START>\n{{{{user}}}}: Tell me of {thing}.\n{{{{char}}}}: I know {thing}.\n"
        for thing in ("storms", "bread", "clocks", "taxes", "herring", "lamps", "cats", "glass", "rope")
    )
    character = dataclasses.replace(KEEPER, example_dialogue=exchanges)
    model = scripted("a", "b")
    chat = new_chat(log, model, character=character, alignment="icl-few-bm25", greeting=True)
    for thing in ("rope", "bread"):
        await play(chat.stream(f"What of {thing}?"))
        nearest = [message.text for message in model.history[-1] if message.type == "ai"][4]
        assert nearest == f"I know {thing}."
        chat.rewind()


@pytest.mark.parametrize(
    ("begun", "more", "whole"),
    [
        ("これは数", "学です。", "これは数学です。"),
        ("The sea was calm", "until it was not.", "The sea was calm until it was not."),
        ("One paragraph.", "\n\nAnother.", "One paragraph.\n\nAnother."),
    ],
)
async def test_continuing_joins_as_the_language_does(log: ChatLog, begun: str, more: str, whole: str) -> None:
    chat = new_chat(log, scripted(begun, more))
    await play(chat.stream("Tell me."))
    await play(chat.extend())
    assert chat.head.text == whole
