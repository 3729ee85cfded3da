import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rpla.core.chatlog import ChatInfo, ChatLog, Turn
from rpla.core.errors import RplaError
from rpla.core.home import Home
from rpla.core.ids import id_of, new_id
from rpla.core.settings import KnowledgeSettings, MemorySettings
from rpla.core.snapshot import count_turns, snapshots, take_snapshot
from rpla.erase import erase, plan_between, plan_character, plan_chat, plan_turn, plan_user
from rpla.memory.embedder import HashingEmbedder, lazy_embedder
from rpla.memory.episodic import EpisodicMemory
from rpla.memory.knowledge import Knowledge
from rpla.memory.memories import Memory
from rpla.memory.remember import remember
from rpla.memory.store import MemoryStore
from tests.stage import keep_everything

SAM, KIM = id_of("user", "sam"), id_of("user", "kim")
ADA, KEEPER = id_of("bundled", "ada-lovelace"), id_of("test", "keeper")
SECRET = "The code of my safe is Zwölfkampf 4711, nobody else knows it"
PLAIN = "My sister Harriet works as a vet in Lisbon"


@pytest.fixture(autouse=True)
def _all_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_everything(monkeypatch)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def log(home: Home) -> Iterator[ChatLog]:
    opened = ChatLog(home.chats)
    yield opened
    opened.close()


def talk(log: ChatLog, *texts: str, user: str = SAM, character: str = ADA, title: str = "") -> ChatInfo:
    chat = log.create_chat(user=user, character=character, title=title)
    for number, text in enumerate(texts):
        log.append(chat.id, log.head(chat.id), "character" if number % 2 else "user", text)
    return log.chat(chat.id)


def remember_all(home: Home, log: ChatLog, *, conclude: bool = False) -> None:
    store = MemoryStore(home.memory)
    for info in log.chats():
        memory = mind(store, log, info.user, info.character)
        remember(memory, log, info.id)
        if conclude:
            episodes = [one for one in memory.all() if one.kind == "episode"]
            insight = Memory(
                id=new_id(),
                user=info.user,
                character=info.character,
                kind="insight",
                provenance="inferred",
                text=f"From it follows that {SECRET} matters",
                created=1.0,
                renewed=1.0,
                evidence=tuple(one.id for one in episodes),
            )
            memory.add([insight])
    store.close()


def mind(store: MemoryStore, log: ChatLog, user: str = SAM, character: str = ADA) -> EpisodicMemory:
    memory = EpisodicMemory(
        store, log, user=user, character=character, embedder=lazy_embedder("hashing"), settings=MemorySettings()
    )
    memory.load_embedder()
    return memory


def traces(home: Home, *texts: str, vectors: bool = True) -> list[str]:
    """Every file under the home that holds one of the texts, a good part of it, or its vector."""
    needles: list[bytes] = []
    for text in texts:
        halves = (text, text[: len(text) // 2], text[len(text) // 2 :])
        needles += [
            half.encode(code) for half in halves for code in ("utf-8", "utf-16-le", "utf-16-be", "unicode-escape")
        ]
        if vectors:
            [row] = HashingEmbedder()([text])
            needles += [row.astype(np.float16).tobytes(), row.tobytes()]
    found = [str(path) for path in home.root.rglob("*") if path.is_file() for n in needles if n in path.read_bytes()]
    # Words are kept apart in the word index.
    words = {word for text in texts for word in text.lower().split() if len(word) > 5}
    return found + [f"{home.chats}: {word}" for word in words if word.encode() in home.chats.read_bytes().lower()]


def holding(home: Home, needle: bytes) -> list[Path]:
    return [path for path in home.root.rglob("*") if path.is_file() and needle in path.read_bytes()]


def by_text(log: ChatLog, chat: ChatInfo, text: str) -> Turn:
    return next(turn for turn in log.turns(chat.id) if turn.text == text)


def memories(home: Home, user: str = SAM, character: str = ADA) -> list[Memory]:
    store = MemoryStore(home.memory)
    rows = store.rows(user, character)
    store.close()
    return [row.memory for row in rows]


# Turns


def test_the_scan_finds_what_is_not_erased(home: Home, log: ChatLog) -> None:
    talk(log, SECRET, "I shall be silent")
    remember_all(home, log)
    take_snapshot(log, home)
    assert log.search("Zwölfkampf")
    places = {Path(place.partition(": ")[0]).name.split("-")[0] for place in traces(home, SECRET)}
    assert places == {"chats.db", "chats", "memory.db"}


def test_an_erased_turn_is_in_no_file_any_more(home: Home, log: ChatLog) -> None:
    chat = talk(log, PLAIN, "Lisbon is bright", SECRET, "I shall be silent about that", "Thank you for your discretion")
    remember_all(home, log, conclude=True)
    store = MemoryStore(home.memory)
    turns = log.turns(chat.id)
    store.keep_summary(chat.id, turns[0].id, turns[3].id, 4, f"Sam said: {SECRET}")
    store.keep_summary(chat.id, turns[0].id, turns[1].id, 2, "Sam has a sister")
    store.close()
    assert [hit.turn.text for hit in log.search("Zwölfkampf")] == [SECRET]
    log.rename(chat.id, SECRET[:20])
    take_snapshot(log, home)
    (home.root / "chats.db.damaged-20260101T000000").write_text(SECRET, "utf-8")
    (home.snapshots / "chats-20260101T000000.part77").write_text(SECRET, "utf-8")
    home.history.write_text(f"hello\n{SECRET}\n/edit 3 {SECRET}\n/remember {SECRET}\nbye\n", "utf-8")
    before = {turn.id: turn for turn in turns}

    done = erase(home, log, plan_turn(log, turns[2].id))

    assert traces(home, SECRET, f"Sam said: {SECRET}", f"From it follows that {SECRET} matters") == []
    assert (done.turns, done.memories, done.summaries, done.typed) == (1, 2, 1, 3)
    after = log.turns(chat.id)
    assert [turn.id for turn in after] == [turn.id for turn in turns]
    assert (after[2].text, after[2].meta) == ("", {"erased": True})
    assert [turn for turn in after if turn.text] == [before[turn.id] for turn in after if turn.text]
    kept = memories(home)
    assert [one.text for one in kept] == [turn.text for turn in after if turn.text]
    assert [one.context for one in kept] == ["", PLAIN, "", ""]
    assert home.history.read_text("utf-8") == "hello\nbye\n"
    assert log.search("Zwölfkampf") == []
    assert len(log.search("silent")) == 1
    assert log.verify() == []
    [snapshot] = snapshots(home)
    assert (snapshot, count_turns(snapshot)) == (done.snapshot, 5)


def test_edited_copies_and_what_an_edit_said_again_go_too(home: Home, log: ChatLog) -> None:
    chat = talk(log, "An opening of some words", "And an answer to it", SECRET, "I shall be silent about that")
    opening, answer, said, reply = log.turns(chat.id)
    # As Chat.edit does: what followed is said again.
    edited = log.append(chat.id, None, "user", "A better opening", meta={"edited": opening.id})
    again = log.append_all(
        chat.id,
        edited.id,
        [(turn.role, turn.text, {}) for turn in (answer, said, reply)],
    )
    corrected = log.append(chat.id, again[0].id, "user", "My safe has a code", meta={"edited": again[1].id})
    longer = log.append(chat.id, again[1].id, "character", f"{reply.text}, for ever and a day")
    remember_all(home, log)

    plan = plan_turn(log, said.id)
    assert {turn.id for turn in plan.turns} == {said.id, again[1].id, corrected.id}
    assert plan.copies == 2
    erase(home, log, plan)
    assert traces(home, SECRET, "My safe has a code") == []
    # A reply that goes on from another holds it.
    assert {turn.id for turn in plan_turn(log, reply.id).turns} == {reply.id, again[2].id, longer.id}


def test_what_was_remembered_of_an_erased_turn_does_not_come_back(home: Home, log: ChatLog) -> None:
    chat = talk(log, PLAIN, "Lisbon is bright", SECRET)
    remember_all(home, log)
    erase(home, log, plan_turn(log, by_text(log, chat, SECRET).id))
    remember_all(home, log)
    assert SECRET not in [one.text for one in memories(home)]
    log.append(chat.id, log.head(chat.id), "character", "What did you say?")
    remember_all(home, log)
    assert traces(home, SECRET) == []
    # To erase it again is no error: it may have been cut off the first time.
    assert erase(home, log, plan_turn(log, log.turns(chat.id)[2].id)).memories == 0


def test_a_new_turn_goes_where_an_erased_one_stands(home: Home, log: ChatLog) -> None:
    chat = talk(log, PLAIN, SECRET)
    erase(home, log, plan_turn(log, by_text(log, chat, SECRET).id))
    log.append(chat.id, log.head(chat.id), "user", "Go on, then")
    assert [turn.text for turn in log.branch(log.head(chat.id))] == [PLAIN, "", "Go on, then"]
    assert [hit.turn.text for hit in log.search("go on")] == ["Go on, then"]


# Chats, characters, users


def test_an_erased_chat_is_gone_and_the_others_stay(home: Home, log: ChatLog) -> None:
    gone = talk(log, SECRET, "I shall be silent", title=f"About {SECRET}")
    stays = talk(log, PLAIN, "Lisbon is bright")
    remember_all(home, log, conclude=False)
    home.history.write_text(f"{SECRET}\n{PLAIN}\n", "utf-8")
    done = erase(home, log, plan_chat(log, gone.id))
    assert traces(home, SECRET, "I shall be silent") == []
    assert (done.chats, done.turns, done.typed) == (1, 2, 1)
    assert [info.id for info in log.chats()] == [stays.id]
    assert [one.text for one in memories(home)] == [PLAIN, "Lisbon is bright"]
    assert log.verify() == []
    with pytest.raises(RplaError, match="no chat"):
        log.chat(gone.id)
    # Numbers of turns may be given again; what is remembered of the other chats is not confused by that.
    log.append(stays.id, log.head(stays.id), "user", "We were there in spring")
    remember_all(home, log)
    assert [one.text for one in memories(home)] == [PLAIN, "Lisbon is bright", "We were there in spring"]


def test_everything_between_a_user_and_a_character_goes_and_nothing_of_others(home: Home, log: ChatLog) -> None:
    talk(log, SECRET, "I shall be silent")
    put_away = talk(log, f"{SECRET} of old")
    with_keeper = talk(log, "The lamp is lit", character=KEEPER)
    of_kim = talk(log, "I am Kim and like tea", user=KIM)
    remember_all(home, log)
    log.delete(put_away.id)
    store = MemoryStore(home.memory)
    mind(store, log).note(f"{SECRET}, by hand")
    store.close()
    home.history.write_text(f"{SECRET}\nhello\n/remember {SECRET}, by hand\n", "utf-8")
    done = erase(home, log, plan_between(home, log, user=SAM, character=ADA))
    assert traces(home, SECRET, f"{SECRET} of old", f"{SECRET}, by hand") == []
    assert done.chats == 2
    assert memories(home) == []
    assert {info.id for info in log.chats()} == {with_keeper.id, of_kim.id}
    assert [one.text for one in memories(home, KIM)] == ["I am Kim and like tea"]
    assert [one.text for one in memories(home, SAM, KEEPER)] == ["The lamp is lit"]
    assert home.history.read_text("utf-8") == "hello\n"


def test_a_user_goes_with_all_that_was_typed(home: Home, log: ChatLog) -> None:
    talk(log, SECRET)
    talk(log, f"{SECRET}!", character=KEEPER)
    of_kim = talk(log, "I am Kim and like tea", user=KIM)
    remember_all(home, log)
    home.history.write_text(f"{SECRET}\nanything at all\n", "utf-8")
    done = erase(home, log, plan_user(home, log, SAM))
    assert traces(home, SECRET, f"{SECRET}!", "anything at all") == []
    assert (done.chats, done.typed) == (2, 2)
    assert [info.id for info in log.chats()] == [of_kim.id]
    assert [one.text for one in memories(home, KIM)] == ["I am Kim and like tea"]


def test_a_character_goes_for_every_user(home: Home, log: ChatLog) -> None:
    talk(log, SECRET)
    talk(log, f"{SECRET}!", user=KIM)
    with_keeper = talk(log, "The lamp is lit", character=KEEPER)
    remember_all(home, log)
    erase(home, log, plan_character(home, log, ADA))
    assert traces(home, SECRET, f"{SECRET}!") == []
    assert [info.id for info in log.chats()] == [with_keeper.id]
    assert [one.text for one in memories(home, SAM, KEEPER)] == ["The lamp is lit"]


def test_nothing_is_left_of_an_only_chat_and_no_snapshot_is_taken_of_nothing(home: Home, log: ChatLog) -> None:
    chat = talk(log, SECRET)
    take_snapshot(log, home)
    done = erase(home, log, plan_chat(log, chat.id))
    assert done.snapshot is None
    assert snapshots(home) == []
    assert traces(home, SECRET) == []
    assert not home.memory.exists()


def test_a_long_text_on_many_pages_goes_whole(home: Home, log: ChatLog) -> None:
    long = " ".join(f"word{number} {SECRET}" for number in range(2_000))
    chat = talk(log, long, PLAIN)
    remember_all(home, log)
    log.search("Zwölfkampf")
    erase(home, log, plan_turn(log, by_text(log, chat, long).id))
    assert traces(home, SECRET, f"word1999 {SECRET}", vectors=False) == []


# Others at the files


def test_a_second_connection_at_rest_keeps_nothing(home: Home, log: ChatLog) -> None:
    chat = talk(log, SECRET, PLAIN)
    remember_all(home, log)
    with idle(home.chats), idle(home.memory):
        erase(home, log, plan_chat(log, chat.id))
        assert traces(home, SECRET) == []


def test_a_second_connection_that_reads_is_told_of_and_erasing_again_helps(
    home: Home, log: ChatLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpla.core.database._TIMEOUT_S", 0.1)
    chat = talk(log, SECRET, PLAIN)
    quick = ChatLog(home.chats)
    reader = sqlite3.connect(home.chats, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM turns").fetchone()
    plan = plan_chat(quick, chat.id)
    with pytest.raises(RplaError, match="still be read") as raised:
        erase(home, quick, plan)
    assert "erase again" in raised.value.hint
    assert traces(home, SECRET)
    reader.execute("COMMIT")
    reader.close()
    # The chat can still be named.
    erase(home, quick, plan_chat(quick, chat.id))
    assert traces(home, SECRET) == []
    assert quick.chats() == []
    quick.close()


def idle(path: Path) -> subprocess.Popen[bytes]:
    """Another process with the file open, like a chat that waits for its user."""
    code = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); "
        "db.execute('SELECT count(*) FROM sqlite_master').fetchone(); print('open', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    return process


def test_a_kill_before_the_end_leaves_a_chat_that_can_be_erased_again(
    home: Home, log: ChatLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = talk(log, SECRET, PLAIN)
    remember_all(home, log)

    class Killed(BaseException):
        pass

    def die(self: ChatLog, chat: str) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(ChatLog, "remove", die)
        with pytest.raises(Killed):
            erase(home, log, plan_chat(log, chat.id))
    assert log.chat(chat.id).turns == 2
    erase(home, log, plan_chat(log, chat.id))
    assert log.chats() == []
    assert traces(home, SECRET) == []


def test_a_chat_with_words_in_it_is_not_removed(log: ChatLog) -> None:
    chat = talk(log, SECRET)
    with pytest.raises(RplaError, match="not erased"):
        log.remove(chat.id)
    assert log.turns(chat.id)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_typed_lines_are_found_however_they_are_written(home: Home, log: ChatLog, ending: str) -> None:
    chat = talk(log, "/whisper to me", "Yes, my dear", "a b")
    kept = ["_HiStOrY_V2_", "a bc", "/edit 3 a bc", "yes"]
    typed = ["//whisper to me", "a\\040b", "a b ", "/remember a b", "/edit 12 a b"]
    home.history.write_text(ending.join([*kept, *typed]) + ending, "utf-8", newline="")
    erase(home, log, plan_chat(log, chat.id))
    assert home.history.read_text("utf-8").split() == " ".join(kept).split()


def test_a_float_16_vector_is_what_is_looked_for(home: Home, log: ChatLog) -> None:
    talk(log, SECRET)
    remember_all(home, log)
    [row] = HashingEmbedder()([SECRET])
    half = struct.pack(f"<{len(row)}e", *row.tolist())
    store = MemoryStore(home.memory)
    store.checkpoint()
    store.close()
    assert half in home.memory.read_bytes()


# What a character knows from documents

FACT = "The keeper of the northern light buried seventeen brass lanterns under the boathouse"


@pytest.mark.parametrize("embedder", ["words", pytest.param("hashing", marks=pytest.mark.local)])
def test_a_characters_documents_go_with_it_and_another_ones_stay(
    home: Home, log: ChatLog, monkeypatch: pytest.MonkeyPatch, embedder: str
) -> None:
    monkeypatch.setenv("RPLA_MEMORY__EMBEDDER", embedder)
    knowledge = Knowledge(home, lazy_embedder(embedder), KnowledgeSettings())
    for character, text in ((ADA, FACT), (KEEPER, "The Engine weaves patterns")):
        file = home.root.parent / f"{character}.txt"
        file.write_text(text, "utf-8")
        knowledge.add(character, file)
    assert [one.text for one in knowledge.search(ADA, "brass lanterns", limit=3)] == [FACT]
    knowledge.close()
    assert home.chroma.exists() == (embedder == "hashing")
    assert traces(home, FACT)
    [row] = HashingEmbedder()([f"{ADA}\n{FACT}"])  # a passage is embedded under its heading
    vector = row.tobytes()
    assert bool(holding(home, vector)) == (embedder == "hashing")
    talk(log, SECRET)

    done = erase(home, log, plan_character(home, log, ADA))

    assert done.sources == 1
    assert traces(home, SECRET, FACT) == []
    assert holding(home, vector) == []
    knowledge = Knowledge(home, lazy_embedder(embedder), KnowledgeSettings())
    assert knowledge.search(ADA, "brass lanterns", limit=3) == []
    assert [one.text for one in knowledge.search(KEEPER, "Engine", limit=3)] == ["The Engine weaves patterns"]
    assert knowledge.check() == []
    knowledge.close()


def test_a_users_leaving_takes_no_document_away(home: Home, log: ChatLog) -> None:
    knowledge = Knowledge(home, None, KnowledgeSettings())
    knowledge.add_text(ADA, "notes", FACT)
    knowledge.close()
    talk(log, SECRET)
    erase(home, log, plan_between(home, log, user=SAM, character=ADA))
    erase(home, log, plan_user(home, log, SAM))
    knowledge = Knowledge(home, None, KnowledgeSettings())
    assert [one.text for one in knowledge.search(ADA, "brass lanterns", limit=3)] == [FACT]
    knowledge.close()
