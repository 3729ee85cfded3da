"""Where everything of the user's is kept."""

import os
from dataclasses import dataclass
from pathlib import Path

from rpla.core.errors import RplaError


@dataclass(frozen=True, slots=True)
class Home:
    """The folder RPLA_HOME and the places in it. Nothing is created before something is kept there."""

    root: Path

    @property
    def config(self) -> Path:
        """The settings file."""
        return self.root / "config.toml"

    @property
    def characters(self) -> Path:
        """The user's own characters, a folder each."""
        return self.root / "characters"

    @property
    def chats(self) -> Path:
        """The chat log."""
        return self.root / "chats.db"

    @property
    def memory(self) -> Path:
        """What characters remember."""
        return self.root / "memory.db"

    @property
    def knowledge(self) -> Path:
        """What characters can look up: passages and their sources."""
        return self.root / "knowledge.db"

    @property
    def chroma(self) -> Path:
        """Chroma's index over passages; it can be made again at any time."""
        return self.root / "chroma"

    @property
    def snapshots(self) -> Path:
        """Copies of the chat log."""
        return self.root / "snapshots"

    @property
    def models(self) -> Path:
        """Model files."""
        return self.root / "models"

    @property
    def history(self) -> Path:
        """What the user typed in the line chat, for recall with the arrow keys."""
        return self.root / "input_history"


def find_home() -> Home:
    """``$RPLA_HOME``, else the platform's folder for application data."""
    if given := os.environ.get("RPLA_HOME"):
        root = Path(given).expanduser()
    else:
        from platformdirs import user_data_path

        root = user_data_path("rpla", appauthor=False)
    if root.exists() and not root.is_dir():
        raise RplaError(f"RPLA_HOME is not a folder: {root}", "Point RPLA_HOME at a folder, or unset it.")
    return Home(root.absolute())
