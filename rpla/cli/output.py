"""How commands print: data on stdout, talk on stderr, and nothing that a terminal would obey."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rpla.core.terminal import terminal_safe


def say(text: str) -> None:
    """Tell the user something that is not data."""
    print(terminal_safe(text), file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Data for programs."""
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Data for people: columns as wide as their content, the last one as it is."""
    cells = [list(head), *([terminal_safe(str(cell)).replace("\n", " ") for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def megabytes(size_bytes: int) -> str:
    """A size as people say it."""
    return f"{size_bytes / 1e6:.0f} MB"
