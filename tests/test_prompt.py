from itertools import pairwise
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from rpla.core.chatlog import ChatLog
from rpla.core.errors import RplaError
from rpla.core.events import Notice
from rpla.core.models.scripted import ScriptedModel
from tests.stage import KEEPER, new_chat, open_log, play, scripted


@pytest.fixture
def log(tmp_path: Path) -> ChatLog:
    return open_log(tmp_path)


async def prompt_of(log: ChatLog, text: str = "Good evening.", **how) -> list:
    model = scripted("Yes.")
    await play(new_chat(log, model, **how).stream(text))
    return model.history[0]


async def test_none_is_the_bare_model(log: ChatLog) -> None:
    assert await prompt_of(log, alignment="none") == [HumanMessage("Good evening.")]


async def test_bare_is_dittos_single_line(log: ChatLog) -> None:
    assert (await prompt_of(log, alignment="bare"))[0] == SystemMessage(
        "You are Morwenna Hale, {{char}} keeps the lighthouse at Skerry Point.".replace("{{char}}", "Morwenna")
    )


async def test_icl_has_the_card_and_no_demonstrations(log: ChatLog) -> None:
    system, last = await prompt_of(log, alignment="icl")
    for part in ("Morwenna keeps the lighthouse", "dry, exact", "Sam comes up the stairs", "a surveyor", "never out"):
        assert part in system.text
    assert last == HumanMessage("Good evening.")


async def test_icl_few_shows_demonstrations_as_real_turns(log: ChatLog) -> None:
    messages = await prompt_of(log, alignment="icl-few")
    assert messages[1:3] == [HumanMessage("Do you sleep?"), AIMessage("In instalments.")]


async def test_creator_notes_never_reach_a_model(log: ChatLog) -> None:
    for alignment in ("none", "bare", "icl", "icl-few", "icl-few-bm25"):
        assert "NOT FOR MODELS" not in str(await prompt_of(log, alignment=alignment))


async def test_lore_goes_last_inside_the_newest_message_and_not_into_history(log: ChatLog) -> None:
    model = scripted("On the shelf.", "Yes.")
    chat = new_chat(log, model)
    await play(chat.stream("Where is the ledger?"))
    await play(chat.stream("And the stove?"))
    first, second = model.history
    assert first[-1].text.startswith("Where is the ledger?\n\n[Notes for Morwenna")
    assert "every ship since 1811" in first[-1].text
    assert second[1] == HumanMessage("Where is the ledger?")
    assert all(message.type != "system" for message in second[1:])


async def test_what_does_not_change_is_byte_for_byte_the_same_from_turn_to_turn(log: ChatLog) -> None:
    model = ScriptedModel("a", "b", "c", "d")
    chat = new_chat(log, model, alignment="icl-few", greeting=True)
    for text in ("the ledger", "the Corrigan", "nothing", "the ledger"):
        await play(chat.stream(text))
    for earlier, later in pairwise(model.history):
        assert later[: len(earlier) - 1] == earlier[:-1]


async def test_a_conversation_that_the_character_opens_still_begins_with_the_user(log: ChatLog) -> None:
    messages = await prompt_of(log, greeting=True)
    assert [message.type for message in messages] == ["system", "human", "ai", "human"]


async def test_turns_of_one_speaker_are_put_together(log: ChatLog) -> None:
    model = scripted()
    chat = new_chat(log, model)
    with pytest.raises(RplaError):
        await play(chat.stream("Hello?"))
    model.enqueue("Yes?")
    await play(chat.stream("Anyone?"))
    assert [message.type for message in model.history[-1]] == ["system", "human"]
    assert model.history[-1][-1].text == "Hello?\n\nAnyone?"


async def test_explain_adds_up_and_names_its_sources(log: ChatLog) -> None:
    chat = new_chat(log, scripted("Yes."), alignment="icl-few")
    await play(chat.stream("The ledger, please."))
    sections = {section.name: section for section in chat.why()}
    assert list(sections) == [
        "contract", "card", "personality", "scenario", "persona", "lore", "demonstrations", "history",
    ] or list(sections)[-1] == "lore"  # fmt: skip
    assert sections["lore"].source == "lore: The ledger"
    assert all(section.tokens > 0 for section in sections.values())


async def test_a_card_that_does_not_fit_is_cut_and_says_so(log: ChatLog) -> None:
    import dataclasses

    exchanges = "".join(f"<START>\n{{{{user}}}}: Question {n}?\n{{{{char}}}}: {'Answer. ' * 20}\n" for n in range(5))
    big = dataclasses.replace(KEEPER, description="She keeps the light. " * 300, example_dialogue=exchanges)
    model = ScriptedModel("Yes.", context=1500)
    chat = new_chat(log, model, character=big, alignment="icl-few", settings={"sampling": {"max_tokens": 200}})
    events = await play(chat.stream("Hello."))
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert len(notices) == 1
    assert "demonstrations (5 of 5)" in notices[0]
    assert "card (shortened)" in notices[0]
    assert sum(len(message.text) for message in model.history[0]) / 4 < 1300


async def test_a_context_that_cannot_hold_anything_is_refused(log: ChatLog) -> None:
    chat = new_chat(log, ScriptedModel("Yes.", context=300), settings={"sampling": {"max_tokens": 250}})
    with pytest.raises(RplaError, match="too few for Morwenna Hale"):
        await play(chat.stream("Hello."))


async def test_a_message_that_does_not_fit_is_refused_with_both_numbers(log: ChatLog) -> None:
    chat = new_chat(log, ScriptedModel("Yes.", context=2000))
    with pytest.raises(RplaError, match=r"has \d+ tokens; there is room for \d+"):
        await play(chat.stream("word " * 3000))


async def test_the_window_drops_old_turns_in_large_steps(log: ChatLog) -> None:
    model = ScriptedModel(context=1400)
    chat = new_chat(log, model, settings={"sampling": {"max_tokens": 100}})
    for number in range(40):
        model.enqueue(f"Reply {number}. " + "talk " * 30)
        await play(chat.stream(f"Question {number}. " + "ask " * 30))
    firsts = [messages[1].text for messages in model.history]
    changes = sum(a != b for a, b in pairwise(firsts))
    assert 2 <= changes <= 12
    assert all(sum(len(m.text) for m in messages) / 4 < 1300 for messages in model.history)
    assert "Question 39" in model.history[-1][-1].text


async def test_a_card_without_latin_full_stops_is_shortened_not_dropped(log: ChatLog) -> None:
    import dataclasses

    card = dataclasses.replace(KEEPER, description="彼女は灯台を守る。" * 200)
    model = ScriptedModel("はい。", context=1500)
    await play(new_chat(log, model, character=card, settings={"sampling": {"max_tokens": 200}}).stream("こんばんは"))
    assert "彼女は灯台を守る。" in model.history[0][0].text
