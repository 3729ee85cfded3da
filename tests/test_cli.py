import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RPLA = [sys.executable, "-m", "rpla"]


@pytest.fixture
def rpla(tmp_path: Path):
    def run(*arguments: str, typed: str = "", code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*RPLA, *arguments],
            input=typed,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "RPLA_HOME": str(tmp_path / "home"), "RPLA_MODEL": "scripted:Quite so.", **variables},
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


def test_a_piped_question_is_answered_on_stdout_and_nothing_else_is(rpla) -> None:
    done = rpla("chat", "ada-lovelace", typed="Who are you?\n")
    assert done.stdout == "Quite so.\n"


def test_each_line_is_a_turn_of_one_new_chat(rpla) -> None:
    rpla("chat", "ada-lovelace", typed="Hello.\n")
    assert rpla("chat", "ada-lovelace", typed="One.\n\nTwo.\n", RPLA_MODEL="scripted:a|b").stdout == "a\nb\n"
    chats = json.loads(rpla("chats", "list", "--json").stdout)
    assert [chat["turns"] for chat in chats] == [5, 3]


def test_hostile_replies_reach_the_terminal_defused(rpla) -> None:
    done = rpla("chat", "ada-lovelace", typed="Hi.\n", RPLA_MODEL="scripted:a\x1b]52;c;aGk=\x07b\u202ec")
    assert done.stdout == "abc\n"


def test_slash_commands_work_in_a_pipe(rpla) -> None:
    commands = ["/regenerate", "/swipe", "/why", "/branch", "/turns", "/persona Sam: a pupil", "/quit", "late"]
    typed = "\n".join(["The Analytical Engine.", *commands, ""])
    first = rpla("chat", "ada-lovelace", typed="/regenerate\n", code=1)
    assert "Say something first" in first.stderr
    done = rpla("chat", "ada-lovelace", typed=typed, RPLA_MODEL="scripted:one|two")
    assert done.stdout.startswith("one\ntwo\nAda: one\n")
    for part in ("section", "contract", "lore: ", "branch", "1. Ada:", "2. User: The Analytical Engine."):
        assert part in done.stdout
    assert "You are now Sam." in done.stderr
    assert "late" not in done.stdout


def test_what_is_said_after_delete_is_found_again(rpla) -> None:
    rpla("chat", "ada-lovelace", typed="before\n/delete\nafter\n/undo\n/turns\n")
    titles = [chat["title"] for chat in json.loads(rpla("chats", "list", "--json").stdout)]
    assert sorted(titles) == ["after", "before"]


@pytest.mark.parametrize(
    "line", ["/export /nowhere/x.md", "/rewind " + "9" * 5000, "/persona :", "/open 99", "/edit 1"]
)
def test_a_command_gone_wrong_is_an_error_not_a_crash(rpla, line: str) -> None:
    assert rpla("chat", "ada-lovelace", typed=f"{line}\n", code=1).stderr.startswith("rpla: ")


def test_an_unknown_command_offers_the_nearest(rpla) -> None:
    assert "Did you mean /regenerate" in rpla("chat", "ada-lovelace", typed="/regenrate\n", code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("chat", "ada-lovelase"), "no character called", "ada-lovelace"),
        (("chat", "--model", "smollm"), "no model", "smollm2-135m"),
        (("chat", "--model", "smollm2-135m"), "", "rpla models pull smollm2-135m"),
        (("chat", "--model", "llamacpp:/nowhere/x.gguf"), "/nowhere/x.gguf", ""),
        (("chat", "--alignment", "icl-fow"), "Unknown alignment", "icl-few"),
        (("chat", "--temperature", "9"), "sampling.temperature (flag)", "rpla config"),
        (("config", "set", "sampling.topp", "1"), "Unknown setting", "sampling.top_p"),
        (("chats", "show", "0123456789"), "0123456789", ""),
        (("bench", "chat", "--section", "speed"), "Unknown section", "overhead"),
    ],
)
def test_what_cannot_be_done_is_said_in_two_lines(rpla, arguments, message: str, hint: str) -> None:
    done = rpla(*arguments, typed="Hi.\n", code=1)
    assert done.stdout == ""
    assert message in done.stderr
    assert hint in done.stderr


def test_a_card_makes_the_round_trip_through_the_command_line(rpla, tmp_path: Path) -> None:
    file = tmp_path / "ada.json"
    rpla("characters", "export", "ada-lovelace", str(file))
    slug = rpla("characters", "import", str(file)).stdout.strip()
    assert slug == "ada-lovelace-2"
    shown = json.loads(rpla("characters", "show", slug, "--json").stdout)
    assert shown == json.loads(file.read_text("utf-8"))
    rpla("characters", "remove", slug)
    assert slug not in rpla("characters", "list").stdout
    assert rpla("characters", "new", "Old Tom", "--description", "A cat.").stdout == "old-tom\n"
    assert "A cat." in rpla("characters", "list").stdout


def test_settings_are_shown_with_their_origin(rpla) -> None:
    rpla("config", "set", "sampling.top_p", "0.7")
    shown = json.loads(rpla("config", "--json", RPLA_CHAT__REPAIRS="2").stdout)
    assert (shown["sampling.top_p"]["value"], shown["sampling.top_p"]["origin"]) == (0.7, "config.toml line 2")
    assert (shown["chat.repairs"]["value"], shown["chat.repairs"]["origin"]) == (2, "RPLA_CHAT__REPAIRS")
    assert shown["model"]["origin"] == "RPLA_MODEL"


def test_models_can_be_listed_chosen_and_looked_at(rpla, smollm2_gguf: Path) -> None:
    assert [model["name"] for model in json.loads(rpla("models", "list", "--json").stdout)] == ["smollm2-135m"]
    rpla("models", "use", f"llamacpp:{smollm2_gguf}")
    assert "llama" in rpla("models", "info", str(smollm2_gguf)).stdout


def test_the_doctor_finds_a_new_home_healthy(rpla) -> None:
    findings = json.loads(rpla("doctor", "--json").stdout)
    assert findings
    assert all(finding["ok"] for finding in findings)


def test_overhead_can_be_measured(rpla) -> None:
    figures = json.loads(rpla("bench", "chat", "--section", "overhead", "--turns", "40", "--json").stdout)
    assert {"overhead_p50_ms", "overhead_p95_ms", "overhead_growth", "storage_ratio"} <= set(figures)
    assert figures["storage_ratio"] > 1


class Terminal:
    """A real pseudo-terminal with the line chat in it."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        self.shown = ""
        self._mine, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*RPLA, *arguments],
            env={**os.environ, "TERM": "xterm", **variables},
            preexec_fn=lambda: self._as_a_shell_would(theirs),
        )
        os.close(theirs)

    @staticmethod
    def _as_a_shell_would(terminal: int) -> None:
        os.login_tty(terminal)
        # A test run in the background ignores the interrupt, and its children would inherit that.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            if select.select([self._mine], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self._mine, 4096).decode(errors="replace")
                except OSError:  # the other end is closed
                    break
        assert text in self.shown, self.shown
        self.shown = self.shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self._mine, text.encode())

    def close(self) -> int:
        code = self.process.wait(timeout=30)
        os.close(self._mine)
        return code


@pytest.fixture
def terminal(tmp_path: Path):
    opened: list[Terminal] = []

    def open_terminal(*arguments: str, **variables: str) -> Terminal:
        opened.append(Terminal(*arguments, RPLA_HOME=str(tmp_path / "home"), **variables))
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.process.kill()
        each.process.wait()


def test_a_person_talks_at_a_terminal(terminal) -> None:
    chat = terminal("chat", "sherlock-holmes", RPLA_MODEL="scripted:Elementary, I fear.|The game is up.")
    chat.wait_for("Sherlock Holmes, by scripted:")
    chat.wait_for("User: ")
    chat.type("Who did it?\n")
    chat.wait_for("Elementary, I fear.")
    chat.type("/reg\t\n")
    chat.wait_for("The game is up.")
    chat.type("/nonsense\n")
    chat.wait_for("Unknown command /nonsense")
    chat.type("/quit\n")
    assert chat.close() == 0


SLOW_CHAT = """
import sys
import rpla.agent
from rpla.cli.main import main
from rpla.core.models.scripted import ScriptedModel

rpla.agent.open_model = lambda *given, **also: ScriptedModel("word " * 2000, delay_s=0.02, cycle=True)
sys.argv = ["rpla", "chat", "ada-lovelace"]
main()
"""


def test_control_c_stops_a_reply_and_keeps_it(terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "RPLA", [sys.executable, "-c", SLOW_CHAT])
    chat = terminal()
    chat.wait_for("User: ")
    chat.type("Go on.\n")
    chat.wait_for("word word word")
    chat.type("\x03")
    chat.wait_for("[stopped; what was said so far is kept]")
    chat.type("/turns\n")
    chat.wait_for("3. Ada: word word")
    chat.type("/quit\n")
    assert chat.close() == 0
