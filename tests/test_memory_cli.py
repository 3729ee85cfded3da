import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rpla.agent import Agent
from rpla.cli.main import app
from rpla.core.chatlog import ChatInfo, ChatLog
from rpla.core.errors import RplaError
from rpla.core.home import Home, find_home
from rpla.core.ids import id_of, new_id
from rpla.core.models.scripted import ScriptedModel
from rpla.core.settings import MemorySettings, Settings
from rpla.memory.embedder import lazy_embedder
from rpla.memory.episodic import EpisodicMemory
from rpla.memory.memories import Memory
from rpla.memory.remember import remember
from rpla.memory.store import LONGEST, MemoryStore
from tests.stage import keep_everything

ME, KIM, ADA = id_of("user", "default"), id_of("user", "kim"), id_of("bundled", "ada-lovelace")
DOG, SISTER = "I have a dog called Biscuit", "My sister Harriet works as a vet in Lisbon"
RPLA = [sys.executable, "-m", "rpla"]


@pytest.fixture(autouse=True)
def _words_and_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_everything(monkeypatch)
    monkeypatch.setenv("RPLA_MEMORY__EMBEDDER", "hashing")


@pytest.fixture
def home() -> Home:
    return find_home()


@pytest.fixture
def chat(home: Home) -> ChatInfo:
    log = ChatLog(home.chats)
    info = log.create_chat(user=ME, character=ADA)
    log.append(info.id, None, "user", DOG)
    log.append(info.id, log.head(info.id), "character", "Does Biscuit bite?")
    log.append(info.id, log.head(info.id), "user", SISTER)
    store = MemoryStore(home.memory)
    remember(mind(store, log), log, info.id)
    store.close()
    log.close()
    return info


def mind(store: MemoryStore, log: ChatLog, user: str = ME) -> EpisodicMemory:
    memory = EpisodicMemory(
        store, log, user=user, character=ADA, embedder=lazy_embedder("hashing"), settings=MemorySettings()
    )
    memory.load_embedder()
    return memory


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["memory", *arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def facts(*arguments: str, code: int = 0) -> list[dict]:
    return json.loads(run(*arguments, "--json", code=code).stdout)


def listed() -> list[dict]:
    return facts("list", "ada-lovelace")


def id_of_text(text: str) -> str:
    return next(one["id"] for one in listed() if one["text"] == text)


def conclude(home: Home, text: str, *evidence: str) -> str:
    log, store = ChatLog(home.chats), MemoryStore(home.memory)
    [kept] = mind(store, log).add(
        [
            Memory(
                id=new_id(),
                user=ME,
                character=ADA,
                kind="insight",
                provenance="inferred",
                text=text,
                created=1.0,
                renewed=1.0,
                evidence=evidence,
            )
        ]
    )
    store.close()
    log.close()
    return kept.id


# Looking


def test_memories_are_listed_the_newest_first(chat: ChatInfo) -> None:
    assert [one["text"] for one in listed()] == [SISTER, "Does Biscuit bite?", DOG]
    head, first, *_ = run("list", "ada-lovelace").stdout.splitlines()
    assert head.split() == ["memory", "kind", "when", "matters", "marks", "text"]
    assert first.startswith(id_of_text(SISTER)[:8])
    assert SISTER in first


def test_what_the_open_branch_does_not_see_is_listed_and_marked(home: Home, chat: ChatInfo) -> None:
    log = ChatLog(home.chats)
    log.set_head(chat.id, log.turns(chat.id)[0].id)
    log.close()
    assert [one["seen"] for one in listed()] == [False, False, True]
    lines = run("list", "ada-lovelace").stdout.splitlines()
    assert ["not on an open branch" in line for line in lines[1:]] == [True, True, False]
    run("pin", "ada-lovelace", id_of_text(DOG))
    assert "pinned" in run("list", "ada-lovelace").stdout


def test_another_users_memories_are_not_shown(chat: ChatInfo) -> None:
    run("note", "ada-lovelace", "--user", "kim", "Kim likes tea")
    assert "tea" not in run("list", "ada-lovelace").stdout
    assert [one["text"] for one in facts("list", "ada-lovelace", "--user", "kim")] == ["Kim likes tea"]
    kims = facts("list", "ada-lovelace", "--user", "kim")[0]["id"]
    for verb in (("show",), ("forget",), ("pin",), ("edit", "other words")):
        with pytest.raises(RplaError, match="no memory"):
            run(verb[0], "ada-lovelace", kims, *verb[1:])
    assert facts("list", "ada-lovelace", "--user", "kim")[0]["text"] == "Kim likes tea"


def test_a_search_says_how_well_each_fits_and_why(chat: ChatInfo) -> None:
    found = facts("search", "ada-lovelace", "dog", "Biscuit")
    assert found[0]["text"] == DOG
    assert found[0]["score"] >= found[-1]["score"]
    assert re.fullmatch(r"relevance \d\.\d\d, recency \d\.\d\d, importance \d\.\d\d", found[0]["reason"])
    shown = run("search", "ada-lovelace", "dog", "Biscuit").stdout.splitlines()
    assert found[0]["reason"] in shown[1]
    assert "Nothing was found" in run("search", "ada-lovelace", "zeppelin").stderr


def test_one_memory_is_shown_with_its_turn_and_what_stands_on_it(home: Home, chat: ChatInfo) -> None:
    insight = conclude(home, "They care for animals", id_of_text(DOG), id_of_text(SISTER))
    shown = run("show", "ada-lovelace", id_of_text(SISTER)[:8]).stdout
    assert shown.startswith(SISTER)
    for part in ("episode, told", chat.id, f"user: {SISTER}", "Does Biscuit bite?", f"{insight[:8]} They care"):
        assert part in shown
    of_insight = json.loads(run("show", "ada-lovelace", insight, "--json").stdout)
    assert [one["text"] for one in of_insight["evidence"]] == [DOG, SISTER]
    assert of_insight["said"] is None


def test_hostile_text_reaches_the_terminal_defused(chat: ChatInfo) -> None:
    run("note", "ada-lovelace", "a\x1b]52;c;aGk=\x07b\u202ec\nd")
    shown = run("list", "ada-lovelace").stdout
    assert "abc d" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown + run("list", "ada-lovelace", "--json").stdout)
    assert listed()[0]["text"] == "a\x1b]52;c;aGk=\x07b\u202ec\nd"


def test_ids_may_be_shortened_where_they_are_one_memorys(home: Home, chat: ChatInfo) -> None:
    db = sqlite3.connect(home.memory)
    for number, end in ((1, "0"), (2, "1")):
        db.execute("UPDATE memories SET id = ? WHERE num = ?", (bytes.fromhex("abcdef" + end + "0" * 25), number))
    db.commit()
    db.close()
    with pytest.raises(RplaError, match="2 ids begin with abcdef") as raised:
        run("pin", "ada-lovelace", "abcdef")
    assert f"abcdef0  {DOG}" in raised.value.hint
    assert "abcdef1  Does Biscuit bite?" in raised.value.hint
    run("pin", "ada-lovelace", "ABCDEF1")
    assert [one["pinned"] for one in listed()] == [False, True, False]
    for id, message in (("abc", "too short"), ("0000", "no memory"), ("%%%%", "no memory"), ("____", "no memory")):
        with pytest.raises(RplaError, match=message):
            run("forget", "ada-lovelace", id)
    assert len(listed()) == 3


def test_counts(home: Home, chat: ChatInfo) -> None:
    conclude(home, "They care for animals", id_of_text(DOG), id_of_text(SISTER))
    counts = facts("stats", "ada-lovelace")
    assert {key: counts[key] for key in ("memories", "seen", "episode", "insight", "told", "said", "chats")} == {
        "memories": 4, "seen": 4, "episode": 3, "insight": 1, "told": 2, "said": 1, "chats": 1
    }  # fmt: skip
    assert counts["vectors"] == {"hashing-256": 4}
    assert "vectors of hashing-256" in run("stats", "ada-lovelace").stdout


# Changing


def test_a_pin_makes_a_memory_come_to_mind_at_anything(chat: ChatInfo) -> None:
    run("pin", "ada-lovelace", id_of_text(SISTER))
    assert [one["text"] for one in facts("search", "ada-lovelace", "zeppelin")] == [SISTER]
    run("unpin", "ada-lovelace", id_of_text(SISTER))
    assert facts("search", "ada-lovelace", "zeppelin") == []


def test_an_edited_memory_is_noted_by_hand_and_found_by_its_new_words(chat: ChatInfo) -> None:
    run("edit", "ada-lovelace", id_of_text(DOG), "They have a cat", "called Crumb")
    [found, *_] = facts("search", "ada-lovelace", "cat", "Crumb")
    assert (found["text"], found["provenance"]) == ("They have a cat called Crumb", "noted")
    assert DOG not in [one["text"] for one in listed()]


def test_a_note_is_kept_and_its_id_printed(chat: ChatInfo) -> None:
    id = run("note", "ada-lovelace", "They", "like", "tea").stdout.strip()
    assert (listed()[0]["id"], listed()[0]["text"], listed()[0]["seen"]) == (id, "They like tea", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [("x" * 1_000_000, "at most 4,000 characters"), ("   ", "nothing to remember"), ("half \ud800", "lone surrogate")],
)
def test_what_cannot_be_remembered_is_said(chat: ChatInfo, text: str, message: str) -> None:
    for verb in (("note", "ada-lovelace"), ("edit", "ada-lovelace", id_of_text(DOG))):
        with pytest.raises(RplaError, match=message) as raised:
            run(*verb, text)
        assert len(raised.value.message) < 200
    if len(text) > LONGEST:
        assert "rpla knowledge add" in raised.value.hint
    assert [one["text"] for one in listed()] == [SISTER, "Does Biscuit bite?", DOG]


def test_forgetting_says_that_it_is_for_good_and_what_falls_with_it(home: Home, chat: ChatInfo) -> None:
    conclude(home, "They care for animals", id_of_text(DOG), id_of_text(SISTER))
    told = run("forget", "ada-lovelace", id_of_text(DOG)[:8]).stderr
    assert f"Forgot {''}" in told
    assert DOG in told
    assert "They care for animals" in told
    assert "cannot be undone" in told
    assert [one["text"] for one in listed()] == [SISTER, "Does Biscuit bite?"]


def test_what_is_forgotten_is_not_remembered_from_that_chat_again(home: Home, chat: ChatInfo) -> None:
    run("forget", "ada-lovelace", id_of_text(DOG))
    log, store = ChatLog(home.chats), MemoryStore(home.memory)
    # As an edit does: the same words are said again on a branch of their own.
    log.append_all(chat.id, None, [("user", "An edited beginning", {}), ("user", DOG, {})])
    remember(mind(store, log), log, chat.id)
    store.close()
    log.close()
    assert DOG not in [one["text"] for one in listed()]
    assert "An edited beginning" in [one["text"] for one in listed()]


def test_several_can_be_forgotten_an_insight_and_its_evidence_among_them(home: Home, chat: ChatInfo) -> None:
    insight = conclude(home, "They care for animals", id_of_text(DOG), id_of_text(SISTER))
    run("forget", "ada-lovelace", id_of_text(DOG), insight, id_of_text(SISTER), insight)
    assert [one["text"] for one in listed()] == ["Does Biscuit bite?"]


def test_vectors_are_made_anew(home: Home, chat: ChatInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    db = sqlite3.connect(home.memory)
    db.execute("UPDATE memories SET vector = NULL, embedder = NULL WHERE num = 1")
    db.commit()
    db.close()
    assert facts("stats", "ada-lovelace")["vectors"] == {"": 1, "hashing-256": 2}
    assert "Made 3 vectors" in run("rebuild", "ada-lovelace").stderr
    assert facts("stats", "ada-lovelace")["vectors"] == {"hashing-256": 3}
    monkeypatch.setenv("RPLA_MEMORY__EMBEDDER", "words")
    with pytest.raises(RplaError, match="words alone"):
        run("rebuild", "ada-lovelace")


# Erasing


def test_nothing_is_erased_that_nobody_confirmed(home: Home, chat: ChatInfo) -> None:
    with pytest.raises(RplaError, match="nobody can be asked") as raised:
        run("erase", "ada-lovelace")
    assert "--yes" in raised.value.hint
    assert len(listed()) == 3


def test_a_person_at_a_terminal_is_asked(home: Home, chat: ChatInfo) -> None:
    for answer, code in ((b"y\n", 1), (b"yes\n", 0)):
        mine, theirs = pty.openpty()
        os.write(mine, answer)
        done = subprocess.run(
            [*RPLA, "memory", "erase", "ada-lovelace"], stdin=theirs, capture_output=True, text=True, check=False
        )
        os.close(theirs)
        os.close(mine)
        assert done.returncode == code, done.stderr
        assert DOG in done.stderr, "what goes is shown before"
        assert len(listed()) == (3 if code else 0)
    log = ChatLog(home.chats)
    assert log.empty
    log.close()


def test_a_turn_is_erased_by_how_its_id_begins(home: Home, chat: ChatInfo) -> None:
    log = ChatLog(home.chats)
    turns = log.turns(chat.id)
    told = run("erase", "--turn", turns[0].id[:12], "--yes")
    assert DOG in told.stderr
    assert [turn.text for turn in log.turns(chat.id)] == ["", "Does Biscuit bite?", SISTER]
    log.close()
    assert [one["text"] for one in listed()] == [SISTER, "Does Biscuit bite?"]
    assert b"dog called" not in home.chats.read_bytes() + home.memory.read_bytes()


def test_a_chat_is_erased_and_the_report_can_be_read_by_programs(home: Home, chat: ChatInfo) -> None:
    done = json.loads(run("erase", "--chat", chat.id[:8], "--yes", "--json").stdout)
    assert (done["chats"], done["turns"], done["memories"], done["snapshot"]) == (1, 3, 3, None)
    assert listed() == []


def test_a_foreign_chat_or_turn_is_not_found(home: Home, chat: ChatInfo) -> None:
    log = ChatLog(home.chats)
    turn = log.turns(chat.id)[0].id
    log.close()
    for flag, id in (("--chat", chat.id), ("--turn", turn)):
        for owner in (("--user", "kim"), ("sherlock-holmes",)):
            with pytest.raises(RplaError, match="There is no"):
                run("erase", *owner, flag, id, "--yes")
    assert len(listed()) == 3


@pytest.mark.parametrize(
    "arguments",
    [(), ("--turn", "abcd", "--chat", "abcd"), ("--everyone",), ("ada-lovelace", "--everyone", "--user", "x")],
)
def test_what_to_erase_must_be_one_thing(chat: ChatInfo, arguments: tuple[str, ...]) -> None:
    with pytest.raises(RplaError, match="erase"):
        run("erase", *arguments, "--yes")
    assert len(listed()) == 3


def test_a_user_is_erased_from_every_character(home: Home, chat: ChatInfo) -> None:
    run("note", "sherlock-holmes", "They fence")
    run("note", "sherlock-holmes", "--user", "kim", "Kim rows")
    run("erase", "--user", "default", "--yes")
    assert facts("list", "sherlock-holmes") == listed() == []
    assert [one["text"] for one in facts("list", "sherlock-holmes", "--user", "kim")] == ["Kim rows"]


def test_erasing_is_refused_while_another_rpla_is_open(home: Home, chat: ChatInfo) -> None:
    code = (
        "import sys; from pathlib import Path; from rpla.core.chatlog import ChatLog; "
        "log = ChatLog(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, home.chats], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(RplaError, match="open in another process") as raised:
            run("erase", "ada-lovelace", "--yes")
        assert "Close every rpla" in raised.value.hint
        assert len(listed()) == 3
    run("erase", "ada-lovelace", "--yes")
    assert listed() == []


# In the line chat, and for programs


@pytest.fixture
def rpla(tmp_path: Path):
    def talk(*lines: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*RPLA, "chat", "ada-lovelace"],
            input="\n".join([*lines, ""]),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "RPLA_MODEL": "scripted:Quite so."},
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return talk


def test_a_person_notes_recalls_and_forgets_in_the_chat(rpla) -> None:
    done = rpla(
        "Hello.",
        "/remember They like ginger tea",
        "/remember They sail",
        "/memories",
        "/memories ginger tea",
        "/forget 1",
        "/memories",
    )
    newest, fitting, left = re.split(r"^ +when.*$|^ +score.*$", done.stdout.partition("Quite so.\n")[2], flags=re.M)[1:]
    assert re.findall("They .*", newest) == ["They sail", "They like ginger tea"]
    assert re.search(r"1 +\d\.\d\d +relevance .* They like ginger tea", fitting)
    assert re.findall("They .*", left) == ["They sail"]
    assert "Forgotten for good" in done.stderr


def test_why_shows_what_was_recalled_and_what_was_forgotten_since(rpla) -> None:
    done = rpla("Hello.", "/remember They like ginger tea", "Would you like ginger tea?", "/why", "/forget 1", "/why")
    before, after = done.stdout.split("\nmemories:\n")[1:]
    assert re.match(r" +1\. \d\.\d\d  They like ginger tea  \(relevance ", before)
    assert re.match(r" +1\. \d\.\d\d  \[forgotten since\]  \(relevance ", after)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("/forget 1",), "No memories were listed"),
        (("/remember",), "nothing to remember"),
        (("/remember " + "x" * 5000,), "rpla knowledge add"),
        (("/remember tea", "/memories", "/forget 2"), "not a number from 1 to 1"),
        (("/remember tea", "/memories", "/forget 1", "/forget 1"), "There is no memory"),
    ],
)
def test_a_slip_of_the_tongue_is_an_error_not_a_crash(rpla, lines: tuple[str, ...], message: str) -> None:
    assert message in rpla("Hello.", *lines, code=1).stderr


def agent(home: Home, **settings: object) -> Agent:
    values = {"memory": {"embedder": "hashing"}, "chat": {"prefill": False}, **settings}
    return Agent(
        "ada-lovelace",
        model=ScriptedModel("Quite so.", cycle=True),
        home=home.root,
        settings=Settings.model_validate(values),
    )


def test_a_program_remembers_recalls_and_forgets(home: Home) -> None:
    with agent(home) as ada:
        ada.say("Hello.")
        note = ada.remember("They like ginger tea")
        assert note.turn == ada.chat.head.id
        assert [one.memory.text for one in ada.memories("ginger tea")] == ["They like ginger tea"]
        reply = ada.say("Would you like ginger tea?")
        [section] = [section for section in ada.chat.why(reply.turn) if section.name == "memories"]
        assert [item.id for item in section.items] == [note.id]
        assert ada.texts_of(section) == {note.id: "They like ginger tea"}
        assert ada.forget([note.id]) == [note.id]
        assert ada.texts_of(section) == {}
        assert note.id not in [one.memory.id for one in ada.memories()]


def test_rewinding_undoes_a_note_and_going_back_brings_it(home: Home) -> None:
    with agent(home, memory={"embedder": "hashing", "remember": False}) as ada:
        ada.say("Hello.")
        ada.say("It is late.")
        head = ada.chat.head
        ada.remember("They like ginger tea")
        ada.chat.rewind()
        assert ada.memories() == ada.memories("ginger tea") == []
        ada.chat.branch(head)
        assert [one.memory.text for one in ada.memories()] == ["They like ginger tea"]


def test_without_a_memory_it_is_said(home: Home) -> None:
    with Agent("ada-lovelace", model=ScriptedModel("Quite so."), alignment="none", home=home.root) as ada:
        for verb in (lambda: ada.remember("x"), ada.memories, lambda: ada.forget([new_id()])):
            with pytest.raises(RplaError, match="no memory"):
                verb()


def test_the_turns_own_record_holds_no_text_of_memories(home: Home) -> None:
    with agent(home) as ada:
        ada.say("Hello.")
        ada.remember("They like ginger tea")
        reply = ada.say("Would you like ginger tea?")
        assert "memories" in [section.name for section in ada.chat.why(reply.turn)]
        assert "ginger" not in json.dumps(dict(reply.turn.meta))
