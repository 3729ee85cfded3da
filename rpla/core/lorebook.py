"""The book of lore in a card's JSON, read and written without loss.

Cards of the specs and SillyTavern's world-info files name the same things differently; `_FIELDS` holds both. What of an
entry we do not know (`position`, `depth`, `role`, `vectorized` and more) stays in the JSON.

Keys that are patterns run on RE2, which cannot take exponential time and knows no look-around and no back-references; a
key that needs one is disabled, and a repair says so.
"""

import re
from collections import defaultdict, deque
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import re2

from rpla.core.character import KeyLogic, Lore, LoreEntry
from rpla.core.untrusted_json import Json, Repairs, shown

_LOGICS: tuple[KeyLogic, ...] = get_args(KeyLogic)  # in the order of SillyTavern's numbers
_EMPTY = LoreEntry(keys=(), content="")
_BOOK_KEYS = {"scan_depth": "scan_depth", "token_budget": "token_budget", "recursive": "recursive_scanning"}
MOST_PATTERNS = 2_048
"""Most patterns of one book that are run."""
_LONGEST_PATTERN = 1_000
_PATTERN_MEMORY = 128 * 1024
"""Bytes for one pattern's program and what it learns as it runs. It is what refuses ``(.{100}){100}``."""
_PATTERN_FLAGS = frozenset("dgimsuvy")
_ESCAPE = re.compile(r"\\(?:u\{([0-9a-fA-F]{1,6})\}|u([0-9a-fA-F]{4})|[\s\S])")


class _Field(NamedTuple):
    kind: Literal["words", "text", "flag", "number", "count", "logic"]
    card: tuple[str, ...]  # where cards keep it; "." stands for "extensions."
    world: tuple[str, ...] = ()  # where world-info files keep it


_FIELDS = {
    "keys": _Field("words", ("keys",), ("key",)),
    "name": _Field("text", ("name", "comment")),
    "enabled": _Field("flag", ("enabled",), ("disable",)),
    "constant": _Field("flag", ("constant",)),
    "order": _Field("number", ("insertion_order",), ("order",)),
    "case_sensitive": _Field("flag", ("case_sensitive", ".case_sensitive"), ("caseSensitive",)),
    "whole_words": _Field("flag", (".match_whole_words",), ("matchWholeWords",)),
    "secondary_keys": _Field("words", ("secondary_keys",), ("keysecondary",)),
    "selective": _Field("flag", ("selective",)),
    "logic": _Field("logic", (".selectiveLogic",), ("selectiveLogic",)),
    "priority": _Field("number", ("priority",)),
    "ignore_budget": _Field("flag", (".ignore_budget",), ("ignoreBudget",)),
    "scan_depth": _Field("count", (".scan_depth",), ("scanDepth",)),
    "probability": _Field("count", (".probability",), ("probability",)),
    "use_probability": _Field("flag", (".useProbability",), ("useProbability",)),
    "sticky": _Field("count", (".sticky",), ("sticky",)),
    "cooldown": _Field("count", (".cooldown",), ("cooldown",)),
    "delay": _Field("count", (".delay",), ("delay",)),
    "group": _Field("text", (".group",), ("group",)),
    "group_override": _Field("flag", (".group_override",), ("groupOverride",)),
    "group_weight": _Field("count", (".group_weight",), ("groupWeight",)),
    "exclude_recursion": _Field("flag", (".exclude_recursion",), ("excludeRecursion",)),
    "prevent_recursion": _Field("flag", (".prevent_recursion",), ("preventRecursion",)),
    "delay_until_recursion": _Field("count", (".delay_until_recursion",), ("delayUntilRecursion",)),
}
_REQUIRED = {"keys", "enabled", "order"}


def read_lore(book: Any, at: str, repairs: Repairs) -> tuple[Lore, list[Json]]:
    """A card's book, and for each of its entries the JSON it was read from."""
    if book is None:
        return Lore(), []
    if not isinstance(book, dict):
        repairs.unread(at, book)
        return Lore(), []
    found = book.get("entries", [])
    if isinstance(found, dict):
        repairs.add(f"{at}.entries was an object of entries; read as a list.")
        found = list(found.values())
    elif not isinstance(found, list):
        repairs.unread(f"{at}.entries", found)
        found = []
    raws: list[Json] = []
    for place, raw in enumerate(found):
        if isinstance(raw, dict):
            raws.append(raw)
        else:
            repairs.unread(f"{at}.entries[{place}]", raw)
    lore = Lore(
        entries=tuple(_read_entry(raw, f"{at}.entries[{place}].", repairs) for place, raw in enumerate(raws)),
        scan_depth=repairs.number(book.get("scan_depth"), f"{at}.scan_depth", Lore().scan_depth, least=0),
        token_budget=repairs.number(book.get("token_budget"), f"{at}.token_budget", Lore().token_budget, least=0),
        recursive=repairs.flag(book.get("recursive_scanning"), f"{at}.recursive_scanning", Lore().recursive),
    )
    _note_patterns(lore, at, repairs)
    return lore, raws


def _holder(raw: Json, place: str) -> tuple[Json, str]:
    """The object that has a place, and the key in it."""
    if not place.startswith("."):
        return raw, place
    extensions = raw.get("extensions")
    return extensions if isinstance(extensions, dict) else {}, place[1:]


def _source(raw: Json, field: _Field) -> str | None:
    """The place where an entry keeps a field."""
    for place in (*field.card, *field.world):
        holder, key = _holder(raw, place)
        if holder.get(key) is not None:
            return place
    return None


def _read_entry(raw: Json, at: str, repairs: Repairs) -> LoreEntry:
    values: dict[str, Any] = {}
    for attribute, field in _FIELDS.items():
        if place := _source(raw, field):
            holder, key = _holder(raw, place)
            name = f"{at}extensions{place}" if place.startswith(".") else at + place
            values[attribute] = _read_value(attribute, field, holder[key], key, name, repairs)
    content = repairs.text(raw.get("content", ""), at + "content")
    decorators, content = split_decorators(content)
    return LoreEntry(
        **{"keys": (), **values}, content=content, decorators=decorators, regex=_are_patterns(raw, at, repairs)
    )


def _read_value(attribute: str, field: _Field, value: Any, key: str, name: str, repairs: Repairs) -> Any:
    default = getattr(_EMPTY, attribute)
    match field.kind:
        case "words":
            return tuple(word for word in repairs.texts(value or [], name, split=True) if word.strip())
        case "text":
            return repairs.text(value or "", name)
        case "flag":
            return repairs.flag(value, name, key != "disable" and bool(default)) != (key == "disable")
        case "logic":
            if (number := repairs.number(value, name, 0, least=0)) < len(_LOGICS):
                return _LOGICS[number]
            repairs.add(f"{name} was not a known logic; read as 0 (any of the secondary keys).")
            return default
        case _:
            value = int(value) if attribute == "delay_until_recursion" and isinstance(value, bool) else value
            return repairs.number(value, name, default, least=None if field.kind == "number" else 0)


def _are_patterns(raw: Json, at: str, repairs: Repairs) -> bool:
    """Whether every key is a pattern (V3's `use_regex`).

    SillyTavern says so of every entry it exports, plain words or not: in its entries, patterns are known by their
    slashes, and `extensions.use_regex` (ours) is needed to say otherwise.
    """
    extensions = raw.get("extensions")
    if isinstance(extensions, dict):
        if extensions.get("use_regex") is not None:
            return repairs.flag(extensions["use_regex"], f"{at}extensions.use_regex", False)
        if _is_sillytaverns(extensions):
            return False
    return repairs.flag(raw.get("use_regex"), f"{at}use_regex", False)


def _is_sillytaverns(extensions: Json) -> bool:
    return "display_index" in extensions or "useProbability" in extensions


def _note_patterns(lore: Lore, at: str, repairs: Repairs) -> None:
    patterns = 0
    for place, entry in enumerate(lore.entries):
        for key in (*entry.keys, *(() if entry.regex else entry.secondary_keys)):
            if (pattern := pattern_of(key, regex=entry.regex, case_sensitive=entry.case_sensitive)) is None:
                continue
            patterns += 1
            if patterns > MOST_PATTERNS:
                repairs.add(f"{at}.entries[{place}]: a book's first {MOST_PATTERNS:,} patterns are run; no others are.")
                return
            if problem := pattern_problem(pattern):
                repairs.add(f"{at}.entries[{place}]: the key {shown(key)} is disabled: {problem}.")


def split_decorators(text: str) -> tuple[tuple[str, ...], str]:
    """The decorators at the head of an entry's content (``@@depth 4``, ``@@@fallback``), and the rest."""
    lines: list[str] = []
    rest = text
    while (line := rest.lstrip()).startswith("@@"):
        line, _, rest_of_it = line.partition("\n")
        name = line.lstrip("@")[:1]
        if not (name.isalpha() or name == "_"):
            break
        lines.append(line.rstrip())
        rest = rest_of_it
    return tuple(lines), rest.lstrip("\r\n") if lines else text


def pattern_of(key: str, *, regex: bool, case_sensitive: bool) -> str | None:
    """A key as RE2 reads it, or None where the key is words.

    A pattern is written ``/pattern/flags``, as in SillyTavern; with ``regex`` (V3) every key is one. Flags other than
    ``i``, ``m`` and ``s`` make no difference to whether something matches.
    """
    if key.startswith("/"):
        body, slash, flags = key[1:].rpartition("/")
        if slash and body and _PATTERN_FLAGS.issuperset(flags) and not re.search(r"(?<!\\)/", body):
            return _for_re2(body, "".join(sorted(set(flags) & set("ims"))))
    return _for_re2(key, "" if case_sensitive else "i") if regex else None


def _for_re2(body: str, flags: str) -> str:
    """JavaScript's ``\\u1234`` is RE2's ``\\x{1234}``."""
    if len(body) <= _LONGEST_PATTERN:
        body = _ESCAPE.sub(lambda found: f"\\x{{{found[1] or found[2]}}}" if found[1] or found[2] else found[0], body)
    return f"(?{flags}){body}" if flags else body


@lru_cache(maxsize=MOST_PATTERNS)
def pattern_problem(pattern: str) -> str:
    """Why a pattern cannot be run; empty where it can."""
    if len(pattern) > _LONGEST_PATTERN:
        return f"a pattern may have {_LONGEST_PATTERN:,} characters"
    try:
        re2._Regexp(pattern, pattern_options())
    except UnicodeEncodeError:
        return "it holds half a surrogate pair"
    except re2.error as error:
        told = error.args[0] if error.args else ""
        return told.decode(errors="replace") if isinstance(told, bytes) else str(told)
    return ""


def pattern_options() -> Any:
    """How patterns are compiled."""
    chosen = re2.Options()
    chosen.max_mem = _PATTERN_MEMORY
    chosen.log_errors = False
    return chosen


def lore_json(raw: Any, lore: Lore, *, anew: bool) -> Json:
    """A card's book with the character's lore in it; changes ``raw``.

    Only what differs is written; ``anew`` writes every known field in the form of the card specs.
    """
    book: Json = raw if isinstance(raw, dict) else {"extensions": {}, "entries": []}
    before, raws = read_lore(book, "", Repairs())
    for attribute, key in _BOOK_KEYS.items():
        if getattr(lore, attribute) != getattr(before, attribute) or (anew and key in book):
            book[key] = getattr(lore, attribute)
    if anew or lore.entries != before.entries:
        origins = _origins(before.entries, lore.entries)
        book["entries"] = [
            _new_entry(entry) if origin is None else _entry_json(raws[origin], before.entries[origin], entry, anew=anew)
            for origin, entry in zip(origins, lore.entries, strict=True)
        ]
    return book


def _origins(before: tuple[LoreEntry, ...], now: tuple[LoreEntry, ...]) -> list[int | None]:
    """For each entry, the place of the one it was: the one that is equal, else the one in its own place."""
    places: dict[LoreEntry, deque[int]] = defaultdict(deque)
    for place, entry in enumerate(before):
        places[entry].append(place)
    equal = [places[entry].popleft() if places[entry] else None for entry in now]
    free = set(range(len(before))).difference(place for place in equal if place is not None)
    return [at if place is None and at in free else place for at, place in enumerate(equal)]


def _new_entry(entry: LoreEntry) -> Json:
    return _entry_json({"extensions": {}, "use_regex": False}, _EMPTY, entry, anew=True)


def _entry_json(raw: Json, before: LoreEntry, entry: LoreEntry, *, anew: bool) -> Json:
    for attribute, field in _FIELDS.items():
        value, source = getattr(entry, attribute), _source(raw, field)
        in_form = anew and source is not None and not source.startswith(".")
        if value != getattr(before, attribute) or in_form or (anew and attribute in _REQUIRED):
            _put(raw, field, source, _LOGICS.index(value) if field.kind == "logic" else value)
    same = (entry.decorators, entry.content) == (before.decorators, before.content)
    if not same or (anew and not isinstance(raw.get("content"), str)):
        raw["content"] = "".join(f"{line}\n" for line in entry.decorators) + entry.content
    if entry.regex != _are_patterns(raw, "", Repairs()):
        extensions, key = _holder(raw, ".use_regex")
        (extensions if _is_sillytaverns(extensions) or key in extensions else raw)[key] = entry.regex
    return raw


def _put(raw: Json, field: _Field, source: str | None, value: Any) -> None:
    """Write a field where the entry keeps it if that is a place of cards, else in the first such place there is."""
    if value is None or source in field.world:
        for place in (*field.card, *field.world):
            holder, key = _holder(raw, place)
            holder.pop(key, None)
        if value is None:
            return
    if field.card[0].startswith(".") and raw.get("extensions") is None:
        raw["extensions"] = {}
    for place in (source if source in field.card else field.card[0], *field.world):
        holder, key = _holder(raw, place)
        if holder is raw or holder is raw.get("extensions"):
            holder[key] = list(value) if field.kind == "words" else not value if key == "disable" else value
            return
