"""What tests share: the small real models they run on."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    if given := os.environ.get("RPLA_TEST_GGUF"):
        return Path(given)
    developers = Path("~/.cache/rpla-dev-models/smollm2-135m.gguf").expanduser()
    if developers.exists():
        return developers
    from rpla.core.home import Home
    from rpla.core.models.shelf import DEFAULT_MODEL, Shelf

    cache = Path(os.environ.get("RPLA_TEST_CACHE", "~/.cache/rpla-tests")).expanduser()
    return Shelf(Home(cache)).pull(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def smollm2_hf() -> Path:
    given = os.environ.get("RPLA_TEST_HF")
    folder = Path(given or "~/.cache/rpla-dev-models/smollm2-135m-hf").expanduser()
    if not given and not folder.exists():
        pytest.skip(f"needs the model folder {folder}, or another one named by RPLA_TEST_HF")
    return folder


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("RPLA_", "OPENAI_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RPLA_HOME", str(tmp_path / "rpla-home"))
