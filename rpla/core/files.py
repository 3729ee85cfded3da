"""Small files, read with a limit and written at once or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from rpla.core.errors import RplaError
from rpla.core.ids import new_id
from rpla.core.untrusted_json import LARGEST


def read_file(path: Path) -> bytes:
    """A file's bytes, one more than `LARGEST` at most.

    Raises:
        RplaError: It is not there, is not a plain file, or cannot be read.
    """
    try:
        if not path.is_file():  # a device or a pipe might never end
            problem = "is not a file" if path.exists() else "is not there"
            raise RplaError(f"{path} {problem}.", "Check the path.")
        with path.open("rb") as file:
            return file.read(LARGEST + 1)
    except OSError as error:
        raise RplaError(f"{path} cannot be read: {error.strerror}.", "Check the file and its permissions.") from None


def write_file(path: Path, data: bytes) -> None:
    """Replace a file in one step: a crash leaves the old content or the new.

    Raises:
        OSError: It cannot be written; `unwritten` says so to a person.
    """
    temporary = path.with_name(f".{new_id()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def json_bytes(value: dict[str, Any]) -> bytes:
    """JSON as it is kept in files."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n").encode()


def unwritten(path: Path, error: Exception) -> RplaError:
    """The error that tells a person why nothing could be written."""
    reason = getattr(error, "strerror", None) or str(error)
    return RplaError(f"{path} cannot be written: {reason}.", "Check the folder, its permissions and the disk's space.")
