"""Draw docs/terminal.svg from a real session: a model, a pseudo-terminal, and what a person types.

python docs/terminal.py MODEL
"""

import io
import os
import re
import select
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

TYPED = ("What is the Analytical Engine?", "/why", "/quit")
WIDTH = 96


def session(model: str) -> str:
    """What a terminal shows from the first line to the last."""
    import pty

    mine, theirs = pty.openpty()
    command = [sys.executable, "-m", "rpla", "chat", "ada-lovelace", "--new", "--model", model, "--seed", "7"]
    process = subprocess.Popen(  # noqa: S603 - our own command
        [*command, "--max-tokens", "120", "--persona", "Sam"],
        preexec_fn=lambda: os.login_tty(theirs),
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(theirs)
    shown, waiting = "", list(TYPED)
    end = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < end:
        if select.select([mine], [], [], 0.2)[0]:
            try:
                shown += os.read(mine, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                break
        if waiting and shown.endswith("Sam: "):
            os.write(mine, f"{waiting.pop(0)}\n".encode())
    process.wait(timeout=60)
    return shown.replace("\r\n", "\n")


def main() -> None:
    """Write the picture beside this file."""
    shown = session(sys.argv[1])
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    for line in shown.strip().splitlines():
        for part in textwrap.wrap(line, WIDTH, drop_whitespace=False) or [""]:
            console.print(Text(part, style="bold" if part.startswith("Sam: ") else ""))
    # Without the fonts that rich links to: a picture should not call anyone.
    svg = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="rpla chat ada-lovelace"), flags=re.DOTALL)
    Path(__file__).with_name("terminal.svg").write_text(svg, "utf-8")
    print(shown)


if __name__ == "__main__":
    main()
