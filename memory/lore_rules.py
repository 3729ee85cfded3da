"""What must hold for a lore entry to come to mind: its fields, and the decorators of card V3 that we act on.

Acted on are ``@@activate``, ``@@dont_activate``, ``@@activate_only_after``, ``@@activate_only_every``,
``@@keep_activate_after_match``, ``@@dont_activate_after_match``, ``@@scan_depth``, ``@@additional_keys``,
``@@exclude_keys``, ``@@is_greeting`` and ``@@ignore_on_max_context`` (of what competes for the book's budget, that
goes first). A ``@@@`` line takes the place of the line before it where that one is not acted on.

Every other decorator is kept in the card, is not obeyed and never reaches a model. That holds for ``@@depth``,
``@@position`` and ``@@role`` too, and for their like in SillyTavern's entries: lore that changes stands at the end of
the prompt, in the order of its book, so that the cache of all that comes before it stays good.
"""

from collections.abc import Callable
from dataclasses import dataclass

from rpla.core.character import LoreEntry
from rpla.core.ids import id_of
from rpla.memory.lore_keys import Keys

_BARE = frozenset(
    ("activate", "dont_activate", "keep_activate_after_match", "dont_activate_after_match", "ignore_on_max_context")
)
_LISTS = frozenset(("additional_keys", "exclude_keys"))
_LEAST = {"activate_only_after": 0, "activate_only_every": 1, "scan_depth": 0, "is_greeting": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An entry with its keys as numbers."""

    entry: LoreEntry
    place: int
    keys: tuple[int, ...]
    secondary: tuple[int, ...] = ()
    additional: tuple[int, ...] = ()
    """One of these must be found too."""
    excluded: tuple[int, ...] = ()
    """None of these may be found."""
    depth: int | None = None
    always: bool = False
    """Needs no key."""
    whatever: bool = False
    """Asks nothing of what is said at all."""
    never: bool = False
    after: int = 0
    """Not before the character has said so many things."""
    every: int = 1
    """Only when the number of the character's turns is a multiple of this."""
    greeting: int | None = None
    """Only in a chat that began with this greeting."""
    keeps: bool = False
    """Once recalled, it stays."""
    once: bool = False
    """Once recalled, it never is again."""
    gives_way: bool = False
    """First to go when the budget is short."""

    @property
    def id(self) -> str:
        """What stands for the entry in a turn's meta, wherever it moves in its book."""
        return id_of("lore", "\0".join((self.entry.name, self.entry.content, *self.entry.keys)))

    @property
    def remembers(self) -> bool:
        """Whether it matters when the entry was recalled last."""
        return bool(self.entry.sticky or self.entry.cooldown or self.keeps or self.once)

    def spoken_of(self, found: Callable[[int], bool]) -> int | None:
        """The number of the key that calls the entry up, -1 where it needs none; None where it is not spoken of."""
        if self.whatever:
            return -1
        if any(map(found, self.excluded)) or (self.additional and not any(map(found, self.additional))):
            return None
        if self.always:
            return -1
        key = next(filter(found, self.keys), None)
        if key is None or not self.secondary:
            return key
        match self.entry.logic:
            case "and_any":
                holds = any(map(found, self.secondary))
            case "and_all":
                holds = all(map(found, self.secondary))
            case "not_any":
                holds = not any(map(found, self.secondary))
            case "not_all":
                holds = not all(map(found, self.secondary))
        return key if holds else None


def rule_of(entry: LoreEntry, place: int, keys: Keys, expand: Callable[[str, bool], str]) -> Rule:
    """The rule of an entry. `expand` replaces the macros of a key; it is told whether the key is a pattern."""

    def numbers(words: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(
            keys.number(
                expand(word, entry.regex or word.startswith("/")),
                regex=entry.regex,
                case_sensitive=entry.case_sensitive,
                whole_words=entry.whole_words is not False,
            )
            for word in words
            if word.strip()
        )

    if not entry.decorators:
        return Rule(
            entry=entry,
            place=place,
            keys=numbers(entry.keys),
            secondary=numbers(entry.secondary_keys) if entry.selective and not entry.regex else (),
            depth=entry.scan_depth,
            always=entry.constant,
        )
    told = acted_on(entry.decorators)

    def number(name: str) -> int | None:
        return int(told[name]) if name in told else None

    additional, excluded = (
        numbers(tuple(told.get(name, "").split(","))) for name in ("additional_keys", "exclude_keys")
    )
    depth = number("scan_depth")
    return Rule(
        entry=entry,
        place=place,
        # V3: where keys are patterns, additional keys are alternatives; secondary and excluded ones do not count.
        keys=numbers(entry.keys) + (additional if entry.regex else ()),
        secondary=numbers(entry.secondary_keys) if entry.selective and not entry.regex else (),
        additional=() if entry.regex else additional,
        excluded=() if entry.regex else excluded,
        depth=entry.scan_depth if depth is None else depth,
        always=entry.constant,
        whatever="activate" in told,
        never="dont_activate" in told and "activate" not in told,
        after=number("activate_only_after") or 0,
        every=number("activate_only_every") or 1,
        greeting=number("is_greeting"),
        keeps="keep_activate_after_match" in told,
        once="dont_activate_after_match" in told,
        gives_way="ignore_on_max_context" in told,
    )


def acted_on(decorators: tuple[str, ...]) -> dict[str, str]:
    """The decorators that we act on, with their values; of several with one name, the first."""
    told: dict[str, str] = {}
    settled = False
    for line in decorators:
        if line.startswith("@@@") and settled:
            continue
        name, _, value = line.lstrip("@").partition(" ")
        value = value.strip()
        if settled := name in _BARE or (name in _LISTS and value != "") or _is_number(name, value):
            told.setdefault(name, value)
    return told


def _is_number(name: str, value: str) -> bool:
    return name in _LEAST and value.isdecimal() and len(value) < 10 and int(value) >= _LEAST[name]
