import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rpla.core import snapshot
from rpla.core.chatlog import ChatInfo, ChatLog, Role, Turn
from rpla.core.errors import RplaError
from rpla.core.home import Home
from rpla.core.ids import id_of
from rpla.core.salvage import NOBODY
from rpla.core.snapshot import (
    KEPT,
    RestoreReport,
    count_turns,
    restore,
    snapshot_due,
    snapshot_time,
    snapshots,
    take_snapshot,
)

USER, ADA = id_of("user", "me"), id_of("bundled", "ada-lovelace")
PAGE = 4096


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def log(home: Home) -> Iterator[ChatLog]:
    opened = ChatLog(home.chats)
    yield opened
    opened.close()


def talk(log: ChatLog, chat: ChatInfo, first: int, last: int) -> None:
    for number in range(first, last):
        role: Role = "character" if number % 2 else "user"
        log.append(chat.id, log.head(chat.id), role, f"turn {number}; " + "w" * 300, meta={"n": number})


def numbers(turns: list[Turn]) -> list[int]:
    return [int(turn.text.split(";")[0].removeprefix("turn ")) for turn in turns]


def said(home: Home, chat: ChatInfo) -> list[int]:
    log = ChatLog(home.chats)
    try:
        assert log.verify() == []
        return numbers(log.branch(log.head(chat.id)))
    finally:
        log.close()


def overwrite(file: Path, *pages: int, byte: bytes = b"\xff") -> None:
    with file.open("r+b") as opened:
        for page in pages:
            opened.seek(page * PAGE)
            opened.write(byte * PAGE)


def pages_with(file: Path, words: bytes) -> list[int]:
    content = file.read_bytes()
    return [n for n in range(len(content) // PAGE) if words in content[n * PAGE : (n + 1) * PAGE]]


def root_page(file: Path, name: str) -> int:
    db = sqlite3.connect(file)
    (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    db.close()
    return int(page) - 1


def fake_snapshots(home: Home, *stamps: str) -> None:
    home.snapshots.mkdir(parents=True)
    for stamp in stamps:
        (home.snapshots / f"chats-{stamp}.db").write_bytes(b"")


# Taking


def test_a_snapshot_is_a_log_that_holds_what_was_said_so_far(home: Home, log: ChatLog) -> None:
    chat = log.create_chat(user=USER, character=ADA)
    talk(log, chat, 0, 5)
    taken = take_snapshot(log, home)
    talk(log, chat, 5, 9)
    assert taken.parent == home.snapshots
    assert abs(snapshot_time(taken) - datetime.now(UTC).timestamp()) < 60
    assert count_turns(taken) == 5
    copy = ChatLog(taken)
    assert numbers(copy.turns(chat.id)) == [0, 1, 2, 3, 4]
    copy.close()
    assert [file.name for file in home.snapshots.iterdir()] == [taken.name]


def test_only_the_newest_snapshots_are_kept(home: Home, log: ChatLog) -> None:
    fake_snapshots(home, *(f"2020010{day}T000000" for day in range(1, 8)))
    (home.snapshots / "notes.txt").write_text("mine")
    taken = take_snapshot(log, home)
    assert snapshots(home)[0] == taken
    assert [file.name[6:14] for file in snapshots(home)[1:]] == ["20200107", "20200106", "20200105", "20200104"]
    assert len(snapshots(home)) == KEPT
    assert (home.snapshots / "notes.txt").exists()


def test_a_damaged_log_pushes_no_snapshot_out(home: Home, log: ChatLog) -> None:
    chat = log.create_chat(user=USER, character=ADA)
    talk(log, chat, 0, 40)
    log.checkpoint()
    log.close()
    overwrite(home.chats, pages_with(home.chats, b"turn 20;")[0])
    fake_snapshots(home, *(f"2020010{day}T000000" for day in range(1, 6)))
    before = sorted(home.snapshots.iterdir())
    damaged = ChatLog(home.chats)
    with pytest.raises(RplaError, match="damaged"):
        take_snapshot(damaged, home)
    assert sorted(home.snapshots.iterdir()) == before
    damaged.close()


def test_what_a_killed_snapshot_left_is_cleared_away_after_a_day(home: Home, log: ChatLog) -> None:
    home.snapshots.mkdir()
    old, new = home.snapshots / "chats-20200101T000000.part1", home.snapshots / "chats-20200101T000000.part2"
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    take_snapshot(log, home)
    assert not old.exists()
    assert new.exists()


def test_a_snapshot_is_due_once_a_day(home: Home) -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
    assert snapshot_due(home, noon)
    fake_snapshots(home, "20260301T110000", "20260228T110000")
    assert not snapshot_due(home, noon)
    assert not snapshot_due(home, noon + 22 * 3600)
    assert snapshot_due(home, noon + 24 * 3600)


def test_a_clock_that_was_ahead_does_not_put_snapshots_off(home: Home) -> None:
    fake_snapshots(home, "20990101T000000")
    assert snapshot_due(home, datetime(2026, 3, 1, tzinfo=UTC).timestamp())


# Restoring


def damaged_home(home: Home, log: ChatLog, *, before: int, after: int) -> ChatInfo:
    chat = log.create_chat(user=USER, character=ADA)
    talk(log, chat, 0, before)
    if before:
        take_snapshot(log, home)
    talk(log, chat, before, before + after)
    log.checkpoint()
    log.close()
    return chat


def test_turns_after_the_snapshot_are_salvaged_from_the_damaged_log(home: Home, log: ChatLog) -> None:
    chat = damaged_home(home, log, before=40, after=40)
    overwrite(home.chats, pages_with(home.chats, b"turn 10;")[0])
    evidence = home.chats.read_bytes()
    report = restore(home)
    assert said(home, chat) == list(range(80))
    assert report == RestoreReport(
        snapshot=snapshots(home)[0],
        damaged=report.damaged,
        unsound=(),
        chats=0,
        turns=40,
        unread_chats=0,
        unread_turns=0,
        rejoined=0,
        ownerless=(),
    )
    assert report.damaged is not None
    assert report.damaged.name.startswith("chats.db.damaged-")
    assert report.damaged.read_bytes() == evidence


def test_salvaged_turns_keep_ids_dates_meta_parents_and_heads(home: Home, log: ChatLog) -> None:
    chat = log.create_chat(user=USER, character=ADA)
    talk(log, chat, 0, 4)
    take_snapshot(log, home)
    fork = log.head(chat.id)
    talk(log, chat, 4, 8)
    log.set_head(chat.id, fork)
    talk(log, chat, 8, 10)
    later = log.create_chat(user=USER, character=ADA, title="later")
    talk(log, later, 20, 23)
    log.set_head(later.id, log.turns(later.id)[1].id)
    log.rename(chat.id, "renamed")
    log.delete(chat.id)
    before = [(log.chat(info.id), log.turns(info.id)) for info in (chat, later)]
    log.close()
    report = restore(home)
    restored = ChatLog(home.chats)
    assert [(restored.chat(info.id), restored.turns(info.id)) for info in (chat, later)] == before
    assert (report.chats, report.turns) == (1, 9)
    assert len(restored.search("turn")) == 3
    restored.close()


def test_the_newest_turns_come_back_out_of_the_write_ahead_log(home: Home) -> None:
    # A process that is killed leaves its write-ahead log beside the file.
    program = """
import os, sys
from pathlib import Path
from rpla.core.chatlog import ChatLog
log = ChatLog(Path(sys.argv[1]))
chat = log.create_chat(user=sys.argv[2], character=sys.argv[3])
for number in range(9):
    log.append(chat.id, log.head(chat.id), "user", f"turn {number};")
print(chat.id, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(home.chats), USER, ADA], capture_output=True, text=True, check=False
    )
    wal = home.chats.with_name("chats.db-wal")
    evidence = home.chats.read_bytes(), wal.read_bytes()
    report = restore(home)
    log = ChatLog(home.chats)
    assert numbers(log.branch(log.head(done.stdout.strip()))) == list(range(9))
    log.close()
    assert report.turns == 9
    assert report.damaged is not None
    kept = report.damaged.with_name(report.damaged.name + "-wal")
    assert (report.damaged.read_bytes(), kept.read_bytes()) == evidence


def test_without_a_snapshot_all_that_can_be_read_is_salvaged_and_the_rest_is_counted(home: Home, log: ChatLog) -> None:
    chat = damaged_home(home, log, before=0, after=100)
    page = pages_with(home.chats, b"turn 50;")[0]
    lost = [n for n in range(100) if page in pages_with(home.chats, f"turn {n};".encode())]
    overwrite(home.chats, page)
    report = restore(home)
    assert lost
    assert said(home, chat) == [n for n in range(100) if n not in lost]
    assert (report.snapshot, report.turns, report.unread_turns) == (None, 100 - len(lost), len(lost))
    assert report.rejoined == 1


def test_a_lost_first_page_costs_nothing(home: Home, log: ChatLog) -> None:
    chat = damaged_home(home, log, before=10, after=30)
    overwrite(home.chats, 0)
    report = restore(home)
    assert said(home, chat) == list(range(40))
    assert report.turns == 30


def test_a_lost_first_page_costs_nothing_without_a_snapshot_either(home: Home, log: ChatLog) -> None:
    chat = damaged_home(home, log, before=0, after=30)
    overwrite(home.chats, 0, byte=b"\0")
    restore(home)
    assert said(home, chat) == list(range(30))


def test_a_cut_off_file_gives_what_is_left_of_it(home: Home, log: ChatLog) -> None:
    chat = damaged_home(home, log, before=20, after=200)
    with home.chats.open("r+b") as file:
        file.truncate(home.chats.stat().st_size // 2)
    report = restore(home)
    branch = said(home, chat)
    assert branch[:20] == list(range(20))
    assert 0 < report.turns == len(branch) - 20 < 200


def test_a_file_of_rubbish_gives_way_to_the_snapshot(home: Home, log: ChatLog) -> None:
    chat = damaged_home(home, log, before=20, after=5)
    home.chats.write_bytes(random.Random(3).randbytes(100_000))
    report = restore(home)
    assert said(home, chat) == list(range(20))
    assert report.turns == 0


def test_a_log_that_is_gone_comes_back_from_its_snapshot(home: Home, log: ChatLog) -> None:
    chat = damaged_home(home, log, before=20, after=0)
    home.chats.unlink()
    report = restore(home)
    assert said(home, chat) == list(range(20))
    assert report.damaged is None


def test_a_log_begun_anew_is_joined_with_the_snapshot_of_the_old_one(home: Home, log: ChatLog) -> None:
    old = damaged_home(home, log, before=20, after=0)
    home.chats.unlink()
    fresh = ChatLog(home.chats)
    new = fresh.create_chat(user=USER, character=ADA)
    talk(fresh, new, 100, 103)
    fresh.close()
    restore(home)
    assert said(home, old) == list(range(20))
    assert said(home, new) == [100, 101, 102]


def test_damaged_snapshots_are_passed_over_and_kept(home: Home, log: ChatLog) -> None:
    chat = damaged_home(home, log, before=20, after=0)
    sound = snapshots(home)[0]
    newer = home.snapshots / "chats-20990101T000000.db"
    newer.write_bytes(sound.read_bytes())
    overwrite(newer, pages_with(newer, b"turn 10;")[0])
    home.chats.unlink()
    report = restore(home)
    assert (report.snapshot, report.unsound) == (sound, (newer,))
    assert newer.exists()
    assert said(home, chat) == list(range(20))


def test_turns_of_a_chat_whose_row_is_lost_come_back_to_their_owner(home: Home, log: ChatLog) -> None:
    damaged_home(home, log, before=0, after=30)
    overwrite(home.chats, root_page(home.chats, "chats"))
    report = restore(home)
    restored = ChatLog(home.chats)
    (info,) = restored.chats(user=USER, character=ADA)
    assert numbers(restored.branch(info.head)) == list(range(30))
    assert (report.turns, report.ownerless) == (30, ())
    restored.close()


def test_turns_whose_owner_is_lost_are_kept_where_nobody_elses_chats_are(home: Home, log: ChatLog) -> None:
    damaged_home(home, log, before=0, after=30)
    overwrite(home.chats, root_page(home.chats, "chats"), root_page(home.chats, "chats_of"))
    report = restore(home)
    restored = ChatLog(home.chats)
    (info,) = restored.chats()
    assert (info.user, info.character, report.ownerless) == (NOBODY, NOBODY, (info.id,))
    assert numbers(restored.branch(info.head)) == list(range(30))
    restored.close()


def test_a_chat_whose_row_is_lost_after_the_snapshot_goes_on_where_it_was(home: Home, log: ChatLog) -> None:
    chat = damaged_home(home, log, before=20, after=20)
    overwrite(home.chats, root_page(home.chats, "chats"))
    assert restore(home).ownerless == ()
    assert said(home, chat) == list(range(40))


def test_a_broken_word_index_is_made_anew(home: Home, log: ChatLog) -> None:
    chat = log.create_chat(user=USER, character=ADA)
    talk(log, chat, 0, 30)
    assert len(log.search("turn", limit=99)) == 30
    log.close()
    with sqlite3.connect(home.chats) as db:
        db.execute("UPDATE words_data SET block = x'0102030405' WHERE id >= 10")
    db.close()
    restore(home)
    log = ChatLog(home.chats)
    assert len(log.search("turn", limit=99)) == 30
    log.close()


@pytest.mark.parametrize("seed", range(12))
def test_whatever_pages_are_overwritten_the_snapshot_comes_back_whole(home: Home, log: ChatLog, seed: int) -> None:
    chat = damaged_home(home, log, before=60, after=60)
    count = home.chats.stat().st_size // PAGE
    chance = random.Random(seed)
    with home.chats.open("r+b") as file:
        for page in chance.sample(range(count), k=count // 3):
            file.seek(page * PAGE + chance.randrange(PAGE // 2))
            file.write(chance.randbytes(PAGE // 2))
    report = restore(home)
    log = ChatLog(home.chats)
    assert log.verify() == []
    turns = [turn for info in log.chats() for turn in log.turns(info.id)]
    assert set(range(60)) <= set(numbers([turn for turn in turns if turn.text.startswith("turn ")]))
    assert log.chat(chat.id).turns >= 60
    assert len(turns) == 60 + report.turns
    log.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows itself refuses to move an open file")
def test_a_log_that_another_process_has_open_is_left_alone(home: Home, log: ChatLog) -> None:
    chat = damaged_home(home, log, before=5, after=5)
    program = """
import sys
from pathlib import Path
from rpla.core.chatlog import ChatLog
log = ChatLog(Path(sys.argv[1]))
log.chats()
print("open", flush=True)
sys.stdin.readline()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(home.chats)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    with pytest.raises(RplaError, match="open in another process"):
        restore(home)
    assert not list(home.root.glob("*.damaged-*"))
    other.communicate("\n")
    assert restore(home).turns == 5
    assert said(home, chat) == list(range(10))


def test_a_restore_that_fails_leaves_everything_where_it_was(
    home: Home, log: ChatLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged_home(home, log, before=5, after=5)
    overwrite(home.chats, 0)
    before = {file.name: file.read_bytes() for file in home.root.iterdir() if file.is_file()}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot, "_to_disk", fail)
    with pytest.raises(RplaError, match="No space left"):
        restore(home)
    assert {file.name: file.read_bytes() for file in home.root.iterdir() if file.is_file()} == before
    assert not list(home.root.glob(".restore-*"))


def test_two_damages_within_a_second_keep_both_files(home: Home, log: ChatLog) -> None:
    damaged_home(home, log, before=0, after=5)
    first, second = restore(home), restore(home)
    assert first.damaged != second.damaged
    assert first.damaged is not None
    assert first.damaged.exists()
