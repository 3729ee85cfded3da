import asyncio
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from langchain_core.language_models import FakeListChatModel

from rpla import Agent, Persona, RplaError, ScriptedModel, TextDelta, TurnCommitted
from tests.stage import KEEPER


def agent_with(tmp_path: Path, *replies: str, **how) -> Agent:
    return Agent(how.pop("character", KEEPER), model=ScriptedModel(*replies), home=tmp_path, **how)


def test_say_answers_from_plain_code(tmp_path: Path) -> None:
    with agent_with(tmp_path, "Sit.") as agent:
        reply = agent.say("Good evening.")
    assert str(reply) == "Sit."
    assert reply.sections[0].name == "contract"


def test_stream_yields_events_from_plain_code(tmp_path: Path) -> None:
    with agent_with(tmp_path, "Sit by the stove.") as agent:
        events = list(agent.stream("Good evening."))
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "Sit by the stove."
    assert isinstance(events[-1], TurnCommitted)


def test_leaving_the_loop_early_keeps_what_came(tmp_path: Path) -> None:
    model = ScriptedModel("one two three four five", delay_s=0.01)
    with Agent(KEEPER, model=model, home=tmp_path) as agent:
        for event in agent.stream("Count."):
            if isinstance(event, TextDelta):
                break
        assert agent.chat.turns[-1].text.startswith("one")
        assert "five" not in agent.chat.turns[-1].text


async def test_async_code_is_served_on_its_own_loop(tmp_path: Path) -> None:
    with agent_with(tmp_path, "Sit.", "Stay.") as agent:
        assert (await agent.asay("Good evening.")).text == "Sit."
        assert [type(event).__name__ async for event in agent.astream("More?")][-1] == "TurnCommitted"


def test_an_agent_takes_up_the_last_chat(tmp_path: Path) -> None:
    with agent_with(tmp_path, "Sit.") as agent:
        agent.say("Good evening.")
        first = agent.chat.id
    with agent_with(tmp_path, "As I said.") as agent:
        assert agent.chat.id == first
        agent.say("Again?")
        assert [turn.text for turn in agent.chat.turns][1:] == ["Good evening.", "Sit.", "Again?", "As I said."]


def test_users_never_see_one_anothers_chats(tmp_path: Path) -> None:
    names = ["sam", "Sam", "sam2", "sa%", "s_m", "ѕam", "sam\u200b", "sa"]
    for name in names:
        with agent_with(tmp_path, f"Hello {name}.", user=name) as agent:
            agent.say(f"I am {name}, secretly.")
    for name in names:
        with agent_with(tmp_path, user=name) as agent:
            assert [info.title for info in agent.chats()] == [f"I am {name}, secretly."]
            assert [hit.turn.text for hit in agent.search("secretly")] == [f"I am {name}, secretly."]
            others = [info.id for info in agent._log.chats() if info.id != agent.chat.id]
            with pytest.raises(RplaError, match="not one of"):
                agent.open_chat(others[0])


def test_any_langchain_model_will_do(tmp_path: Path) -> None:
    with Agent(KEEPER, model=FakeListChatModel(responses=["Sit by the stove."]), home=tmp_path) as agent:
        assert agent.say("Good evening.").text == "Sit by the stove."


def test_a_persona_and_an_alignment_can_be_chosen(tmp_path: Path) -> None:
    model = ScriptedModel("Sit.")
    with Agent(KEEPER, model=model, home=tmp_path, alignment="icl", persona=Persona(name="Ishmael")) as agent:
        agent.say("Good evening.")
    assert "talking with Ishmael" in model.history[0][0].text


@pytest.mark.parametrize(
    ("how", "offered"),
    [
        ({"character": "ada-lovelase"}, "ada-lovelace"),
        ({"character": "ada-lovelace", "alignment": "icl-fwe"}, "icl-few"),
        ({"character": "ada-lovelace", "model": "lamacpp:x"}, "llamacpp:"),
    ],
)
def test_an_unknown_name_is_met_with_the_nearest(tmp_path: Path, how: dict, offered: str) -> None:
    with pytest.raises(RplaError) as error:
        Agent(how.pop("character"), home=tmp_path, **{"model": "scripted:", **how})
    assert offered in error.value.hint


def test_agents_in_many_threads_do_not_disturb_one_another(tmp_path: Path) -> None:
    heard: dict[int, list[str]] = {}

    def talk(number: int) -> None:
        with agent_with(tmp_path, *(f"{number}-{turn}" for turn in range(5)), user=f"user{number}") as agent:
            heard[number] = [agent.say(f"turn {turn}").text for turn in range(5)]

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {number: [f"{number}-{turn}" for turn in range(5)] for number in range(8)}


async def test_agents_on_one_loop_talk_at_once(tmp_path: Path) -> None:
    agents = [agent_with(tmp_path, f"I am {n}.", user=str(n)) for n in range(8)]
    replies = await asyncio.gather(*(agent.asay("Who are you?") for agent in agents))
    assert [reply.text for reply in replies] == [f"I am {n}." for n in range(8)]
    for agent in agents:
        agent.close()


def test_tracing_variables_of_other_programs_open_no_socket(tmp_path: Path) -> None:
    code = """
import socket, sys
def refuse(*args, **kwargs):
    print("SOCKET", args, file=sys.stderr); raise OSError("no network here")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from rpla import Agent
with Agent("ada-lovelace", model="scripted:Quite so.") as agent:
    print(agent.say("Hello.").text)
"""
    tracing = {"LANGSMITH_TRACING": "true", "LANGSMITH_API_KEY": "ls-test", "LANGCHAIN_TRACING_V2": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **tracing, "RPLA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "Quite so.\n"
    assert "SOCKET" not in done.stderr
    assert socket.socket  # the patch above was in another process
