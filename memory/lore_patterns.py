"""The keys of a book that are patterns, found in a text without running each.

RE2 works out which words a text must hold for each pattern to match, and looks for all of them at once; only patterns
whose words are there are run. A hostile one is bounded three times: RE2 takes time in proportion to the text and the
program, programs and texts are of limited size, and what was slow once is put to rest with a notice.
"""

import time
from collections.abc import Iterator
from typing import Any

import re2

from rpla.core.lorebook import MOST_PATTERNS, pattern_options, pattern_problem

_LONGEST_TEXT = 4_096
_MOST_NOTICES = 50
_PORTION = 60_000
_SLOW_S = 0.01
"""Processor time of one search after which a pattern is put to rest. Ordinary ones take a thousandth of it."""
_PATIENCE_S = 0.05
"""Processor time that all patterns together have for one text."""


class Patterns:
    """Patterns with their numbers and their names in notices. Of a text, the last 4,096 characters are searched."""

    def __init__(
        self, patterns: list[tuple[str, int, str]], *, slow_s: float = _SLOW_S, patience_s: float = _PATIENCE_S
    ) -> None:
        self.notices: list[str] = []
        """What is not run, a sentence each."""
        self._slow_s, self._patience_s = slow_s, patience_s
        self._numbers: dict[str, int] = {}
        self._names: dict[str, str] = {}
        for place, (pattern, number, name) in enumerate(patterns):
            problem = "the book has too many patterns" if place >= MOST_PATTERNS else pattern_problem(pattern)
            self._names[pattern] = name
            if problem:
                self._note(pattern, problem)
            else:
                self._numbers[pattern] = number
        self._filters = [part for parts in _portions(list(self._numbers)) for part in _filters(parts)]

    def found(self, text: str) -> set[int]:
        """The numbers of the patterns that match somewhere in the text."""
        searched = text[-_LONGEST_TEXT:].encode(errors="replace")
        found: set[int] = set()
        began = time.thread_time()
        for patterns, compiled, chosen in self._filters:
            for place in (chosen.Match(searched, potential=True) or ()) if chosen else (0,):
                if (number := self._numbers.get(patterns[place])) is None:
                    continue
                start = time.thread_time()
                if compiled[place].search(searched):
                    found.add(number)
                now = time.thread_time()
                if now - start > self._slow_s:
                    del self._numbers[patterns[place]]
                    self._note(patterns[place], "it is too slow, and rests for this chat")
                if now - began > self._patience_s:
                    self._tell("The patterns took too long; in one text, not all of them were searched for.")
                    return found
        return found

    def _note(self, pattern: str, problem: str) -> None:
        self._tell(f"The key {self._names[pattern]} is disabled: {problem}.")

    def _tell(self, notice: str) -> None:
        if len(self.notices) < _MOST_NOTICES and notice not in self.notices:
            self.notices.append(notice)


def _portions(patterns: list[str]) -> Iterator[list[str]]:
    """The patterns in portions that one filter can hold, unless they have many more words than characters."""
    portion: list[str] = []
    room = _PORTION
    for pattern in patterns:
        if len(pattern) > room:
            yield portion
            portion, room = [], _PORTION
        portion.append(pattern)
        room -= len(pattern)
    yield portion


def _filters(patterns: list[str]) -> list[tuple[list[str], list[Any], Any]]:
    """The patterns in one filter, or in as many as hold them; a pattern with too many words by itself has none."""
    if not patterns:
        return []
    whole = re2.Filter()
    try:
        for pattern in patterns:
            whole.Add(pattern, pattern_options())
        whole.Compile()
    except re2.error:
        if len(patterns) == 1:
            return [(patterns, [re2.compile(patterns[0], pattern_options())], None)]
        middle = len(patterns) // 2
        return [*_filters(patterns[:middle]), *_filters(patterns[middle:])]
    return [(patterns, [whole.re(place) for place in range(len(patterns))], whole)]
