"""The book of lore in a card's JSON, read and written without loss."""

from collections import defaultdict, deque
from typing import Any

from rpla.core.character import Lore, LoreEntry
from rpla.core.untrusted_json import Json, Repairs

# A lore entry's attribute to its key in a card's book and its key in SillyTavern's world-info files.
_ENTRY_KEYS = {
    "keys": ("keys", "key"),
    "content": ("content", "content"),
    "name": ("name", "comment"),
    "enabled": ("enabled", "disable"),
    "constant": ("constant", "constant"),
    "order": ("insertion_order", "order"),
    "case_sensitive": ("case_sensitive", "caseSensitive"),
}
_ENTRY_REQUIRED = {"keys", "content", "enabled", "order"}


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
    )
    return lore, raws


def _source_key(raw: Json, attribute: str) -> str:
    """The key under which an entry keeps an attribute."""
    ours, theirs = _ENTRY_KEYS[attribute]
    return theirs if raw.get(ours) is None and raw.get(theirs) is not None else ours


def _read_entry(raw: Json, at: str, repairs: Repairs) -> LoreEntry:
    keys = {attribute: _source_key(raw, attribute) for attribute in _ENTRY_KEYS}
    values = {attribute: raw.get(key) for attribute, key in keys.items()}
    enabled = repairs.flag(values["enabled"], at + keys["enabled"], keys["enabled"] == "enabled")
    if raw.get("use_regex") is True:
        repairs.add(f"{at}use_regex: patterns are not run; the keys were read as plain words.")
    words = repairs.texts(values["keys"] or [], at + keys["keys"], split=True)
    return LoreEntry(
        keys=tuple(key for key in words if key.strip()),
        content=repairs.text(values["content"] if "content" in raw else "", at + "content"),
        name=repairs.text(values["name"] or "", at + keys["name"]),
        enabled=enabled if keys["enabled"] == "enabled" else not enabled,
        constant=repairs.flag(values["constant"], at + "constant", False),
        order=repairs.number(values["order"], at + keys["order"], 100),
        case_sensitive=repairs.flag(values["case_sensitive"], at + keys["case_sensitive"], False),
    )


def lore_json(raw: Any, lore: Lore, *, anew: bool) -> Json:
    """A card's book with the character's lore in it; changes ``raw``.

    Only what differs is written; ``anew`` writes every known field in the form of the card specs.
    """
    book: Json = raw if isinstance(raw, dict) else {"extensions": {}, "entries": []}
    before, raws = read_lore(book, "", Repairs())
    for key in ("scan_depth", "token_budget"):
        if getattr(lore, key) != getattr(before, key) or (anew and key in book):
            book[key] = getattr(lore, key)
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
    return _entry_json({"extensions": {}, "use_regex": False}, LoreEntry(keys=(), content=""), entry, anew=True)


def _entry_json(raw: Json, before: LoreEntry, entry: LoreEntry, *, anew: bool) -> Json:
    for attribute, (ours, _) in _ENTRY_KEYS.items():
        value, source = getattr(entry, attribute), _source_key(raw, attribute)
        stands = raw.get(source) is not None
        if value != getattr(before, attribute) or (anew and (attribute in _ENTRY_REQUIRED or stands)):
            if source == "comment":  # a field of cards too, which other programs show as the title
                ours = source
            elif source != ours:
                del raw[source]
            raw[ours] = list(value) if attribute == "keys" else value
    return raw
