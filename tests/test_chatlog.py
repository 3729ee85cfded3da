import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpla.core.chatlog import SCHEMA_VERSION, ChatInfo, ChatLog, Role, Turn
from rpla.core.errors import RplaError
from rpla.core.home import Home
from rpla.core.ids import id_of, new_id
from rpla.core.snapshot import restore, take_snapshot

USER, OTHER_USER = id_of("user", "me"), id_of("user", "someone else")
ADA, HOLMES = id_of("bundled", "ada-lovelace"), id_of("bundled", "sherlock-holmes")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ChatLog]:
    opened = ChatLog(tmp_path / "chats.db")
    yield opened
    opened.close()


@pytest.fixture
def chat(log: ChatLog) -> ChatInfo:
    return log.create_chat(user=USER, character=ADA)


def texts(turns: list[Turn]) -> list[str]:
    return [turn.text for turn in turns]


def overwrite_page_with(file: Path, words: bytes) -> None:
    content = bytearray(file.read_bytes())
    start = content.index(words) // 4096 * 4096
    content[start : start + 4096] = b"\xff" * 4096
    file.write_bytes(content)


def say(log: ChatLog, chat: ChatInfo, *said: str, under: Turn | None = None) -> list[Turn]:
    added: list[Turn] = []
    for text in said:
        parent = added[-1] if added else under
        role: Role = "character" if parent is not None and parent.role == "user" else "user"
        added.append(log.append(chat.id, parent.id if parent else None, role, text))
    return added


def test_what_is_appended_is_read_back_by_another_log(log: ChatLog, chat: ChatInfo) -> None:
    turn = log.append(chat.id, None, "character", "Good day 🌞\n\u2028\x00end", meta={"greeting": 0, "é": ["x", 1]})
    other = ChatLog(log.path)
    assert other.turn(turn.id) == turn
    assert turn.meta == {"greeting": 0, "é": ["x", 1]}
    assert other.chat(chat.id).head == turn.id
    other.close()


def test_a_branch_is_the_path_from_the_first_turn_to_its_leaf(log: ChatLog, chat: ChatInfo) -> None:
    hello, hi, _how = say(log, chat, "hello", "hi", "how are you?")
    hey, bye = say(log, chat, "hey", "bye", under=hello)
    assert texts(log.branch(bye.id)) == ["hello", "hey", "bye"]
    assert texts(log.children(chat.id, hello.id)) == ["hi", "hey"]
    assert texts(log.leaves(chat.id)) == ["bye", "how are you?"]
    assert texts(log.turns(chat.id)) == ["hello", "hi", "how are you?", "hey", "bye"]
    assert log.branch(None) == []
    assert hi.parent == hey.parent == hello.id


def test_first_turns_of_a_chat_are_alternatives_and_those_of_other_chats_are_not(log: ChatLog, chat: ChatInfo) -> None:
    elsewhere = log.create_chat(user=USER, character=ADA)
    say(log, elsewhere, "elsewhere")
    say(log, chat, "one")
    say(log, chat, "two")
    assert texts(log.children(chat.id, None)) == ["one", "two"]


def test_the_head_moves_with_each_turn_and_where_it_is_set(log: ChatLog, chat: ChatInfo) -> None:
    assert log.head(chat.id) is None
    first, second = say(log, chat, "first", "second")
    assert log.head(chat.id) == second.id
    log.set_head(chat.id, first.id)
    assert log.head(chat.id) == log.chat(chat.id).head == first.id
    log.set_head(chat.id, None)
    assert log.head(chat.id) is None
    assert log.chat(chat.id).turns == 2


def test_a_parent_in_another_chat_is_refused(log: ChatLog, chat: ChatInfo) -> None:
    elsewhere = log.create_chat(user=USER, character=ADA)
    (turn,) = say(log, elsewhere, "elsewhere")
    with pytest.raises(RplaError, match="is not in chat"):
        log.append(chat.id, turn.id, "character", "here")
    assert log.turns(chat.id) == []


@pytest.mark.parametrize("id", ["", "%", "0" * 31, "0" * 33, "g" * 32, "' OR 1=1 --"])
def test_what_is_no_id_is_refused_as_such(log: ChatLog, id: str) -> None:
    with pytest.raises(RplaError, match="is not an id"):
        log.chat(id)


def test_unknown_chats_and_turns_are_told(log: ChatLog) -> None:
    with pytest.raises(RplaError, match="There is no chat"):
        log.chat(new_id())
    with pytest.raises(RplaError, match="There is no turn"):
        log.turn(new_id())
    with pytest.raises(RplaError, match="There is no chat"):
        log.append(new_id(), None, "user", "hello")


def test_lone_surrogates_are_refused_and_nothing_is_kept(log: ChatLog, chat: ChatInfo) -> None:
    with pytest.raises(RplaError, match="surrogate"):
        log.append(chat.id, None, "user", "half \ud83d of it")
    assert log.turns(chat.id) == []
    say(log, chat, "whole 😀")
    assert texts(log.turns(chat.id)) == ["whole 😀"]


def test_deleted_chats_are_listed_apart_and_come_back_whole(log: ChatLog, chat: ChatInfo) -> None:
    say(log, chat, "hello")
    log.delete(chat.id)
    assert log.chats() == []
    assert [info.id for info in log.chats(deleted=True)] == [chat.id]
    log.undelete(chat.id)
    assert [(info.id, info.turns) for info in log.chats()] == [(chat.id, 1)]


def test_chats_are_listed_for_one_user_and_character_latest_first(log: ChatLog, chat: ChatInfo) -> None:
    later = log.create_chat(user=USER, character=ADA)
    log.create_chat(user=USER, character=HOLMES)
    log.create_chat(user=OTHER_USER, character=ADA)
    assert [info.id for info in log.chats(user=USER, character=ADA)] == [later.id, chat.id]


def test_a_title_is_the_given_one_or_how_the_user_began(log: ChatLog, chat: ChatInfo) -> None:
    assert chat.title == ""
    log.append(chat.id, None, "character", "greeting")
    say(log, chat, "w" * 80)
    assert log.chat(chat.id).title == "w" * 60
    log.rename(chat.id, "Engines")
    assert log.chat(chat.id).title == "Engines"


# Search


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("engine", True),
        ("ENGINE analytical", True),
        ("engi", True),
        ("ngine", False),
        ("engine steam", False),
        ("creme brulee", True),
        ("crème brûlée", True),
        ("cre\u0300me", True),
        ("分析", True),
        ("析", True),
        ("機関車", False),
        ("한국", True),
        ('"analytical', True),
        ('analytical"', True),
        ('"', False),
        ("*", False),
        ("anal*", True),
        ("-", False),
        ("-engine", True),
        ("engine -analytical", True),
        ("NEAR", False),
        ("NEAR(engine analytical, 2)", False),
        ("engine OR steam", False),
        ("engine NOT analytical", False),
        ("text:engine", False),
        ("^engine", True),
        ("{engine}", True),
        ("(engine", True),
        ("'; DROP TABLE turns; --", False),
        ("%", False),
        ("\x00", False),
        ("engine\x00analytical", True),
        ("", False),
        ("  ", False),
    ],
)
def test_a_search_takes_its_words_as_they_are(log: ChatLog, chat: ChatInfo, query: str, found: bool) -> None:
    say(log, chat, "The Analytical Engine of 解析機関 分析 한국어 with crème brûlée")
    assert len(log.search(query)) == found


def test_a_search_finds_turns_added_after_an_earlier_search(log: ChatLog, chat: ChatInfo) -> None:
    say(log, chat, "loom")
    assert len(log.search("loom")) == 1
    say(log, chat, "another loom")
    assert len(log.search("loom")) == 2
    assert len(log.search("loom", limit=1)) == 1


def test_a_search_never_leaves_its_user_and_character(log: ChatLog, chat: ChatInfo) -> None:
    say(log, chat, "mine of secrets")
    for user, character in ((OTHER_USER, ADA), (USER, HOLMES)):
        say(log, log.create_chat(user=user, character=character), "secrets elsewhere")
    hits = log.search("secrets", user=USER, character=ADA)
    assert [(hit.turn.text, hit.chat.user, hit.chat.character) for hit in hits] == [("mine of secrets", USER, ADA)]
    assert len(log.search("secrets", user=USER)) == 2


def test_a_search_leaves_deleted_chats_out(log: ChatLog, chat: ChatInfo) -> None:
    say(log, chat, "loom")
    log.delete(chat.id)
    assert log.search("loom") == []
    log.undelete(chat.id)
    assert len(log.search("loom")) == 1


# Chats from elsewhere


def test_a_chat_from_elsewhere_comes_with_its_tree_dates_and_meta(log: ChatLog) -> None:
    def turn(id: str, parent: str | None, text: str) -> Turn:
        return Turn(id=id, chat="", parent=parent, role="user", text=text, created=1234.567, meta={"finish": "length"})

    turns = [turn("a", None, "first"), turn("b", "a", "left"), turn("c", "a", "right")]
    info = log.add_chat(user=USER, character=ADA, title="Old", turns=turns, head="b")
    assert texts(log.branch(info.head)) == ["first", "left"]
    assert texts(log.children(info.id, log.turns(info.id)[0].id)) == ["left", "right"]
    assert {(t.created, t.meta["finish"]) for t in log.turns(info.id)} == {(1234.567, "length")}
    assert (info.title, info.turns, info.created) == ("Old", 3, 1234.567)
    assert log.verify() == []


@pytest.mark.parametrize(("parent", "text", "head"), [("later", "x", None), (None, "\ud800", None), (None, "x", "no")])
def test_a_chat_from_elsewhere_is_taken_whole_or_not_at_all(
    log: ChatLog, parent: str | None, text: str, head: str | None
) -> None:
    sound = Turn(id="a", chat="", parent=None, role="user", text="sound", created=0)
    faulty = Turn(id="b", chat="", parent=parent, role="user", text=text, created=0)
    with pytest.raises(RplaError):
        log.add_chat(user=USER, character=ADA, turns=[sound, faulty], head=head)
    assert log.chats() == []
    assert log.search("sound") == []


# The file


def test_a_log_of_a_newer_schema_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    ChatLog(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(RplaError, match="newer rpla") as raised:
        ChatLog(path)
    assert "Upgrade" in raised.value.hint
    assert path.read_bytes() == before


def test_another_programs_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE bookmarks (url)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(RplaError, match="is not a chat log"):
        ChatLog(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_with_the_doctors_hint(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    path.write_bytes(b"Dear diary, " * 1000)
    with pytest.raises(RplaError, match="is damaged") as raised:
        ChatLog(path)
    assert "rpla doctor --mend" in raised.value.hint
    assert path.read_bytes() == b"Dear diary, " * 1000


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_log_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    ChatLog(path).close()
    path.chmod(0o400)
    log = ChatLog(path)
    with pytest.raises(RplaError, match="cannot be used"):
        log.create_chat(user=USER, character=ADA)
    log.close()


def test_threads_with_logs_of_their_own_lose_nothing(tmp_path: Path) -> None:
    path, each = tmp_path / "chats.db", 40
    logs = [ChatLog(path), ChatLog(path)]
    chats = [log.create_chat(user=USER, character=ADA) for log in logs]
    failures: list[RplaError] = []

    def write(log: ChatLog, chat: ChatInfo, name: str) -> None:
        try:
            for number in range(each):
                log.append(chat.id, log.head(chat.id), "user", f"{name} {number}")
        except RplaError as error:
            failures.append(error)

    # Two threads share each log; one chat for each, so that a chain of heads has one writer.
    chats += [log.create_chat(user=USER, character=ADA) for log in logs]
    threads = [
        threading.Thread(target=write, args=(logs[number % 2], chat, str(number))) for number, chat in enumerate(chats)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for number, chat in enumerate(chats):
        assert texts(logs[0].branch(logs[1].head(chat.id))) == [f"{number} {n}" for n in range(each)]
    assert logs[0].verify() == []
    for log in logs:
        log.close()


_WRITER = """
import sys
from pathlib import Path
from rpla.core.chatlog import ChatLog
print("ready", flush=True)
sys.stdin.readline()
log = ChatLog(Path(sys.argv[1]))
chat = log.create_chat(user="1" * 32, character="2" * 32)
for number in range(40):
    log.append(chat.id, log.head(chat.id), "user", f"{sys.argv[2]} {number}")
    if number % 10 == 0:
        log.search(sys.argv[2])
print(chat.id)
"""


def test_processes_that_write_one_log_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    ChatLog(path).close()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    answers = [writer.communicate(timeout=60) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0], answers
    log = ChatLog(path)
    for number, (chat, _) in enumerate(answers):
        assert texts(log.branch(log.head(chat.strip()))) == [f"{number} {n}" for n in range(40)]
    assert len(log.search("39", limit=9)) == 3
    assert log.verify() == []
    log.close()


def test_a_write_is_refused_while_another_process_holds_the_lock_and_works_after(log: ChatLog, chat: ChatInfo) -> None:
    holder = sqlite3.connect(log.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    log._database.connection.execute("PRAGMA busy_timeout=10")
    with pytest.raises(RplaError, match="locked by another process"):
        say(log, chat, "too soon")
    holder.execute("ROLLBACK")
    holder.close()
    say(log, chat, "in time")
    assert texts(log.turns(chat.id)) == ["in time"]


def test_a_full_file_refuses_a_turn_clearly_keeps_the_others_and_goes_on_when_there_is_room(
    log: ChatLog, chat: ChatInfo
) -> None:
    pages = log._database.connection.execute("PRAGMA page_count").fetchone()[0]
    log._database.connection.execute(f"PRAGMA max_page_count={pages + 12}")
    kept: list[str] = []
    with pytest.raises(RplaError, match="is full") as raised:  # noqa: PT012
        for number in range(1000):
            text = f"{number} " + "w" * 1000
            log.append(chat.id, log.head(chat.id), "user", text)
            kept.append(text)
    assert "Free some space" in raised.value.hint
    assert kept
    assert texts(log.branch(log.head(chat.id))) == kept
    assert log.verify() == []
    log._database.connection.execute("PRAGMA max_page_count=1000000")
    log.append(chat.id, log.head(chat.id), "user", "room again")
    assert texts(log.branch(log.head(chat.id))) == [*kept, "room again"]


def test_a_copy_made_while_the_log_is_in_use_is_sound_and_whole(log: ChatLog, chat: ChatInfo, tmp_path: Path) -> None:
    say(log, chat, "one", "two")
    log.backup(tmp_path / "copy.db")
    say(log, chat, "three")
    copy = ChatLog(tmp_path / "copy.db")
    assert texts(copy.turns(chat.id)) == ["one", "two"]
    assert copy.verify() == []
    copy.close()


def test_a_damaged_log_says_so_and_is_brought_back(tmp_path: Path) -> None:
    home = Home(tmp_path)
    log = ChatLog(home.chats)
    chat = log.create_chat(user=USER, character=ADA)
    say(log, chat, *(f"before the snapshot {n} " + "w" * 400 for n in range(60)))
    take_snapshot(log, home)
    head = log.turn(log.chat(chat.id).head or "")
    say(log, chat, *(f"after the snapshot {n}" for n in range(20)), under=head)
    log.checkpoint()
    log.close()
    overwrite_page_with(home.chats, b"before the snapshot 30 ")
    log = ChatLog(home.chats)
    with pytest.raises(RplaError, match="is damaged") as raised:
        log.branch(log.head(chat.id))
    assert "rpla doctor --mend" in raised.value.hint
    log.close()
    shutil.copyfile(home.chats, tmp_path / "evidence")
    report = restore(home)
    log = ChatLog(home.chats)
    assert [text.split(" w")[0] for text in texts(log.branch(log.head(chat.id)))] == [
        *(f"before the snapshot {n}" for n in range(60)),
        *(f"after the snapshot {n}" for n in range(20)),
    ]
    assert report.turns == 20
    assert report.damaged is not None
    assert report.damaged.read_bytes() == (tmp_path / "evidence").read_bytes()
    log.close()


def test_a_head_in_another_chat_is_refused(log: ChatLog, chat: ChatInfo) -> None:
    elsewhere = log.create_chat(user=USER, character=ADA)
    (turn,) = say(log, elsewhere, "elsewhere")
    with pytest.raises(RplaError, match="is not in chat"):
        log.set_head(chat.id, turn.id)
    assert log.head(chat.id) is None


def test_a_closed_log_says_so_and_not_that_it_is_damaged(log: ChatLog) -> None:
    log.close()
    with pytest.raises(RplaError, match="is closed"):
        log.chats()


def test_text_that_is_not_unicode_any_more_is_damage(log: ChatLog, chat: ChatInfo) -> None:
    (turn,) = say(log, chat, "hello")
    log._database.connection.execute("UPDATE turns SET text = CAST(x'ff00fe' AS TEXT)")
    with pytest.raises(RplaError, match="is damaged"):
        log.turn(turn.id)


def test_a_damaged_word_index_is_found(log: ChatLog, chat: ChatInfo) -> None:
    say(log, chat, "loom")
    log.search("loom")
    assert log.verify() == []
    log._database.connection.execute("UPDATE words_data SET block = x'0102030405' WHERE id >= 10")
    assert ["index of words" in fault for fault in log.verify()] == [True]


def test_processes_that_make_one_log_at_once_all_get_it(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from rpla.core.chatlog import ChatLog
print("ready", flush=True)
for line in sys.stdin:
    log = ChatLog(Path(line.strip()))
    log.create_chat(user="1" * 32, character="2" * 32)
    log.close()
    print("made", flush=True)
"""
    makers = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    heard = [maker.stdout.readline() for maker in makers if maker.stdout]
    for number in range(20):
        for maker in makers:
            assert maker.stdin is not None
            maker.stdin.write(f"{tmp_path / str(number)}\n")
            maker.stdin.flush()
        heard += [maker.stdout.readline() for maker in makers if maker.stdout]
    for maker in makers:
        maker.communicate()
    assert heard == ["ready\n"] * 3 + ["made\n"] * 60
