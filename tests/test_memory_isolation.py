"""What one has told a character is nobody else's, and what did not happen on the way here is not remembered."""

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from rpla.core.chatlog import ChatInfo, ChatLog, Role
from rpla.core.errors import RplaError
from rpla.core.ids import id_of, new_id
from rpla.core.settings import MemorySettings
from rpla.memory.embedder import lazy_embedder
from rpla.memory.episodic import EpisodicMemory, Viewpoint
from rpla.memory.memories import Memory
from rpla.memory.remember import remember
from rpla.memory.remembering import viewpoint_at
from rpla.memory.store import MemoryStore
from tests.stage import keep_everything

LABELS = (
    "a", "A", "ab", "a%", "a_", "a*", "%", "_", "*", "a ", " a", "", "[a]", "a'--", "a\0", "a\u200b",
    "а", "á", "a\u0301", "ａ",
)  # fmt: skip
"""Prefixes, wildcards and look-alikes of one another."""
EVERYTHING = MemorySettings(floor=0.0, recalled=64)


@pytest.fixture(autouse=True)
def _all_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_everything(monkeypatch)


def mind(
    store: MemoryStore, log: ChatLog, user: str, character: str, settings: MemorySettings = EVERYTHING
) -> EpisodicMemory:
    memory = EpisodicMemory(
        store, log, user=user, character=character, embedder=lazy_embedder("hashing"), settings=settings
    )
    memory.load_embedder()
    return memory


def here(log: ChatLog, chat: str, **more: object) -> Viewpoint:
    view = viewpoint_at(chat, log.branch(log.head(chat)))
    return Viewpoint(chat=view.chat, turns=view.turns, **more)  # type: ignore[arg-type]


def test_labels_that_look_alike_are_different_users() -> None:
    assert len({id_of("user", label) for label in LABELS}) == len(LABELS)
    assert not {id_of("user", label) for label in LABELS} & {id_of("bundled", label) for label in LABELS}


# A model of what may be remembered, kept beside the real thing


@dataclass
class Told:
    id: str
    scope: tuple[str, str]
    text: str
    chat: str | None
    turn: str | None
    present: tuple[str, ...] = ()


@dataclass
class Line:
    """A chat as the model knows it."""

    scope: tuple[str, str]
    parents: dict[str, str | None] = field(default_factory=dict)
    head: str | None = None
    deleted: bool = False

    @property
    def open(self) -> set[str]:
        turns, turn = set[str](), self.head
        while turn is not None:
            turns.add(turn)
            turn = self.parents[turn]
        return turns


class Isolation(RuleBasedStateMachine):
    @initialize(
        users=st.lists(st.sampled_from(LABELS), min_size=2, max_size=3, unique=True),
        characters=st.lists(st.sampled_from(LABELS), min_size=1, max_size=2, unique=True),
    )
    def begin(self, users: list[str], characters: list[str]) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.log, self.store = ChatLog(self.folder / "chats.db"), MemoryStore(self.folder / "memory.db")
        self.scopes = [(id_of("user", user), id_of("own", name)) for user in users for name in characters]
        self.minds = {scope: mind(self.store, self.log, *scope) for scope in self.scopes}
        self.lines: dict[str, Line] = {}
        self.told: dict[str, Told] = {}
        self.count = 0
        # Two chats of one pair and one of each other, so that there is something to confuse from the first step on.
        for scope in [self.scopes[0], *self.scopes]:
            id = self.log.create_chat(user=scope[0], character=scope[1]).id
            self.lines[id] = Line(scope)
            self.told_in(id, self.lines[id], "user")
            self.told_in(id, self.lines[id], "character")

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.store.close()
            self.log.close()
            shutil.rmtree(self.folder)

    def words(self) -> str:
        self.count += 1
        return f"the lamp story of zq{self.count}x"

    def some_scope(self, data: st.DataObject) -> tuple[str, str]:
        return data.draw(st.sampled_from(self.scopes))

    def some_chat(self, data: st.DataObject) -> tuple[str, Line]:
        id = data.draw(st.sampled_from(sorted(self.lines, key=list(self.lines).index)))
        return id, self.lines[id]

    @rule(data=st.data())
    def begin_a_chat(self, data: st.DataObject) -> None:
        user, character = scope = self.some_scope(data)
        self.lines[self.log.create_chat(user=user, character=character).id] = Line(scope)

    @rule(data=st.data())
    def say(self, data: st.DataObject) -> None:
        id, line = self.some_chat(data)
        self.told_in(id, line, data.draw(st.sampled_from(("user", "character"))))

    def told_in(self, id: str, line: Line, role: Role) -> None:
        text = self.words()
        turn = self.log.append(id, line.head, role, text)
        line.parents[turn.id], line.head = line.head, turn.id
        [kept] = remember(self.minds[line.scope], self.log, id)
        self.told[kept.id] = Told(kept.id, line.scope, text, id, turn.id)

    @rule(data=st.data())
    def go_to(self, data: st.DataObject) -> None:
        id, line = self.some_chat(data)
        line.head = data.draw(st.sampled_from([None, *line.parents]))
        self.log.set_head(id, line.head)

    @rule(data=st.data())
    def put_away_or_bring_back(self, data: st.DataObject) -> None:
        id, line = self.some_chat(data)
        (self.log.undelete if line.deleted else self.log.delete)(id)
        line.deleted = not line.deleted

    @rule(data=st.data(), bound=st.booleans())
    def note(self, data: st.DataObject, bound: bool) -> None:
        id, line = self.some_chat(data)
        text, turn = self.words(), line.head if bound else None
        noted = self.minds[line.scope].note(text, here(self.log, id), turn=turn)
        self.told[noted.id] = Told(noted.id, line.scope, text, id if turn else None, turn)

    @rule(data=st.data())
    def live_through_a_scene(self, data: st.DataObject) -> None:
        scope, text = self.some_scope(data), self.words()
        others = sorted({one for pair in self.scopes for one in pair})
        present = tuple(data.draw(st.lists(st.sampled_from(others), min_size=1, unique=True)))
        memory = Memory(
            id=new_id(), user=scope[0], character=scope[1], text=text, present=present, created=1.0, renewed=1.0
        )
        self.minds[scope].add([memory])
        self.told[memory.id] = Told(memory.id, scope, text, None, None, present)

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def forget_or_change_through_any_handle(self, data: st.DataObject) -> None:
        one = self.told[data.draw(st.sampled_from(sorted(self.told, key=list(self.told).index)))]
        scope = self.some_scope(data)
        if scope == one.scope:
            assert self.minds[scope].forget([one.id]) == [one.id]
            del self.told[one.id]
            return
        for verb in (
            lambda memory: memory.forget([one.id]),
            lambda memory: memory.change(one.id, text="something else"),
            lambda memory: memory.change(one.id, pinned=True),
        ):
            with pytest.raises(RplaError, match="There is no memory"):
                verb(self.minds[scope])

    def expected(self, scope: tuple[str, str], chat: str) -> set[str]:
        def seen(one: Told) -> bool:
            if one.scope != scope or (one.present and scope[1] not in one.present):
                return False
            if one.chat is None:
                return True
            line = self.lines[one.chat]
            return one.turn in line.open and (one.chat == chat or not line.deleted)

        return {one.id for one in self.told.values() if seen(one)}

    @invariant()
    def nobody_remembers_what_is_not_his(self) -> None:
        if not hasattr(self, "lines"):
            return
        for scope, memory in self.minds.items():
            assert {one.id for one in memory.all()} == {one.id for one in self.told.values() if one.scope == scope}
        for id, line in self.lines.items():
            memory, view, may = self.minds[line.scope], here(self.log, id), self.expected(line.scope, id)
            assert {one.id for one in memory.all(view)} == may
            assert {one.memory.id for one in memory.recall("the lamp story", view, limit=1000)} <= may
            for one in self.told.values():
                found = {recalled.memory.id for recalled in memory.recall(one.text.split()[-1], view, limit=1000)}
                assert found <= may
                assert (one.id in found) == (one.id in may)


def test_no_foreign_memory_and_none_of_another_branch_ever_comes_to_mind() -> None:
    run_state_machine_as_test(
        Isolation,
        settings=settings(
            max_examples=25,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),  # to shrink a failure takes minutes
        ),
    )


# The same, told as stories


@pytest.fixture
def log(tmp_path: Path):
    opened = ChatLog(tmp_path / "chats.db")
    yield opened
    opened.close()


@pytest.fixture
def store(tmp_path: Path):
    opened = MemoryStore(tmp_path / "memory.db")
    yield opened
    opened.close()


SAM, ADA = id_of("user", "sam"), id_of("bundled", "ada")
DOG = "I have a dog called Biscuit"


def talk(log: ChatLog, *texts: str, user: str = SAM) -> ChatInfo:
    chat = log.create_chat(user=user, character=ADA)
    for text in texts:
        log.append(chat.id, log.head(chat.id), "user", text)
    return log.chat(chat.id)


def recalled(memory: EpisodicMemory, view: Viewpoint, words: str = "dog Biscuit") -> list[str]:
    return [one.memory.text for one in memory.recall(words, view)]


def test_rewinding_forgets_and_going_back_remembers(log: ChatLog, store: MemoryStore) -> None:
    chat, memory = talk(log, "Good day to you", DOG, "And so to bed"), mind(store, log, SAM, ADA)
    remember(memory, log, chat.id)
    first, _, last = log.turns(chat.id)
    assert DOG in recalled(memory, here(log, chat.id))
    log.set_head(chat.id, first.id)
    assert DOG not in recalled(memory, here(log, chat.id))
    log.append(chat.id, first.id, "user", "I never had any animal")
    remember(memory, log, chat.id)
    assert DOG not in recalled(memory, here(log, chat.id))
    log.set_head(chat.id, last.id)
    assert DOG in recalled(memory, here(log, chat.id))
    assert "I never had any animal" not in recalled(memory, here(log, chat.id), "animal")


def test_closed_branches_and_deleted_chats_are_not_seen_from_other_chats(log: ChatLog, store: MemoryStore) -> None:
    other, chat = talk(log, "Good day to you", DOG), talk(log, "It is late")
    memory = mind(store, log, SAM, ADA)
    remember(memory, log, other.id)
    first, last = log.turns(other.id)
    view = here(log, chat.id)
    assert recalled(memory, view) == [DOG]
    log.set_head(other.id, first.id)
    assert recalled(memory, view) == []
    log.set_head(other.id, last.id)
    assert recalled(memory, view) == [DOG]
    log.delete(other.id)
    assert recalled(memory, view) == []
    log.undelete(other.id)
    assert recalled(memory, view) == [DOG]


def test_chats_can_be_kept_apart(log: ChatLog, store: MemoryStore) -> None:
    other, chat = talk(log, DOG), talk(log, "It is late")
    apart = EVERYTHING.model_copy(update={"across_chats": False})
    memory = mind(store, log, SAM, ADA, apart)
    remember(memory, log, other.id)
    assert recalled(memory, here(log, chat.id)) == []
    assert recalled(memory, here(log, other.id)) == [DOG]


def test_who_was_not_there_and_what_is_yet_to_come_are_unknown(log: ChatLog, store: MemoryStore) -> None:
    chat, memory = talk(log, "Good day"), mind(store, log, SAM, ADA)
    fields = {"user": SAM, "character": ADA, "created": 1.0, "renewed": 1.0}
    memory.add(
        [
            Memory(id=new_id(), text="The dog barked at noon", present=(new_id(), SAM), **fields),
            Memory(id=new_id(), text="The dog slept at dusk", present=(ADA, new_id()), **fields),
            Memory(id=new_id(), text="The dog dies at last", story_time=9.0, **fields),
            Memory(id=new_id(), text="The dog was born", story_time=1.0, **fields),
        ]
    )
    assert set(recalled(memory, here(log, chat.id, story_time=5.0), "dog")) == {
        "The dog slept at dusk",
        "The dog was born",
    }


def test_an_insight_is_seen_where_two_of_its_episodes_are(log: ChatLog, store: MemoryStore) -> None:
    chat, memory = talk(log, DOG, "My cat is called Crumb", "My horse is called Bran"), mind(store, log, SAM, ADA)
    remember(memory, log, chat.id)
    episodes = memory.all()
    insight = Memory(
        id=new_id(),
        user=SAM,
        character=ADA,
        kind="insight",
        provenance="inferred",
        text="They love animals",
        created=1.0,
        renewed=1.0,
        evidence=tuple(one.id for one in episodes),
    )
    memory.add([insight])
    first, second, _ = log.turns(chat.id)
    for head, seen in ((second, True), (first, False)):
        log.set_head(chat.id, head.id)
        assert ("They love animals" in recalled(memory, here(log, chat.id), "animals")) == seen


def test_another_process_writes_and_forgets_and_it_is_seen(log: ChatLog, store: MemoryStore, tmp_path: Path) -> None:
    chat, memory = talk(log, DOG), mind(store, log, SAM, ADA)
    assert recalled(memory, here(log, chat.id)) == []
    elsewhere = MemoryStore(tmp_path / "memory.db")
    other = mind(elsewhere, log, SAM, ADA)
    [kept] = remember(other, log, chat.id)
    assert recalled(memory, here(log, chat.id)) == [DOG]
    assert remember(memory, log, chat.id) == [], "each turn once, whoever goes through it"
    other.forget([kept.id])
    assert recalled(memory, here(log, chat.id)) == []
    elsewhere.close()


def test_anothers_memory_cannot_be_changed_or_forgotten_by_its_id(log: ChatLog, store: MemoryStore) -> None:
    chat, memory = talk(log, DOG), mind(store, log, SAM, ADA)
    [kept] = remember(memory, log, chat.id)
    for other in (mind(store, log, id_of("user", "sam "), ADA), mind(store, log, SAM, id_of("bundled", "ad%"))):
        own = other.note("The lamp is lit")
        for ids in ([kept.id], [own.id, kept.id]):
            with pytest.raises(RplaError, match="There is no memory"):
                other.forget(ids)
        with pytest.raises(RplaError, match="There is no memory"):
            other.change(kept.id, pinned=True)
        assert other.all() == [own], "none is taken where one is not there"
    assert memory.all() == [kept]
