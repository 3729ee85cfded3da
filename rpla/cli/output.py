"""How commands print: data on stdout, talk on stderr, and nothing that a terminal would obey."""

import json
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rpla.core.terminal import terminal_safe


def say(text: str) -> None:
    """Tell the user something that is not data."""
    print(terminal_safe(text), file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Data for programs; safe on a terminal too."""
    print(escaped(json.dumps(value, ensure_ascii=False, indent=2, default=str)))


def escaped(text: str) -> str:
    """JSON with all that `terminal_safe` would take out written as escapes: safe to print, and nothing is lost."""

    def escape(match: re.Match[str]) -> str:
        return match[0] if terminal_safe(match[0]) == match[0] else f"\\u{ord(match[0]):04x}"

    return re.sub("[^\n -~]", escape, text)


def excerpt(text: str, longest: int = 100) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def date(seconds: float) -> str:
    """A moment as people write it."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Data for people: columns as wide as their content, the last one as it is."""
    cells = [list(head), *([terminal_safe(str(cell)).replace("\n", " ") for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def megabytes(size_bytes: int) -> str:
    """A size as people say it."""
    return f"{size_bytes / 1e6:.0f} MB"
