"""Which entries of a book come to mind at a turn, and why."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b

from rpla.core.character import Lore
from rpla.core.chatlog import Turn
from rpla.memory.lore_keys import Keys
from rpla.memory.lore_rules import Rule
from rpla.memory.recall import Moment

STICKY = "sticky"
_MOST_STEPS = 8
"""How often what was recalled is searched for more."""
_MOST_CONTENTS = 256
"""Most entries whose content is searched at one turn."""
_DEEPEST = 100
"""Most turns that are searched."""
_Found = Callable[[int], bool]


class Book:
    """The rules of a book, ready to be asked which of them hold."""

    def __init__(self, lore: Lore, rules: Sequence[Rule], keys: Keys, content_of: Callable[[Rule], str]) -> None:
        self._lore, self._keys, self._content_of = lore, keys, content_of
        rules = [rule for rule in rules if not rule.never]
        self._by_key: dict[int, list[Rule]] = defaultdict(list)
        for rule in rules:
            for key in rule.keys:
                self._by_key[key].append(rule)
        self._unasked = [rule for rule in rules if rule.always or rule.whatever]
        self._remembering = {rule.id: rule for rule in rules if rule.remembers}
        self._reach = max((rule.entry.sticky + rule.entry.cooldown for rule in self._remembering.values()), default=0)
        self._remembers_all = any(rule.keeps or rule.once for rule in self._remembering.values())
        deepest = max([lore.scan_depth, *(rule.depth for rule in rules if rule.depth is not None)])
        self._deepest = min(deepest, _DEEPEST)

    def active(self, moment: Moment) -> dict[int, tuple[Rule, str]]:
        """The entries that come to mind, by place: the rule, and the reason."""
        turns = moment.turns
        # A reply that is gone on with was begun with the same lore.
        answered = turns[:-1] if turns and turns[-1].role == "character" else turns
        spoken: dict[int, int] = {}
        for age, turn in enumerate(turns[: -self._deepest - 1 : -1]):
            for key in self._keys.found(turn.text):
                spoken.setdefault(key, age)
        return _Activation(self._lore, moment.chat, answered, spoken, self._ages(answered)).run(self)

    def _ages(self, turns: Sequence[Turn]) -> dict[str, int]:
        """How many turns ago each entry that remembers it was recalled last, other than by staying."""
        ages: dict[str, int] = {}
        reach = len(turns) if self._remembers_all else min(self._reach, len(turns))
        for age in range(1, reach + 1):
            for id, reason in _recalled(turns[-age]):
                if reason != STICKY and id in self._remembering:
                    ages.setdefault(id, age)
        return ages

    def by_keys(self, keys: Iterable[int]) -> dict[int, Rule]:
        """The rules that have one of the keys."""
        return {rule.place: rule for key in keys if key in self._by_key for rule in self._by_key[key]}

    @property
    def unasked(self) -> list[Rule]:
        """The rules that need no key."""
        return self._unasked

    def remembered(self, ages: Mapping[str, int]) -> list[Rule]:
        """The rules of which it is known when they were recalled last."""
        return [self._remembering[id] for id in ages]

    def found_in(self, rules: Iterable[Rule]) -> set[int]:
        """The keys that stand in the content of entries."""
        return set().union(*(self._keys.found(self._content_of(rule)) for rule in rules))

    def reason(self, key: int) -> str:
        """Why a rule holds, in words."""
        return f"key: {self._keys.text(key)}" if key >= 0 else "always"


class _Activation:
    """The entries of one turn."""

    def __init__(
        self, lore: Lore, chat: str, turns: Sequence[Turn], spoken: Mapping[int, int], ages: Mapping[str, int]
    ) -> None:
        self._lore, self._turns, self._spoken, self._ages = lore, turns, spoken, ages
        self._seed = f"{chat}\0{turns[-1].id if turns else ''}"
        self._replies = sum(turn.role == "character" for turn in turns)
        self._greeting = turns[0].meta.get("greeting") if turns else None
        self._recursed: set[int] = set()
        self._lost: set[int] = set()
        self._active: dict[int, tuple[Rule, str]] = {}
        self._groups: set[str] = set()

    def run(self, book: Book) -> dict[int, tuple[Rule, str]]:
        spoken_of = book.by_keys(self._spoken)
        candidates = {rule.place: rule for rule in (*book.remembered(self._ages), *book.unasked)} | spoken_of
        fresh = self._take(book, candidates.values(), level=0)
        if not self._lore.recursive:
            return self._active
        level, searched = 0, 0
        for _ in range(_MOST_STEPS):
            telling = [rule for rule in fresh if not rule.entry.prevent_recursion][: _MOST_CONTENTS - searched]
            searched += len(telling)
            keys = book.found_in(telling) - self._recursed
            self._recursed |= keys
            candidates |= book.by_keys(keys)
            # A level opens when the one below it has nothing more to give.
            above = [rule.entry.delay_until_recursion for rule in candidates.values()]
            level = max(level, 1) if keys else min((at for at in above if at > level), default=0)
            if not level:
                break
            fresh = self._take(book, candidates.values(), level)
        return self._active

    def _take(self, book: Book, candidates: Iterable[Rule], level: int) -> list[Rule]:
        """The candidates that hold now and did not before."""
        fresh: dict[int, tuple[Rule, str]] = {}
        for rule in candidates:
            if rule.place not in self._active and rule.place not in self._lost:
                reason = self._stays(rule)
                if not reason and self._may(rule, level) and (key := rule.spoken_of(self._finder(rule))) is not None:
                    reason = book.reason(key)
                    if key in self._recursed and key not in self._spoken:
                        reason += ", in other lore"
                if reason:
                    fresh[rule.place] = rule, reason
        for place in self._outdone(fresh):
            self._lost.add(place)
            del fresh[place]
        for place, (rule, reason) in list(fresh.items()):
            chance = rule.entry.probability if rule.entry.use_probability else 100
            if chance < 100 and reason != STICKY and self._lot(rule) * 100 >= chance:
                self._lost.add(place)
                del fresh[place]
        self._active |= fresh
        self._groups.update(name for rule, _ in fresh.values() for name in _groups(rule))
        return [rule for rule, _ in fresh.values()]

    def _stays(self, rule: Rule) -> str:
        """Why an entry stays from an earlier turn; empty where it does not."""
        age = self._ages.get(rule.id) if rule.remembers else None
        if age is None:
            return ""
        return STICKY if age < rule.entry.sticky else "kept" if rule.keeps else ""

    def _may(self, rule: Rule, level: int) -> bool:
        """Whether an entry may come to mind, leaving aside what is said."""
        entry = rule.entry
        age = self._ages.get(rule.id) if rule.remembers else None
        if age is not None and (rule.once or age < entry.sticky + entry.cooldown):
            return False
        if entry.delay_until_recursion > level or (entry.exclude_recursion and level):
            return False
        return (
            len(self._turns) >= entry.delay
            and self._replies >= rule.after
            and self._replies % rule.every == 0
            and rule.greeting in (None, self._greeting)
        )

    def _finder(self, rule: Rule) -> _Found:
        depth = self._lore.scan_depth if rule.depth is None else rule.depth
        return lambda key: self._spoken.get(key, depth) < depth or key in self._recursed

    def _outdone(self, fresh: Mapping[int, tuple[Rule, str]]) -> set[int]:
        """The entries that another one of their group keeps out."""
        members: dict[str, list[tuple[Rule, str]]] = defaultdict(list)
        for rule, reason in fresh.values():
            for name in _groups(rule):
                members[name].append((rule, reason))
        out: set[int] = set()
        for name, group in members.items():
            left = [(rule, reason) for rule, reason in group if rule.place not in out]
            if name not in self._groups and left:
                stays = [rule for rule, reason in left if reason == STICKY]
                chosen = [rule for rule, _ in left if rule.entry.group_override]
                if stays:
                    keep = {rule.place for rule in stays}
                elif chosen:
                    keep = {max(chosen, key=lambda rule: (rule.entry.order, -rule.place)).place}
                else:
                    keep = {max((rule for rule, _ in left), key=self._weighted_lot).place}
                left = [member for member in left if member[0].place not in keep]
            out.update(rule.place for rule, _ in left)
        return out

    def _weighted_lot(self, rule: Rule) -> float:
        """The highest of these wins, each entry as often as its weight is of the sum of weights."""
        weight = min(rule.entry.group_weight, 10**9)
        return self._lot(rule, "group") ** (1 / weight) if weight else -1.0

    def _lot(self, rule: Rule, what: str = "") -> float:
        """At least 0 and less than 1; for one entry and one turn to answer always the same."""
        drawn = blake2b(f"{self._seed}\0{what}\0{rule.id}".encode(errors="surrogatepass"), digest_size=6).digest()
        return int.from_bytes(drawn) / 2**48


def _groups(rule: Rule) -> list[str]:
    return [name for name in map(str.strip, rule.entry.group.split(",")) if name]


def _recalled(turn: Turn) -> list[tuple[str, str]]:
    """The entries that a reply's prompt had, and why."""
    sections = turn.meta.get("sections") or ()
    return [
        (id, reason) for name, _, _, *more in sections if name == "lore" for items in more for id, _, reason in items
    ]
