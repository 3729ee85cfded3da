import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rpla.agent import Agent
from rpla.cli.main import app
from rpla.core.chatlog import ChatInfo, ChatLog
from rpla.core.errors import RplaError
from rpla.core.home import Home, find_home
from rpla.core.ids import id_of, new_id
from rpla.core.models.scripted import ScriptedModel
from rpla.core.settings import MemorySettings, Settings
from rpla.memory.doctor import MemoryFinding, examine_memory, mend_memory, soundness
from rpla.memory.embedder import lazy_embedder
from rpla.memory.episodic import EpisodicMemory
from rpla.memory.memories import Memory
from rpla.memory.remember import remember
from rpla.memory.store import MemoryStore
from tests.stage import keep_everything

ME, ADA = id_of("user", "default"), id_of("bundled", "ada-lovelace")
PAGE = 4096
WORDS = Settings.model_validate({"memory": {"embedder": "words"}})
HASHES = Settings.model_validate({"memory": {"embedder": "hashing"}})


@pytest.fixture(autouse=True)
def _all_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_everything(monkeypatch)
    monkeypatch.setattr("rpla.core.database._TIMEOUT_S", 0.1)


@pytest.fixture
def home() -> Home:
    return find_home()


@pytest.fixture
def log(home: Home) -> Iterator[ChatLog]:
    opened = ChatLog(home.chats)
    yield opened
    opened.close()


@pytest.fixture
def store(home: Home) -> Iterator[MemoryStore]:
    opened = MemoryStore(home.memory)
    yield opened
    opened.close()


def mind(store: MemoryStore, log: ChatLog, embedder: str = "words") -> EpisodicMemory:
    memory = EpisodicMemory(
        store, log, user=ME, character=ADA, embedder=lazy_embedder(embedder), settings=MemorySettings()
    )
    memory.load_embedder()
    return memory


def talk(log: ChatLog, *texts: str) -> ChatInfo:
    chat = log.create_chat(user=ME, character=ADA)
    for number, text in enumerate(texts):
        log.append(chat.id, log.head(chat.id), "character" if number % 2 else "user", text)
    return log.chat(chat.id)


def memory_of(text: str, **fields: object) -> Memory:
    values: dict = {"id": new_id(), "user": ME, "character": ADA, "created": 1.0, "renewed": 1.0, **fields}
    return Memory(text=text, **values)


def of_kind(home: Home, kind: str, settings: Settings = WORDS) -> list[MemoryFinding]:
    return [finding for finding in examine_memory(home, settings) if finding.kind == kind]


def bad(home: Home, settings: Settings = WORDS) -> list[MemoryFinding]:
    return [finding for finding in examine_memory(home, settings) if not finding.ok]


def texts(store: MemoryStore) -> list[str]:
    return [row.memory.text for row in store.rows(ME, ADA)]


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


# What is sound


def test_a_new_home_is_sound_and_stays_unmade(home: Home) -> None:
    assert bad(home) == []
    assert soundness(home).text == "Nothing is remembered yet."
    assert mend_memory(home, WORDS) == []
    assert not home.root.exists()


def test_sound_memories_are_counted(home: Home, log: ChatLog, store: MemoryStore) -> None:
    chat = talk(log, "I have a dog called Biscuit", "Does he bite?", "I was born in Bristol")
    remember(mind(store, log), log, chat.id)
    assert bad(home) == []
    assert soundness(home).text == "3 memories of 1 pairs; the file is sound."
    assert mend_memory(home, WORDS) == []


def test_the_doctor_of_all_mentions_the_memory_in_a_line(home: Home, log: ChatLog, store: MemoryStore) -> None:
    store.add([memory_of("They sail")])
    [found] = [one for one in json.loads(run("doctor", "--json")) if one["area"] == "memory"]
    assert found["ok"]
    assert found["text"].startswith("1 memories")


# What a person may want to look at


def test_duplicates_are_pairs_that_say_the_same(home: Home, store: MemoryStore) -> None:
    older, newer = memory_of("I have a dog called Biscuit"), memory_of("A dog I have, called Biscuit!")
    store.add([older, memory_of("I was born in Bristol"), newer])
    [found] = of_kind(home, "duplicate")
    assert found.ids == (newer.id, older.id)
    assert found.ok
    assert not found.mendable
    assert of_kind(home, "contradiction") == []


def test_vectors_show_duplicates_too(home: Home, log: ChatLog, store: MemoryStore) -> None:
    memory = mind(store, log, "hashing")
    vector = memory.embedder.query("one and the same") if memory.embedder else None
    older, newer = memory_of("My cat is ill"), memory_of("The tom has a cold")
    memory.add([older, newer], [vector, vector])
    assert [found.ids for found in of_kind(home, "duplicate", HASHES)] == [(newer.id, older.id)]


def test_echoes_are_what_the_character_says_again(home: Home, store: MemoryStore) -> None:
    told = memory_of("I have a dog called Biscuit, he is three years old")
    echo = memory_of("So he is called Biscuit, your dog!", provenance="said")
    store.add([told, echo, memory_of("Storms come from the west", provenance="said")])
    assert [found.ids for found in of_kind(home, "echo")] == [(echo.id, told.id)]


def test_contradictions_are_pairs_of_one_matter_that_differ(home: Home, store: MemoryStore) -> None:
    older = memory_of("My sister Harriet lives in Lisbon")
    newer = memory_of("My sister Harriet lives in Bristol now")
    store.add([older, memory_of("I like ginger tea"), newer])
    before = store.rows(ME, ADA)
    [found] = of_kind(home, "contradiction")
    assert found.ids == (newer.id, older.id)
    assert "Bristol" in found.text
    mend_memory(home, WORDS)
    assert store.rows(ME, ADA) == before, "it is a person who decides"


def test_what_closed_branches_say_is_no_duplicate(home: Home, log: ChatLog, store: MemoryStore) -> None:
    chat = talk(log, "I have a dog called Biscuit")
    # An edit says again what followed, on a branch of its own.
    log.append_all(chat.id, None, [("user", "Good evening to you", {}), ("user", "I have a dog called Biscuit", {})])
    remember(mind(store, log), log, chat.id)
    assert texts(store).count("I have a dog called Biscuit") == 2
    assert of_kind(home, "duplicate") == []


# What can be mended


def test_missing_vectors_are_made(home: Home, log: ChatLog, store: MemoryStore) -> None:
    store.add([memory_of("They sail"), memory_of("They row")])
    [found] = of_kind(home, "vectors", HASHES)
    assert len(found.ids) == 2
    assert found.mendable
    assert mend_memory(home, HASHES) == ["Made 2 vectors."]
    assert bad(home, HASHES) == []
    assert store.embedders(ME, ADA) == {"hashing-256": 2}


def test_vectors_of_another_embedder_are_made_anew(home: Home, store: MemoryStore) -> None:
    [row] = store.add([memory_of("They sail")])
    store.set_vectors([row], [lazy_embedder("hashing").wait()(["x"])[0]], "another-256")  # type: ignore[union-attr]
    assert of_kind(home, "vectors", HASHES)[0].ids == (row.memory.id,)
    mend_memory(home, HASHES)
    assert store.embedders(ME, ADA) == {"hashing-256": 1}


def test_an_embedder_that_is_not_there_is_said_and_is_no_fault(home: Home, store: MemoryStore) -> None:
    store.add([memory_of("They sail")])
    [found] = of_kind(home, "embedder", Settings.model_validate({"memory": {"embedder": "/nowhere/model"}}))
    assert found.ok
    assert "/nowhere/model" in found.text


def test_memories_of_what_the_log_does_not_hold_are_told_and_kept(home: Home, log: ChatLog, store: MemoryStore) -> None:
    chat = talk(log, "I have a dog called Biscuit")
    known = memory_of("They sail", chat=chat.id, turn=log.turns(chat.id)[0].id)
    no_turn = memory_of("They row", chat=chat.id, turn=new_id())
    no_chat = memory_of("They fence", chat=new_id(), turn=new_id())
    store.add([known, no_turn, no_chat])
    assert {found.ids for found in of_kind(home, "stale")} == {(no_turn.id,), (no_chat.id,)}
    mend_memory(home, WORDS)
    assert texts(store) == ["They sail", "They row", "They fence"]


def test_a_deleted_chat_is_not_gone(home: Home, log: ChatLog, store: MemoryStore) -> None:
    chat = talk(log, "I have a dog called Biscuit")
    remember(mind(store, log), log, chat.id)
    log.delete(chat.id)
    assert bad(home) == []


def test_a_memory_whose_successor_is_gone_stands_again(home: Home, store: MemoryStore) -> None:
    old = memory_of("They live in Lisbon", superseded_by=new_id())
    store.add([old])
    [found] = of_kind(home, "superseded")
    assert found.ids == (old.id,)
    mend_memory(home, WORDS)
    assert store.get(old.id).superseded_by is None
    assert bad(home) == []


def test_an_insight_without_evidence_is_taken_away(home: Home, store: MemoryStore) -> None:
    episode = memory_of("They sail")
    insight = memory_of("They love the sea", kind="insight", provenance="inferred", evidence=(episode.id,))
    store.add([episode, insight])
    assert of_kind(home, "evidence")[0].ids == (insight.id,)
    mend_memory(home, WORDS)
    assert texts(store) == ["They sail"]


def test_summaries_of_turns_that_are_gone_go(home: Home, log: ChatLog, store: MemoryStore) -> None:
    chat = talk(log, "I have a dog called Biscuit", "Does he bite?")
    first, last = (turn.id for turn in log.turns(chat.id))
    store.keep_summary(chat.id, first, last, 2, "Of a dog")
    store.keep_summary(chat.id, first, new_id(), 3, "Of a cat")
    assert of_kind(home, "summary")[0].ids == (chat.id,)
    mend_memory(home, WORDS)
    assert [text for _, _, _, text in store.summaries(chat.id)] == ["Of a dog"]


# A file that cannot be used


def overwrite(file: Path, *pages: int) -> None:
    with file.open("r+b") as opened:
        for page in pages:
            opened.seek(page * PAGE)
            opened.write(b"\xff" * PAGE)


def pages_with(file: Path, words: bytes) -> list[int]:
    content = file.read_bytes()
    return [n for n in range(len(content) // PAGE) if words in content[n * PAGE : (n + 1) * PAGE]]


@pytest.fixture
def lived(home: Home) -> ChatInfo:
    """A chat that is remembered, a note, a pin, an edit, and a memory that was forgotten."""
    log, store = ChatLog(home.chats), MemoryStore(home.memory)
    chat = talk(log, *(f"Thing number {number} is a {'long ' * 40}story" for number in range(60)), "Forget me, please")
    memory = mind(store, log)
    remember(memory, log, chat.id)
    memory.note("They like ginger tea")
    memories = memory.all()
    memory.change(memories[3].id, pinned=True)
    memory.change(memories[5].id, text="Number five was otherwise", provenance="noted")
    memory.forget([next(one.id for one in memories if one.text == "Forget me, please")])
    store.checkpoint()
    store.close()
    log.close()
    return chat


def remembered_anew(home: Home) -> list[Memory]:
    log, store = ChatLog(home.chats), MemoryStore(home.memory)
    memory = mind(store, log)
    for info in log.chats():
        remember(memory, log, info.id)
    found = memory.all()
    store.close()
    log.close()
    return found


def test_a_damaged_file_is_begun_anew_and_notes_pins_and_what_was_forgotten_are_brought_over(
    home: Home, lived: ChatInfo
) -> None:
    before = remembered_anew(home)
    overwrite(home.memory, pages_with(home.memory, b"Thing number 40 ")[0])
    [found] = bad(home)
    assert (found.kind, found.mendable) == ("damaged", True)
    assert "rpla memory doctor --mend" in found.hint
    done = mend_memory(home, WORDS)
    [damaged] = home.root.glob("memory.db.damaged-*")
    assert str(damaged) in done[0]
    assert "Brought over: 3" in " ".join(done)
    assert "could not be read" in " ".join(done)
    after = remembered_anew(home)
    assert sorted(one.text for one in after) == sorted(one.text for one in before)
    assert {one.text for one in after if one.pinned} == {one.text for one in before if one.pinned}
    assert "Forget me, please" not in [one.text for one in after]
    assert bad(home) == []


def test_a_file_without_its_first_page_is_still_read(home: Home, lived: ChatInfo) -> None:
    overwrite(home.memory, 0)
    assert bad(home)[0].kind == "damaged"
    assert "Brought over: 3" in " ".join(mend_memory(home, WORDS))
    assert "They like ginger tea" in [one.text for one in remembered_anew(home)]


def test_where_nothing_can_be_read_the_loss_is_said_and_the_chats_are_remembered(home: Home, lived: ChatInfo) -> None:
    home.memory.write_bytes(b"\xff" * 50_000)
    done = " ".join(mend_memory(home, WORDS))
    assert "noted by hand" in done
    assert "is lost" in done
    assert "may be remembered again" in done
    after = [one.text for one in remembered_anew(home)]
    assert len(after) == 61
    assert "They like ginger tea" not in after


def test_a_talk_with_a_damaged_memory_says_how_to_mend_it(home: Home, lived: ChatInfo) -> None:
    home.memory.write_bytes(b"\xff" * 50_000)
    with pytest.raises(RplaError, match="is damaged") as raised:
        Agent("ada-lovelace", model=ScriptedModel("Yes."), home=home.root)
    assert "rpla memory doctor --mend" in raised.value.hint


def test_the_command_mends_and_says_what_it_did(home: Home, lived: ChatInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPLA_MEMORY__EMBEDDER", "words")
    overwrite(home.memory, 0)
    assert "NO  damaged" in run("memory", "doctor", code=1)
    assert not next(one for one in json.loads(run("doctor", "--json", code=1)) if one["area"] == "memory")["ok"]
    assert [one["kind"] for one in json.loads(run("memory", "doctor", "--mend", "--json"))] == ["sound"]
    assert "ok  sound" in run("memory", "doctor")


def test_a_locked_file_is_told_and_left_alone(home: Home, lived: ChatInfo) -> None:
    holder = sqlite3.connect(home.memory, isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    [found] = bad(home)
    assert (found.kind, found.mendable) == ("locked", False)
    with pytest.raises(RplaError, match="locked by another process"):
        mend_memory(home, WORDS)
    holder.execute("ROLLBACK")
    holder.close()
    assert bad(home) == []


def test_a_damaged_file_that_another_process_has_open_is_not_moved(home: Home, lived: ChatInfo) -> None:
    code = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); "
        "db.execute('SELECT count(*) FROM sqlite_master').fetchone(); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, home.memory], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        overwrite(home.memory, 0)
        content = home.memory.read_bytes()
        with pytest.raises(RplaError, match="open in another process"):
            mend_memory(home, WORDS)
        assert home.memory.read_bytes() == content
        assert os.listdir(home.root).count("memory.db") == 1


@pytest.mark.parametrize(
    ("mark", "message"), [("user_version=99", "newer rpla"), ("application_id=7", "is not a memory")]
)
def test_a_newer_file_or_someone_elses_is_refused_and_left_alone(
    home: Home, lived: ChatInfo, mark: str, message: str
) -> None:
    db = sqlite3.connect(home.memory)
    db.execute(f"PRAGMA {mark}")
    db.close()
    content = home.memory.read_bytes()
    [found] = bad(home)
    assert (found.kind, found.mendable) == ("unusable", False)
    assert message in found.text
    with pytest.raises(RplaError, match=message):
        mend_memory(home, WORDS)
    with pytest.raises(RplaError, match=message):
        run("memory", "list", "ada-lovelace")
    assert home.memory.read_bytes() == content


# A clock that is not right


def test_a_clock_that_runs_backwards_loses_nothing(
    home: Home, log: ChatLog, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(2_000_000_000, 0, -1_000_000))
    for module in ("store", "episodic"):
        monkeypatch.setattr(f"rpla.memory.{module}.now", lambda: float(next(times)))
    memory = mind(store, log)
    chat = talk(log, "I have a dog called Biscuit")
    remember(memory, log, chat.id)
    notes = [memory.note(f"Note of number {number}") for number in range(5)]
    assert [one.text for one in memory.all()][1:] == [note.text for note in notes], "the order is that of writing"
    assert notes[0].created > notes[-1].created
    found = memory.recall("the dog Biscuit", None)
    assert found[0].memory.text == "I have a dog called Biscuit"
    assert all(0 <= one.recency <= 1 for one in found)
    assert bad(home) == []
