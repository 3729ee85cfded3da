import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_examples import CodeExample, EvalExample, find_examples

ROOT = Path(__file__).parent.parent
PAGES = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md"))
RUN_BY_CI = ("make run", "make test")
"""What `.ci/run` itself does."""


def shell_lines() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            found += [(page.name, line) for line in block.splitlines() if line.strip()]
    return found


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "RPLA_HOME": str(home), "RPLA_MODEL": "scripted:Quite so."}


@pytest.mark.parametrize("example", find_examples(*PAGES), ids=str)
def test_python_in_documents_runs(example: CodeExample, eval_example: EvalExample, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RPLA_HOME", str(tmp_path))
    monkeypatch.setenv("RPLA_MODEL", "scripted:Quite so.")
    eval_example.set_config(line_length=120, target_version="py311", ruff_ignore=["D100"])
    eval_example.lint_ruff(example)
    eval_example.run(example)


def test_there_are_examples_to_run() -> None:
    assert len(list(find_examples(*PAGES))) >= 2
    assert len(shell_lines()) >= 8


@pytest.mark.parametrize(("page", "line"), [pair for pair in shell_lines() if pair[1] not in RUN_BY_CI])
def test_commands_in_documents_run(page: str, line: str, tmp_path: Path) -> None:
    program, *arguments = shlex.split(line)
    assert program == "rpla", f"{page}: {line}"
    if "--section" in arguments or "--model" in arguments:
        # What needs a model of the reader's own, or minutes, is held to what the command line takes.
        arguments = [argument for argument in arguments if not argument.startswith("hf:")] + ["--help"]
        arguments = [argument for argument in arguments if argument != "--model"]
    done = subprocess.run(
        [sys.executable, "-m", "rpla", *arguments],
        env=environment(tmp_path),
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_example_app_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "two_characters.py", "ada-lovelace", "sherlock-holmes", "2"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Ada Lovelace: Quite so.") == 2


def test_links_between_documents_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_lists_exactly_the_presets() -> None:
    from rpla import PRESETS

    table = (ROOT / "README.md").read_text("utf-8").partition("| alignment |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([\w+-]+)`", table, re.MULTILINE) == list(PRESETS)
