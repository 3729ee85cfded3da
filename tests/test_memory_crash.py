"""Processes that talk and remember are killed at any moment; nothing is lost, and nothing is remembered twice."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rpla.core.chatlog import ChatLog
from rpla.core.ids import id_of
from rpla.core.settings import MemorySettings
from rpla.memory.episodic import EpisodicMemory
from rpla.memory.remember import remember
from rpla.memory.store import MemoryStore
from tests.stage import keep_everything

ADA = "2" * 32
ROUNDS_PER_CHAT = 10
LONGEST_LIFE_S = 0.25

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")

# A process that has all it needs in memory and no thread, so that each child it forks talks within milliseconds. Every
# third thing said was said before: what is renewed must be renewed once, too.
_NURSERY = """
import asyncio, json, os, sys
from pathlib import Path
import rpla.memory.remember
from rpla.chat import Chat, _graph
from rpla.core.alignment import find_alignment
from rpla.core.character import Character, Persona
from rpla.core.chatlog import ChatLog
from rpla.core.events import TurnCommitted, TurnStarted
from rpla.core.models.scripted import ScriptedModel
from rpla.core.settings import Settings
from rpla.mind import Mind
from rpla.memory.episodic import EpisodicMemory
from rpla.memory.gate import Verdict
from rpla.memory.remember import remember
from rpla.memory.store import MemoryStore
from rpla.mind import Mind

rpla.memory.remember._gate = lambda embedder: lambda said: Verdict(label="fact", fact=1.0, keep=True)
settings = Settings.model_validate({"memory": {"reflect_after": 1e9, "summarize": False}})

def tell(**what):
    os.write(1, (json.dumps(what) + "\\n").encode())

async def talk(folder, chat_id, round):
    log, store = ChatLog(folder / "chats.db"), MemoryStore(folder / "memory.db")
    info = log.chat(chat_id)
    memory = EpisodicMemory(
        store, log, user=info.user, character=info.character, embedder=None, settings=settings.memory
    )
    tell(alive=True)
    if round < 0:  # only to remember
        remember(memory, log, chat_id)
        tell(done=True)
    chat = Chat(
        log,
        info,
        character=Character(id=info.character, slug="ada", name="Ada"),
        persona=Persona(),
        model=ScriptedModel(*(f"An answer number {n} of a few words." for n in range(50)), cycle=True),
        alignment=find_alignment("icl"),
        settings=settings,
        mind=Mind(Character(id=info.character, slug="ada", name="Ada"), find_alignment("icl"), settings, memory=memory),
    )
    for number in range(10_000 if round >= 0 else 0):
        unanswered = chat.head is not None and chat.head.role == "user"
        text = "I have a dog called Biscuit" if number % 3 == 2 else f"Thing {round}x{number} happened"
        events = chat.regenerate() if unanswered or number % 5 == 4 else chat.stream(text)
        async for event in events:
            if isinstance(event, TurnStarted) and event.asked is not None:
                tell(id=event.asked.id, text=event.asked.text)
            elif isinstance(event, TurnCommitted):
                tell(id=event.turn.id, text=event.turn.text)
        if number % 4 == 3:
            await chat.settled()  # a person types more slowly than this

_graph()
tell(ready=True)
for line in sys.stdin:
    folder, chat_id, round = json.loads(line)
    child = os.fork()
    if child == 0:
        asyncio.run(talk(Path(folder), chat_id, round))
        os._exit(0)
    tell(pid=child)
    tell(dead=os.waitpid(child, 0)[1])
"""


class Nursery:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self.process.stdout is not None
        self._lines = os.fdopen(os.dup(self.process.stdout.fileno()), "r", encoding="utf-8")
        assert self.hear() == {"ready": True}

    def hear(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._lines.readline())
        return found

    def live_and_die(self, folder: Path, chat: str, round: int, life_s: float) -> list[dict[str, Any]]:
        # What the child said before it was killed, or came to its end.
        assert self.process.stdin is not None
        self.process.stdin.write((json.dumps([str(folder), chat, round]) + "\n").encode())
        heard = [self.hear()]
        while "pid" not in heard[-1]:
            heard.append(self.hear())
        child = heard.pop()["pid"]
        # However busy the machine is, most are killed while they talk, and some while they open the files.
        while round % 5 and {"alive": True} not in heard:
            heard.append(self.hear())
        time.sleep(life_s)
        with contextlib.suppress(ProcessLookupError):  # it came to its end before
            os.kill(child, signal.SIGKILL)
        while "dead" not in (said := self.hear()):
            heard.append(said)
        assert said["dead"] in (signal.SIGKILL, 0)
        return heard

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self._lines.close()


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    opened = Nursery()
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _all_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_everything(monkeypatch)


Remembered = list[tuple[str | None, str, str, int, float]]


def remembered(log: ChatLog, store: MemoryStore) -> Remembered:
    """What the next start makes of the log: turn, text, context, how often it was said, and when last."""
    found: Remembered = []
    for info in log.chats():
        memory = EpisodicMemory(
            store, log, user=info.user, character=info.character, embedder=None, settings=MemorySettings()
        )
        remember(memory, log, info.id)
        found += [(one.turn, one.text, one.context, one.mentions, one.renewed) for one in memory.all()]
    return found


@pytest.mark.parametrize("rounds", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_what_is_remembered_after_kills_is_what_an_undisturbed_run_remembers(
    nursery: Nursery, tmp_path: Path, rounds: int
) -> None:
    chance = random.Random(20261121)
    acknowledged: dict[str, str] = {}
    cut_off = 0
    chat = ""
    for number in range(rounds):
        log = ChatLog(tmp_path / "chats.db")
        if number % ROUNDS_PER_CHAT == 0:  # each of another user: what is remembered of one does not depend on others
            chat = log.create_chat(user=id_of("user", str(number)), character=ADA).id
        log.close()
        heard = nursery.live_and_die(tmp_path, chat, number, chance.uniform(0, LONGEST_LIFE_S))
        acknowledged |= {said["id"]: said["text"] for said in heard if "id" in said}
        log, store = ChatLog(tmp_path / "chats.db"), MemoryStore(tmp_path / "memory.db")
        assert log.verify() == []
        assert store.faults() == []
        kept = {turn.id: turn.text for turn in log.turns(chat)}
        assert kept.items() >= {said["id"]: said["text"] for said in heard if "id" in said}.items()
        cut_off += bool(log.turns_after(chat, store.remembered(chat)))
        store.close()
        log.close()

    log = ChatLog(tmp_path / "chats.db")
    said = {turn.id: turn.text for info in log.chats() for turn in log.turns(info.id)}
    assert said.items() >= acknowledged.items()
    disturbed, fresh = MemoryStore(tmp_path / "memory.db"), MemoryStore(tmp_path / "fresh.db")
    after, undisturbed = remembered(log, disturbed), remembered(log, fresh)
    assert after == undisturbed
    assert remembered(log, disturbed) == after, "and not once more"
    assert disturbed.faults() == []
    disturbed.close()
    fresh.close()
    log.close()
    # Else the processes were killed too early, or when all was done, to show anything.
    assert len(acknowledged) > rounds
    assert cut_off > rounds // 5
    assert max(mentions for _, _, _, mentions, _ in after) > 1


@pytest.mark.parametrize("rounds", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_to_remember_a_long_chat_can_be_cut_off_anywhere(nursery: Nursery, tmp_path: Path, rounds: int) -> None:
    chance = random.Random(20261122)
    log = ChatLog(tmp_path / "chats.db")
    chat = log.create_chat(user=id_of("user", "sam"), character=ADA).id
    told = [f"Thing {number % 90} happened in {1900 + number % 90}" for number in range(600)]
    log.append_all(chat, None, [("character" if number % 2 else "user", text, {}) for number, text in enumerate(told)])
    reached = [0]
    for _ in range(rounds):
        heard = nursery.live_and_die(tmp_path, chat, -1, chance.uniform(0.02, LONGEST_LIFE_S))
        store = MemoryStore(tmp_path / "memory.db")
        assert store.faults() == []
        reached.append(store.remembered(chat))
        store.close()
        if {"done": True} in heard:
            break
    assert reached == sorted(reached), "it goes on where it was cut off"
    assert len(set(reached)) > 2
    disturbed, fresh = MemoryStore(tmp_path / "memory.db"), MemoryStore(tmp_path / "fresh.db")
    after = remembered(log, disturbed)
    assert after == remembered(log, fresh)
    assert sum(mentions for _, _, _, mentions, _ in after) == len(told)
    for store in (disturbed, fresh):
        store.close()
    log.close()
