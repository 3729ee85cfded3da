"""Macros in card text: a literal grammar, never a template engine, so that a card stays data."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

_MACRO = re.compile(r"\{\{\s*([^{}]{1,2000}?)\s*\}\}|<(USER|BOT|CHAR)>", re.IGNORECASE)
_ROLL = re.compile(r"(\d{0,2})d(\d{1,4})", re.IGNORECASE)
_LONGEST = 262_144


@dataclass(frozen=True, slots=True, kw_only=True)
class Macros:
    """What the macros of one chat stand for.

    Known are ``{{char}} {{user}} {{time}} {{date}} {{weekday}} {{random:a,b}} {{pick:a,b}} {{roll:2d6}} {{// note}}``
    and the old ``<USER> <BOT>``. Chance is seeded and time is the chat's beginning, so a text always expands alike.
    """

    char: str
    user: str
    seed: str = ""
    started: datetime | None = None

    def expand(self, text: str) -> str:
        """Text with the known macros replaced, once: what a macro yields is not looked at again. Others stay text."""
        chance = random.Random(f"{self.seed}\0{text}")  # noqa: S311 - dice, not secrets
        expanded = _MACRO.sub(lambda match: self._value(match, chance), text)
        return expanded if len(expanded) <= max(_LONGEST, len(text)) else text

    def _value(self, match: re.Match[str], chance: random.Random) -> str:
        if match[2]:
            return self.user if match[2].upper() == "USER" else self.char
        name, colon, rest = match[1].partition(":")
        plain: dict[str, Callable[[], str]] = {"char": lambda: self.char, "user": lambda: self.user}
        if self.started:
            started = self.started
            plain |= {
                "time": lambda: f"{started:%H:%M}",
                "date": lambda: f"{started.day} {started:%B %Y}",
                "weekday": lambda: f"{started:%A}",
            }
        key = name.strip().lower()
        if match[1].startswith("//") or (colon and key == "comment"):
            return ""
        if not colon and key in plain:
            return plain[key]()
        if colon and key in ("random", "pick"):
            return str(chance.choice(rest.split("::") if "::" in rest else rest.split(","))).strip()
        if colon and key == "roll" and (dice := _ROLL.fullmatch(rest.strip())) and int(dice[2]):
            return str(sum(chance.randint(1, int(dice[2])) for _ in range(int(dice[1] or 1))))
        return str(match[0])
