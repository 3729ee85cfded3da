"""Lore: notes of a card's book that enter the prompt when they are spoken of."""

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from rpla.core.character import Lore, LoreEntry
from rpla.core.macros import Macros
from rpla.core.prompt import Item, Section
from rpla.memory.lore_active import STICKY, Book
from rpla.memory.lore_keys import Keys
from rpla.memory.lore_rules import Rule, rule_of
from rpla.memory.recall import Moment

_MOST_COMPETING = 256
"""Most entries that compete for the budget at one turn."""


class LoreRecaller:
    """Recalls the entries of a book for one chat; those that stand in every prompt are the prompt builder's.

    Nothing is kept here of what was recalled: how long ago it was stands in the turns, and rewinding undoes it.
    """

    def __init__(self, lore: Lore, macros: Macros, count_tokens: Callable[[str], int]) -> None:
        self._budget, self._macros, self._count = lore.token_budget, macros, count_tokens
        self._contents: dict[int, str] = {}
        self._told: set[str] = set()
        self._sizes: dict[str, int] = {}
        self._keys = Keys()
        names = replace(macros, char=re.escape(macros.char), user=re.escape(macros.user))

        def expand(key: str, pattern: bool) -> str:
            return key if "{{" not in key and "<" not in key else (names if pattern else macros).expand(key)

        rules = [
            rule_of(entry, place, self._keys, expand)
            for place, entry in enumerate(lore.entries)
            if entry.enabled and not entry.standing
        ]
        self._keys.settle()
        self._book = Book(lore, rules, self._keys, self._content)

    @property
    def notices(self) -> list[str]:
        """Which of the book's patterns are not run, and why."""
        return list(self._keys.notices)

    def take_notices(self) -> list[str]:
        """The notices that were not taken yet."""
        new = [notice for notice in self.notices if notice not in self._told]
        self._told.update(new)
        return new

    async def __call__(self, moment: Moment) -> list[Section]:
        """One section with the entries that come to mind, within the book's budget."""
        # A local model's tokenizer is behind a socket, and patterns run without the interpreter's lock.
        section = await asyncio.to_thread(self._recall, moment)
        return [section] if section else []

    def _recall(self, moment: Moment) -> Section | None:
        active = self._book.active(moment)
        kept = self._within_budget((rule, reason) for rule, reason in active.values() if self._content(rule).strip())
        if not kept:
            return None
        kept.sort(key=lambda item: (item[0].entry.order, item[0].place))
        contents = [self._content(rule) for rule, _ in kept]
        return Section(
            name="lore",
            text="\n".join(contents),
            source=f"lore: {', '.join(_name(rule.entry) for rule, _ in kept)}",
            tokens=sum(self._sizes[content] + 1 for content in contents),
            items=tuple(Item(rule.id, 1.0, reason) for rule, reason in kept),
        )

    def _within_budget(self, active: Iterable[tuple[Rule, str]]) -> list[tuple[Rule, str]]:
        """What fits. Higher priority comes first, then what stays from earlier turns, then what is later in order."""

        def rank(item: tuple[Rule, str]) -> tuple[bool, bool, int, bool, int, int]:
            (rule, reason), entry = item, item[0].entry
            return (
                rule.gives_way,
                not entry.ignore_budget,
                -entry.priority,
                reason != STICKY,
                -entry.order,
                rule.place,
            )

        kept: list[tuple[Rule, str]] = []
        left = self._budget
        for rule, reason in sorted(active, key=rank)[:_MOST_COMPETING]:
            content = self._content(rule)
            if content not in self._sizes:
                self._sizes[content] = self._count(content)
            if self._sizes[content] + 1 <= left:
                left -= self._sizes[content] + 1
                kept.append((rule, reason))
            if left < 2:
                break
        return kept

    def _content(self, rule: Rule) -> str:
        """An entry's content with its macros expanded."""
        if (content := self._contents.get(rule.place)) is None:
            content = self._contents[rule.place] = self._macros.expand(rule.entry.content)
        return content


def _name(entry: LoreEntry) -> str:
    return entry.name or (entry.keys[0] if entry.keys else "without a name")
