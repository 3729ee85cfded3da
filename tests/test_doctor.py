import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rpla.cli import chats as chats_cli
from rpla.cli.doctor import doctor
from rpla.core.chatlog import SCHEMA_VERSION, ChatInfo, ChatLog
from rpla.core.doctor import Finding, examine
from rpla.core.errors import RplaError
from rpla.core.home import Home
from rpla.core.ids import id_of
from rpla.core.snapshot import take_snapshot

USER, ADA = id_of("user", "default"), id_of("bundled", "ada-lovelace")

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(doctor)
app.add_typer(chats_cli.app, name="chats")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("RPLA_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home")


@pytest.fixture
def chat(home: Home) -> ChatInfo:
    log = ChatLog(home.chats)
    info = log.create_chat(user=USER, character=ADA)
    log.append(info.id, None, "character", "Good day.")
    log.append(info.id, log.head(info.id), "user", "What does the Engine weave?")
    log.append(info.id, log.head(info.id), "character", "Algebraic patterns.")
    info = log.chat(info.id)
    log.close()
    return info


def of_area(home: Home, area: str) -> list[Finding]:
    return [finding for finding in examine(home) if finding.area == area]


def bad(home: Home) -> list[Finding]:
    return [finding for finding in examine(home) if not finding.ok]


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


def damage(home: Home) -> None:
    content = bytearray(home.chats.read_bytes())
    start = content.index(b"Algebraic patterns.") // 4096 * 4096
    content[start : start + 4096] = b"\xff" * 4096
    home.chats.write_bytes(content)


# Examining


def test_a_new_home_is_well_and_stays_unmade(home: Home) -> None:
    assert bad(home) == []
    assert not home.root.exists()


def test_every_area_is_looked_at(home: Home, chat: ChatInfo) -> None:
    areas = {finding.area for finding in examine(home)}
    assert areas >= {
        "python", "packages", "extras", "settings", "home", "disk", "chats", "snapshots", "characters", "models"
    }  # fmt: skip
    packages = [finding.text for finding in of_area(home, "packages")]
    assert [text.split()[0] for text in packages] == ["rpla", "langgraph", "xllamacpp"]


def test_examining_loads_no_heavy_package(home: Home) -> None:
    program = (
        "import sys; from pathlib import Path; from rpla.core.doctor import examine; from rpla.core.home import Home; "
        "examine(Home(Path(sys.argv[1]))); "
        "print([name for name in ('torch', 'transformers', 'langgraph', 'xllamacpp') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(home.root)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_sound_log_is_counted_and_an_unanswered_turn_is_information(home: Home, chat: ChatInfo) -> None:
    log = ChatLog(home.chats)
    log.append(chat.id, chat.head, "user", "And then?")
    log.close()
    counted, unanswered = of_area(home, "chats")
    assert "1 chats with 4 turns" in counted.text
    assert chat.id[:8] in unanswered.text
    assert bad(home) == []


def test_settings_that_do_not_load_are_a_finding(home: Home) -> None:
    home.root.mkdir()
    home.config.write_text("[sampling]\ntemprature = 1\n")
    (finding,) = bad(home)
    assert finding.area == "settings"
    assert "temprature" in finding.text
    assert "temperature" in finding.hint


def test_a_damaged_page_is_a_finding_that_can_be_mended(home: Home, chat: ChatInfo) -> None:
    damage(home)
    (finding,) = bad(home)
    assert (finding.area, finding.mendable) == ("chats", True)
    assert "--mend" in finding.hint


@pytest.mark.parametrize("content", [b"no database at all " * 500, b"SQLite format 3\x00" + b"\xff" * 9000])
def test_a_log_that_does_not_even_open_is_a_finding_that_can_be_mended(home: Home, content: bytes) -> None:
    home.root.mkdir()
    home.chats.write_bytes(content)
    (finding,) = bad(home)
    assert (finding.area, finding.mendable) == ("chats", True)


def test_a_log_of_a_newer_rpla_is_a_finding_that_is_left_alone(home: Home, chat: ChatInfo) -> None:
    with sqlite3.connect(home.chats) as db:
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    db.close()
    (finding,) = bad(home)
    assert (finding.area, finding.mendable) == ("chats", False)
    assert "newer" in finding.text


@pytest.mark.parametrize("loss", ["gone", "empty", "begun anew"])
def test_a_log_that_lost_what_its_snapshot_has_is_a_finding_that_can_be_mended(
    home: Home, chat: ChatInfo, loss: str
) -> None:
    log = ChatLog(home.chats)
    take_snapshot(log, home)
    log.close()
    home.chats.unlink()
    if loss == "empty":
        home.chats.touch()
    elif loss == "begun anew":
        ChatLog(home.chats).close()
    (finding,) = bad(home)
    assert (finding.area, finding.mendable) == ("chats", True)
    run("doctor", "--mend")
    assert bad(home) == []
    assert "Algebraic patterns." in run("chats", "show", chat.id[:8])


def test_a_broken_character_is_a_finding(home: Home) -> None:
    folder = home.characters / "wreck"
    folder.mkdir(parents=True)
    (folder / "card.json").write_text("{")
    (finding,) = bad(home)
    assert finding.area == "characters"
    assert "wreck" in finding.text


def test_a_model_that_is_not_what_was_pulled_is_a_finding(home: Home) -> None:
    home.models.mkdir(parents=True)
    (home.models / "own.gguf").write_bytes(b"GGUF")
    (home.models / "pulled.gguf").write_bytes(b"GGUF, cut")
    (home.models / "pulled.gguf.json").write_text(json.dumps({"sha256": "0" * 64}))
    (finding,) = bad(home)
    assert finding.area == "models"
    assert "pulled" in finding.text
    assert any("own is there; its hash is not known" in finding.text for finding in of_area(home, "models"))


def test_too_little_space_is_a_finding(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpla.core.doctor._LITTLE_SPACE", 1 << 62)
    (finding,) = bad(home)
    assert finding.area == "disk"


# rpla doctor


def test_the_command_exits_with_1_where_something_needs_to_be_done(home: Home, chat: ChatInfo) -> None:
    run("doctor")
    damage(home)
    assert "damaged" in run("doctor", code=1)


def test_the_command_prints_json(home: Home) -> None:
    findings = json.loads(run("doctor", "--json"))
    assert all(finding["ok"] for finding in findings)
    assert {"area", "ok", "text", "hint"} <= set(findings[0])


def test_mending_restores_the_log_and_keeps_the_damaged_file(home: Home, chat: ChatInfo) -> None:
    log = ChatLog(home.chats)
    take_snapshot(log, home)
    log.close()
    damage(home)
    run("doctor", "--mend")
    assert "Algebraic patterns." in run("chats", "show", chat.id)
    assert len(list(home.root.glob("chats.db.damaged-*"))) == 1


def test_mending_leaves_a_sound_log_as_it_is(home: Home, chat: ChatInfo) -> None:
    before = home.chats.read_bytes()
    run("doctor", "--mend")
    assert home.chats.read_bytes() == before
    assert not list(home.root.glob("chats.db.damaged-*"))


# rpla chats


def test_chats_are_listed_for_their_user_only(home: Home, chat: ChatInfo) -> None:
    assert chat.id[:8] in run("chats", "list")
    assert [info["id"] for info in json.loads(run("chats", "list", "--json", "--character", "ada-lovelace"))] == [
        chat.id
    ]
    assert json.loads(run("chats", "list", "--json", "--user", "someone else")) == []
    assert json.loads(run("chats", "list", "--json", "--character", "sherlock-holmes")) == []


def test_an_id_may_be_shortened_as_long_as_it_means_one_chat(
    home: Home, chat: ChatInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Algebraic" in run("chats", "show", chat.id[:4].upper())
    with pytest.raises(RplaError, match="too short"):
        run("chats", "show", chat.id[:3])
    with pytest.raises(RplaError, match="There is no chat"):
        run("chats", "show", "%%%%")
    ids = iter(["abcd" + "0" * 28, "abcd" + "1" * 28])
    monkeypatch.setattr("rpla.core.chatlog.new_id", lambda: next(ids))
    log = ChatLog(home.chats)
    for _ in range(2):
        log.create_chat(user=USER, character=ADA)
    log.close()
    with pytest.raises(RplaError, match="2 chats have ids that begin with abcd"):
        run("chats", "show", "abcd")


def test_a_search_prints_the_turns_it_finds(home: Home, chat: ChatInfo) -> None:
    assert "Algebraic patterns." in run("chats", "search", "patterns")
    assert [hit["turn"]["text"] for hit in json.loads(run("chats", "search", "engine", "weave", "--json"))] == [
        "What does the Engine weave?"
    ]
    assert json.loads(run("chats", "search", "patterns", "--user", "someone else", "--json")) == []


@pytest.mark.parametrize("command", [("show", "ID"), ("export", "ID"), ("search", "evil"), ("list",)])
@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_that_a_terminal_obeys_is_printed_and_json_loses_nothing(
    home: Home, chat: ChatInfo, command: tuple[str, ...], as_json: bool
) -> None:
    evil = "evil \x1b]52;c;aGk=\x07 \x9b2J \x7f \u202e drawkcab"
    log = ChatLog(home.chats)
    log.append(chat.id, None, "user", evil)
    log.rename(chat.id, evil)
    log.close()
    arguments = [chat.id if argument == "ID" else argument for argument in command]
    flag = (["-", "--format", "json"] if command[0] == "export" else ["--json"]) if as_json else []
    printed = run("chats", *arguments, *flag)
    assert not set(printed) & set("\x1b\x07\x9b\x7f\u202e")
    assert "evil" in printed
    if as_json:
        assert json.dumps(evil)[1:-1] in json.dumps(json.loads(printed))


@pytest.mark.parametrize("format", ["json", "sillytavern"])
def test_an_exported_chat_is_imported_as_a_new_one(home: Home, chat: ChatInfo, tmp_path: Path, format: str) -> None:
    file = tmp_path / "chat.txt"
    run("chats", "export", chat.id[:6], str(file), "--format", format)
    new = run("chats", "import", str(file), "--character", "ada-lovelace").strip()
    assert new != chat.id
    assert run("chats", "show", new) == run("chats", "show", chat.id)


def test_an_export_goes_by_the_files_ending_and_replaces_nothing_unasked(
    home: Home, chat: ChatInfo, tmp_path: Path
) -> None:
    for name in ("chat.md", "chat.json", "chat.jsonl"):
        run("chats", "export", chat.id, str(tmp_path / name))
    assert (tmp_path / "chat.md").read_text().startswith("# What does the Engine weave?")
    assert json.loads((tmp_path / "chat.json").read_text())["format"] == "rpla-chat"
    assert len((tmp_path / "chat.jsonl").read_text().splitlines()) == 4
    (tmp_path / "chat.md").write_text("mine")
    with pytest.raises(RplaError, match="is there already"):
        run("chats", "export", chat.id, str(tmp_path / "chat.md"))
    assert (tmp_path / "chat.md").read_text() == "mine"
    run("chats", "export", chat.id, str(tmp_path / "chat.md"), "--overwrite")
    assert "Algebraic" in (tmp_path / "chat.md").read_text()


def test_a_file_that_cannot_be_imported_leaves_no_chat(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_text('{"mes": "hello"}\n{\n')
    with pytest.raises(RplaError, match="Line 2"):
        run("chats", "import", str(file), "--character", "ada-lovelace")
    assert json.loads(run("chats", "list", "--json")) == []


def test_a_chat_is_renamed_deleted_and_brought_back(home: Home, chat: ChatInfo) -> None:
    run("chats", "rename", chat.id, "Engines")
    assert "Engines" in run("chats", "list")
    run("chats", "delete", chat.id[:8])
    assert json.loads(run("chats", "list", "--json")) == []
    assert chat.id[:8] in run("chats", "list", "--deleted")
    run("chats", "undelete", chat.id[:8])
    assert "Engines" in run("chats", "list")


def test_the_commands_are_quick_to_import() -> None:
    program = (
        "import sys; import rpla.cli.chats, rpla.cli.doctor; "
        "print([name for name in ('pydantic', 'langchain_core', 'sqlite3', 'httpx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
