import asyncio
import threading
from pathlib import Path

import pytest

from rpla import Agent, Settings
from rpla.core.chatlog import ChatLog
from rpla.core.errors import RplaError
from rpla.core.ids import new_id
from rpla.core.models.scripted import ScriptedModel
from rpla.memory import embedder as embedders
from rpla.memory.embedder import LazyEmbedder
from rpla.memory.episodic import EpisodicMemory
from rpla.memory.memories import Memory
from rpla.memory.remember import remember
from rpla.memory.store import MemoryStore

SISTER = "My sister Wren lives in Hull with her two boys, she is a nurse there."
SETTINGS = Settings.model_validate({"memory": {"embedder": "words"}, "chat": {"alignment": "icl"}})


def agent(folder: Path, settings: Settings = SETTINGS) -> Agent:
    return Agent("ada-lovelace", model=ScriptedModel("Indeed.", cycle=True), home=folder, settings=settings)


def texts(ada: Agent) -> list[str]:
    return [recalled.memory.text for recalled in ada.memories()]


def test_notes_and_pins_survive_an_edit_of_an_earlier_turn(tmp_path: Path) -> None:
    with agent(tmp_path) as ada:
        ada.say("hello there")
        ada.say(SISTER)
        ada.finish()
        note = ada.remember("Sam is a vegetarian.")
        ada.say("goodnight")
        ada.finish()
        kept = texts(ada)
        asked = next(turn for turn in ada.chat.turns if turn.text == "hello there")
        ada.chat.edit(asked, "good evening")
        assert texts(ada) == kept
        ada.say("and you?")
        ada.finish()
        assert texts(ada) == kept
        assert note.text in kept
        assert SISTER in kept


def test_after_the_log_was_restored_new_turns_are_remembered_and_old_ones_once(tmp_path: Path) -> None:
    with agent(tmp_path) as ada:
        ada.say(SISTER)
        ada.finish()
        backup = tmp_path / "backup.db"
        ada._log.backup(backup)
        for number in range(3):
            ada.say(f"I have {number + 3} boats, called Wave {number}.")
        ada.finish()
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"chats.db{suffix}").unlink(missing_ok=True)
    backup.rename(tmp_path / "chats.db")
    store = MemoryStore(tmp_path / "memory.db")
    store.unmark()
    store.close()
    with agent(tmp_path) as ada:
        ada.say("I was born in Penzance in May.")
        ada.finish()
        assert sorted(texts(ada)) == sorted([SISTER, "I was born in Penzance in May."])


def test_what_two_processes_write_at_once_is_seen_by_both(tmp_path: Path) -> None:
    log, stores = ChatLog(tmp_path / "chats.db"), [MemoryStore(tmp_path / "memory.db") for _ in range(2)]
    user, character = new_id(), new_id()
    one, other = (
        EpisodicMemory(store, log, user=user, character=character, embedder=None, settings=SETTINGS.memory)
        for store in stores
    )

    def told(text: str) -> Memory:
        return Memory(id=new_id(), user=user, character=character, text=text, created=1.0, renewed=1.0)

    def write(memory: EpisodicMemory, name: str) -> None:
        for number in range(40):
            memory.add([told(f"{name} {number}")])

    threads = [threading.Thread(target=write, args=pair) for pair in ((one, "one"), (other, "other"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(one.all()) == len(other.all()) == 80
    gone = one.all()[7]
    other.forget([gone.id])
    assert gone.id not in {memory.id for memory in one.all()}
    for store in stores:
        store.close()
    log.close()


def test_a_broken_embedder_leaves_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(name: str) -> None:
        raise AttributeError("half an installation")

    monkeypatch.setattr(embedders, "open_embedder", broken)
    embedder = LazyEmbedder("broken")
    with pytest.raises(RplaError, match="half an installation"):
        embedder.wait()
    assert not embedder.loading
    log, store = ChatLog(tmp_path / "chats.db"), MemoryStore(tmp_path / "memory.db")
    user, character = new_id(), new_id()
    memory = EpisodicMemory(store, log, user=user, character=character, embedder=embedder, settings=SETTINGS.memory)
    chat = log.create_chat(user=user, character=character).id
    log.append(chat, None, "user", SISTER)
    memory.load_embedder()
    assert [kept.text for kept in remember(memory, log, chat)] == [SISTER]
    store.close()
    log.close()


async def test_who_speaks_does_not_wait_for_what_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun, release = threading.Event(), threading.Event()

    def slow(*arguments: object) -> list[Memory]:
        begun.set()
        release.wait()
        return []

    monkeypatch.setattr("rpla.mind.remember", slow)
    ada = agent(tmp_path)
    await ada.asay("hello")
    await asyncio.to_thread(begun.wait)
    # More than the threads that asyncio shares: were they taken, nothing could be saved any more.
    for number in range(40):
        assert (await ada.asay(f"and {number}?")).text == "Indeed."
    release.set()
    await ada.chat.leave()
    ada.close()


def test_switching_chats_stops_what_the_old_one_did(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with agent(tmp_path) as ada:
        ada.say("hello")
        old, stopped = ada.chat, []
        monkeypatch.setattr(old, "close", lambda: stopped.append(old))
        ada.new_chat()
        assert stopped == [old]
