"""Build the wheel, install it in a clean environment, and import every module from outside the checkout."""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEEDS_LOCAL = ("rpla.core.models.hf",)
"""Modules that the base install cannot import."""
WALK = f"""
import importlib, pkgutil, rpla
skipped = {NEEDS_LOCAL!r}
names = [m.name for m in pkgutil.walk_packages(rpla.__path__, "rpla.") if m.name != "rpla.__main__"]
for name in names:
    if not name.startswith(skipped):
        importlib.import_module(name)
for name in rpla.__all__:
    getattr(rpla, name)
from rpla.core.home import Home
from rpla.core.library import CharacterLibrary
from pathlib import Path
cast = [entry.slug for entry in CharacterLibrary(Home(Path("nowhere"))).entries()]
assert "ada-lovelace" in cast, cast
with rpla.Agent("ada-lovelace", model="scripted:Quite so.", home="home") as agent:
    assert agent.say("Hello.").text == "Quite so."
print(len(names), "modules imported from", Path(rpla.__file__).parent)
assert not Path(rpla.__file__).is_relative_to({str(ROOT)!r})
"""


def main() -> None:
    """Exit with an error where any step fails."""
    with tempfile.TemporaryDirectory(prefix="rpla-wheel-") as folder:
        place = Path(folder)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", str(place), str(ROOT))
        (wheel,) = place.glob("*.whl")
        venv.create(place / "venv", with_pip=True)
        python = str(place / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        constraints = str(ROOT / "constraints.txt")
        run(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, str(wheel))
        run(python, "-c", WALK, cwd=place)


def run(*command: str, cwd: Path | None = None) -> None:
    """Run a command; stop with its exit code where it fails."""
    done = subprocess.run(command, cwd=cwd, check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
