"""The shape of the project: what is in the wheel, who imports whom, and what start-up does not import."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("graphs", "memory", "training", "evals")
HEAVY = ("torch", "transformers", "peft", "chromadb", "llama_index", "sentence_transformers", "textual")


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_the_packages_are_exactly_the_folders_with_an_init() -> None:
    inside = [path.parent.relative_to(ROOT) for path in (ROOT / "rpla").rglob("__init__.py")]
    mapped = [f"rpla.{floor}" for floor in FLOORS if (ROOT / floor / "__init__.py").exists()]
    folders = sorted([".".join(path.parts) for path in inside] + mapped)
    assert sorted(pyproject()["tool"]["setuptools"]["packages"]) == folders


def test_the_mapped_folders_are_flat() -> None:
    nested = [path for floor in FLOORS for path in (ROOT / floor).rglob("*.py") if path.parent != ROOT / floor]
    assert nested == []


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def link_tree(project: Path) -> Path:
    run("make", "-s", ".tree", cwd=project)
    return project / ".tree"


def lint_imports(project: Path) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name("lint-imports")
    return run(str(script), "--config", "../pyproject.toml", "--no-cache", cwd=link_tree(project))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("rpla", *FLOORS):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_no_floor_imports_a_higher_one(project: Path) -> None:
    checked = lint_imports(project)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("memory/recall.py", "from rpla.graphs.chat import ChatContext"),
        ("rpla/core/errors.py", "import rpla.memory.lore"),
        ("graphs/chat.py", "from rpla.cli import output"),
    ],
)
def test_a_planted_import_of_a_higher_floor_is_seen(project: Path, file: str, line: str) -> None:
    with (project / file).open("a", encoding="utf-8") as target:
        target.write(f"\n{line}\n")
    checked = lint_imports(project)
    assert checked.returncode != 0
    assert "BROKEN" in checked.stdout


def imported_by(code: str) -> set[str]:
    done = run(sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)")
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_help_imports_nothing_heavy() -> None:
    modules = imported_by("import contextlib, io, sys\nimport rpla.cli.main")
    assert modules.isdisjoint({*HEAVY, "langchain_core", "langgraph", "pydantic", "numpy", "httpx", "xllamacpp"})


def test_a_chat_on_a_scripted_model_imports_nothing_heavy(tmp_path: Path) -> None:
    # What is loaded after the reply, for memory and knowledge, is left out: words alone serve, and the card.
    code = f"""
from pathlib import Path
from rpla import Agent, load_settings
from rpla.core.home import Home
home = Path({str(tmp_path)!r})
settings = load_settings(Home(home), {{"memory.embedder": "words", "chat.alignment": "icl-few"}})
with Agent("ada-lovelace", model="scripted:Yes.", home=home, settings=settings) as agent:
    assert agent.say("Are you there?").text == "Yes."
"""
    assert imported_by(code).isdisjoint({*HEAVY, "xllamacpp", "langchain_openai", "openai"})


def test_nothing_heavy_is_imported_before_the_first_reply(tmp_path: Path) -> None:
    code = f"""
from rpla import Agent
with Agent("ada-lovelace", model="scripted:Yes.", home={str(tmp_path)!r}) as agent:
    for event in agent.stream("Are you there?"):
        if type(event).__name__ == "TextDelta":
            import os, sys
            print(*sys.modules)
            sys.stdout.flush()
            os._exit(0)
"""
    assert imported_by(code).isdisjoint({*HEAVY, "xllamacpp", "langchain_openai", "openai"})


def test_the_public_names_are_all_there() -> None:
    import rpla

    assert sorted(rpla.__all__) == sorted(dir(rpla))
    for name in rpla.__all__:
        assert getattr(rpla, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        rpla.nothing_of_that_name  # noqa: B018
