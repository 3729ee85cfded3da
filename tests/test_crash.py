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

from rpla.chat import Chat
from rpla.core.alignment import find_alignment
from rpla.core.character import Character, Persona
from rpla.core.chatlog import ChatLog, Turn
from rpla.core.errors import RplaError
from rpla.core.events import TurnCommitted, TurnStarted
from rpla.core.models.scripted import ScriptedModel
from rpla.core.settings import ChatSettings, Settings

USER, ADA = "1" * 32, "2" * 32
ROUNDS, ROUNDS_PER_CHAT = 200, 20
LONGEST_LIFE_S = 0.25

# A process that has all it needs in memory and no thread, so that each child it forks talks within milliseconds.
_NURSERY = """
import asyncio, json, os, sys
from pathlib import Path
from rpla.chat import Chat, _graph
from rpla.core.alignment import find_alignment
from rpla.core.character import Character, Persona
from rpla.core.chatlog import ChatLog
from rpla.core.events import TurnCommitted, TurnStarted
from rpla.core.models.scripted import ScriptedModel
from rpla.core.settings import Settings

def tell(**what):
    os.write(1, (json.dumps(what) + "\\n").encode())

async def talk(path, chat_id, round):
    log = ChatLog(path)
    chat = Chat(
        log,
        log.chat(chat_id),
        character=Character(id="2" * 32, slug="ada", name="Ada"),
        persona=Persona(),
        model=ScriptedModel("An answer of a few words. " * 8, cycle=True),
        alignment=find_alignment("icl"),
        settings=Settings(),
    )
    tell(head=chat.head and chat.head.id)
    for number in range(10_000):
        unanswered = chat.head is not None and chat.head.role == "user"
        events = chat.regenerate() if unanswered or number % 5 == 4 else chat.stream(f"{round}: message {number}")
        async for event in events:
            if isinstance(event, TurnStarted) and event.asked is not None:
                tell(id=event.asked.id, text=event.asked.text)
            elif isinstance(event, TurnCommitted):
                tell(id=event.turn.id, text=event.turn.text)

_graph()
tell(ready=True)
for line in sys.stdin:
    path, chat_id, round = json.loads(line)
    child = os.fork()
    if child == 0:
        asyncio.run(talk(Path(path), chat_id, round))
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

    def live_and_die(self, path: Path, chat: str, round: int, life_s: float) -> list[dict[str, Any]]:
        # What the child said before it was killed.
        assert self.process.stdin is not None
        self.process.stdin.write((json.dumps([str(path), chat, round]) + "\n").encode())
        heard = [self.hear()]
        while "pid" not in heard[-1]:
            heard.append(self.hear())
        time.sleep(life_s)
        os.kill(heard.pop()["pid"], signal.SIGKILL)
        while "dead" not in (said := self.hear()):
            heard.append(said)
        assert said["dead"] == signal.SIGKILL
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


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_no_acknowledged_turn_is_lost_when_the_process_is_killed(nursery: Nursery, tmp_path: Path) -> None:
    path, chance = tmp_path / "chats.db", random.Random(20260301)
    acknowledged: dict[str, str] = {}
    turns = 0
    began: list[int] = []
    chat, head = "", None
    for number in range(ROUNDS):
        if number % ROUNDS_PER_CHAT == 0:
            log = ChatLog(path)
            chat, head = log.create_chat(user=USER, character=ADA).id, None
            log.close()
        heard = nursery.live_and_die(path, chat, number, chance.uniform(0, LONGEST_LIFE_S))
        heads = [said["head"] for said in heard if "head" in said]
        acks = {said["id"]: said["text"] for said in heard if "id" in said}
        assert heads in ([], [head]), "the next process goes on from where the log was"
        began.append(len(acks))
        acknowledged |= acks

        log = ChatLog(path)
        assert log.verify() == []
        kept = {turn.id: turn for turn in log.turns(chat)}
        assert {id: kept[id].text for id in acks} == acks
        count = sum(info.turns for info in log.chats())
        assert count >= turns + len(acks)
        turns, head = count, log.head(chat)
        assert head is None or log.branch(head)[0].parent is None
        log.close()

    log = ChatLog(path)
    found = {turn.id: turn.text for info in log.chats() for turn in log.turns(info.id)}
    assert found.items() >= acknowledged.items()
    log.close()
    # Else the processes were killed too early, or all at the same point, to show anything.
    assert len(acknowledged) > ROUNDS
    assert len(set(began)) > 5


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


async def say(chat: Chat, text: str, acknowledged: list[Turn]) -> None:
    async for event in chat.stream(text):
        if isinstance(event, TurnStarted) and event.asked is not None:
            acknowledged.append(event.asked)
        elif isinstance(event, TurnCommitted):
            acknowledged.append(event.turn)


@pytest.mark.parametrize("length", [10, 700, 20_000])
async def test_a_full_disk_is_told_loses_nothing_and_is_got_over(small_disk: Path, length: int) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(500_000))
    log = ChatLog(small_disk / "chats.db")
    info = log.create_chat(user=USER, character=ADA)
    chat = Chat(
        log,
        info,
        character=Character(id=ADA, slug="ada", name="Ada"),
        persona=Persona(),
        model=ScriptedModel("word " * (length // 5), cycle=True, context=1_000_000),
        alignment=find_alignment("icl"),
        settings=Settings(chat=ChatSettings(prefill=False)),
    )
    acknowledged: list[Turn] = []
    with pytest.raises(RplaError, match="is full") as raised:  # noqa: PT012
        for number in range(5000):
            await say(chat, f"{number} " + "x" * length, acknowledged)
    assert "Free some space" in raised.value.hint
    assert acknowledged
    for _ in range(3):
        with pytest.raises(RplaError):
            await say(chat, "still full " + "x" * 50_000, acknowledged)
    kept = {turn.id: turn for turn in log.turns(info.id)}
    assert [kept[turn.id] for turn in acknowledged] == acknowledged

    filler.unlink()
    await say(chat, "there is room again", acknowledged)
    assert acknowledged[-2].text == "there is room again"
    assert log.verify() == []
    log.close()
    log = ChatLog(small_disk / "chats.db")
    kept = {turn.id: turn for turn in log.turns(info.id)}
    assert [kept[turn.id] for turn in acknowledged] == acknowledged
    assert log.head(info.id) == acknowledged[-1].id
    log.close()
