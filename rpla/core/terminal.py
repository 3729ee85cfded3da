"""The one place where text from cards, models and files is made safe to print on a terminal.

Such text can carry sequences that move the cursor, write the clipboard (OSC 52), recolour or clear the screen, or
reorder what the reader sees. Terminals obey them, and so do the libraries that draw on terminals.
"""

import re

_SEQUENCE = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI
    "|(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\\\|\x9c)"  # OSC, DCS, SOS, PM, APC
    "|\x1b[ -/]*[0-Z\\\\`-~]"  # other escapes
)
_UNFINISHED = re.compile(
    "(?:(?:\x1b\\[|\x9b)[0-?]*[ -/]*|(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*\x1b?|\x1b[ -/]*)\\Z"
)
_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_UNSAFE = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_BIDI}]")
_LINE_BREAK = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_HELD = 4096


def terminal_safe(text: str) -> str:
    """Text without control, escape or bidi sequences.

    Line breaks become ``\\n``, tabs stay, lone surrogates show as U+FFFD.
    """
    text = _SEQUENCE.sub("", text)
    text = _LINE_BREAK.sub("\n", text)
    return _SURROGATE.sub("\ufffd", _UNSAFE.sub("", text))


class TerminalSafeStream:
    """`terminal_safe` for text that arrives in pieces: a sequence cut in two by a piece's end is still removed."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        """What can be printed now; the start of an unfinished sequence is held back until its end arrives."""
        text = self._held + piece
        self._held = ""
        if match := _UNFINISHED.search(text):
            if len(match[0]) <= _LONGEST_HELD:
                self._held = match[0]
                text = text[: match.start()]
        elif text.endswith("\r"):
            self._held, text = "\r", text[:-1]
        return terminal_safe(text)

    def close(self) -> str:
        """What was still held back, made safe."""
        held, self._held = self._held, ""
        return terminal_safe(held)
