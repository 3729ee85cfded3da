"""Files to be read: those under a folder, and the bytes of each."""

import os
from pathlib import Path

from rpla.core.errors import RplaError
from rpla.memory.readers import KINDS, LARGEST_FILE

_MOST_FILES = 10_000


def files_under(folder: Path) -> list[Path]:
    """The files of a kind that is read, in a stable order. Links and what begins with a dot are left out."""
    found: list[Path] = []
    problem: list[OSError] = []
    for root, folders, names in os.walk(folder, onerror=problem.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            file
            for name in sorted(names)
            if not name.startswith(".") and Path(name).suffix.lower() in KINDS
            # A link could lead anywhere, and what it leads to would be the character's knowledge.
            if not (file := Path(root, name)).is_symlink()
        ]
        if len(found) > _MOST_FILES:
            raise RplaError(f"{folder} holds more than {_MOST_FILES:,} files.", "Add its folders one by one.")
    if problem:
        # Files that cannot be seen must not be taken for gone.
        raise RplaError(f"{problem[0].filename} cannot be read: {problem[0].strerror}.", "Check its permissions.")
    return found


def read_bytes(path: Path) -> bytes:
    """A file's bytes. Raises RplaError where it is not there, no plain file, too large, or cannot be read."""
    try:
        if not path.is_file():  # a device or a pipe might never end
            problem = "is not a file" if path.exists() else "is not there"
            raise RplaError(f"{path} {problem}.", "Check the path.")
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise RplaError(f"{path} cannot be read: {error.strerror}.", "Check the file and its permissions.") from None
    if len(data) > LARGEST_FILE:
        raise RplaError(f"{path} is larger than {LARGEST_FILE >> 20} MiB.", "Split it, or leave out what is no text.")
    return data
