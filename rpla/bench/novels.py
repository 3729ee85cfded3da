"""Sentences of novels: what the benchmarks fill memories with."""

import re
from pathlib import Path

from rpla.core.errors import RplaError

_SHORTEST, _LONGEST = 20, 400
_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’]*\s+")


def read_novels(folder: Path) -> list[str]:
    """The sentences of every ``*.txt`` and ``*/novel_text.txt``. Raises RplaError where there is none to read."""
    files = sorted([*folder.glob("*.txt"), *folder.glob("*/novel_text.txt")])
    if not files:
        raise RplaError(f"{folder} holds no novels.", "Give a folder with *.txt or */novel_text.txt.")
    sentences: dict[str, None] = {}
    for file in files:
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RplaError(f"{file} cannot be read: {error}", "Texts are UTF-8.") from error
        for paragraph in _PARAGRAPH.split(text):
            for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
                if _SHORTEST <= len(sentence) <= _LONGEST:
                    sentences[sentence] = None
    return list(sentences)
