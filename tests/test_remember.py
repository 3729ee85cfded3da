from collections.abc import Iterator
from pathlib import Path

import pytest

from rpla.core.chatlog import ChatLog
from rpla.core.ids import id_of
from rpla.core.models.base import Options
from rpla.core.models.scripted import ScriptedModel
from rpla.core.settings import MemorySettings
from rpla.memory.embedder import LazyEmbedder
from rpla.memory.episodic import EpisodicMemory
from rpla.memory.gate import Gate, Said, known_words, pieces_of
from rpla.memory.importance import rate
from rpla.memory.remember import remember
from rpla.memory.remembering import viewpoint_at
from rpla.memory.store import LONGEST, MemoryStore

USER, CHARACTER = id_of("user", "sam"), id_of("test", "keeper")
SISTER = "My sister Wren lives in Hull with her two boys, she is a nurse there."


class Mind:
    """A chat log, and the memory over it."""

    def __init__(self, folder: Path, embedder: LazyEmbedder | None = None) -> None:
        self.log, self.store = ChatLog(folder / "chats.db"), MemoryStore(folder / "memory.db")
        self.memory = EpisodicMemory(
            self.store, self.log, user=USER, character=CHARACTER, embedder=embedder, settings=MemorySettings()
        )
        self.chat = self.log.create_chat(user=USER, character=CHARACTER).id
        self.head: str | None = None

    def say(self, *texts: str) -> None:
        """The user and the character by turns."""
        for text in texts:
            role = "user" if len(self.log.branch(self.head)) % 2 == 0 else "character"
            self.head = self.log.append(self.chat, self.head, role, text).id

    def remembered(self) -> list[str]:
        return [memory.text for memory in remember(self.memory, self.log, self.chat)]

    def recalled(self, words: str) -> list[str]:
        viewpoint = viewpoint_at(self.chat, self.log.branch(self.head))
        return [recalled.memory.text for recalled in self.memory.recall(words, viewpoint)]


@pytest.fixture
def mind(tmp_path: Path) -> Iterator[Mind]:
    mind = Mind(tmp_path)
    yield mind
    mind.store.close()
    mind.log.close()


def test_a_fact_is_kept_and_small_talk_is_not(mind: Mind) -> None:
    mind.say("hello there, how are you?", "Dry, for once.", SISTER, "A good trade.", "ha, and do you sleep?", "Rarely.")
    assert mind.remembered() == [SISTER]
    assert mind.recalled("Where does Wren live?") == [SISTER]


def test_each_turn_is_gone_through_once(mind: Mind) -> None:
    mind.say(SISTER, "A good trade.")
    assert mind.remembered() == [SISTER]
    assert mind.remembered() == []
    assert len(mind.memory.all()) == 1


def test_what_is_said_again_renews_what_was_said_first(mind: Mind) -> None:
    mind.say(SISTER, "A good trade.")
    mind.remembered()
    mind.say(SISTER, "So you said.")
    assert mind.remembered() == []
    assert [memory.text for memory in mind.memory.all()] == [SISTER]


def test_what_the_character_plays_back_is_not_kept(mind: Mind) -> None:
    mind.say(SISTER, "So your sister Wren lives in Hull with her two boys, a nurse.")
    assert mind.remembered() == [SISTER]


def test_a_greeting_of_the_card_is_not_kept(mind: Mind) -> None:
    mind.head = mind.log.append(
        mind.chat, None, "character", "I was born in Penzance in 1811.", meta={"greeting": 0}
    ).id
    assert mind.remembered() == []


def test_what_came_after_is_forgotten_by_rewinding_and_known_again_on_return(mind: Mind) -> None:
    mind.say("hello", "Evening.")
    before = mind.head
    mind.say(SISTER, "A good trade.")
    mind.remembered()
    after, mind.head = mind.head, before
    assert mind.recalled("Where does Wren live?") == []
    mind.head = after
    assert mind.recalled("Where does Wren live?") == [SISTER]


def test_the_same_said_on_another_branch_is_kept_there_too(mind: Mind) -> None:
    mind.say("hello", "Evening.")
    before = mind.head
    mind.say(SISTER, "A good trade.")
    mind.remembered()
    mind.head = before
    mind.say(SISTER, "Is that so?")
    assert mind.remembered() == [SISTER]
    assert mind.recalled("Where does Wren live?") == [SISTER]


def test_what_stands_in_the_prompt_anyway_does_not_come_to_mind(mind: Mind) -> None:
    mind.say(SISTER, "A good trade.")
    mind.remembered()
    branch = mind.log.branch(mind.head)
    assert mind.memory.recall("Where does Wren live?", viewpoint_at(mind.chat, branch, window=2)) == []


def test_nothing_comes_to_mind_where_nothing_fits(mind: Mind) -> None:
    mind.say(SISTER, "A good trade.")
    mind.remembered()
    assert mind.recalled("What is the price of lamp oil?") == []


def test_a_very_long_message_is_kept_in_parts() -> None:
    text = "My sister Wren lives in Hull. " * 2000
    parts = pieces_of(text)
    assert len(parts) == 32
    assert all(0 < len(part) <= 400 for part in parts)
    assert all(len(part) <= 400 for part in pieces_of("x" * 1_000_000))
    assert max(map(len, parts)) < LONGEST


def test_the_gate_looks_at_words_alone_where_there_is_no_embedder() -> None:
    gate = Gate("an embedder it never met")
    said = Said(text=SISTER, by_user=True, before="Have you family?", known=known_words(["Have you family?"]), place=7)
    assert gate(said).keep
    assert not gate(Said(text="ok lol", by_user=True, place=7)).keep


async def test_a_model_says_how_much_it_matters_if_asked(mind: Mind) -> None:
    mind.say(SISTER, "A good trade.")
    kept = remember(mind.memory, mind.log, mind.chat)
    assert await rate(mind.memory, ScriptedModel('{"ratings": [9]}'), kept, Options()) == 1
    assert mind.memory.all()[0].importance == 0.9


@pytest.mark.parametrize("answer", ["nine", '{"ratings": [9, 9]}', '{"ratings": ["9"]}', '{"ratings": [11]}', ""])
async def test_rubbish_leaves_the_importance_by_rules(mind: Mind, answer: str) -> None:
    mind.say(SISTER, "A good trade.")
    kept = remember(mind.memory, mind.log, mind.chat)
    before = kept[0].importance
    assert await rate(mind.memory, ScriptedModel(answer, answer), kept, Options()) == 0
    assert mind.memory.all()[0].importance == before


@pytest.mark.local
def test_meaning_finds_what_shares_no_word(tmp_path: Path) -> None:
    embedder = LazyEmbedder("minilm")
    embedder.wait()
    mind = Mind(tmp_path, embedder)
    mind.say("hello", "Evening.", SISTER, "A good trade.", "I play the cello in a quartet on Thursdays", "Do you?")
    assert SISTER in mind.remembered()
    assert mind.recalled("Does he have any siblings?")[:1] == [SISTER]
