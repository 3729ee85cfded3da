"""Character Card files: V1, V2 and V3 as JSON, read and written without loss.

A card is data from strangers. Its text is never run through a template engine, and whatever is wrong with a file comes
out as a repair (it was read all the same) or as an `RplaError`.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from rpla.core.character import Character, Lore, Profile
from rpla.core.errors import RplaError
from rpla.core.lorebook import lore_json, read_lore
from rpla.core.untrusted_json import Json, Repairs, check_object, load_object, shown

Spec = Literal["v1", "v2", "v3"]

_SPEC_NAMES: Mapping[Spec, str] = {"v2": "chara_card_v2", "v3": "chara_card_v3"}
_SPEC_VERSIONS: Mapping[Spec, str] = {"v2": "2.0", "v3": "3.0"}
_V1_KEYS = ("name", "description", "personality", "scenario", "first_mes", "mes_example")
_TEXTS = {
    "name": "name",
    "description": "description",
    "personality": "personality",
    "scenario": "scenario",
    "example_dialogue": "mes_example",
    "creator_notes": "creator_notes",
    "instructions": "system_prompt",
    "closing_instructions": "post_history_instructions",
    "creator": "creator",
    "version": "character_version",
    "nickname": "nickname",
}
_REQUIRED: Mapping[Spec, tuple[str, ...]] = {
    "v1": _V1_KEYS,
    "v2": (
        *_V1_KEYS,
        *("creator_notes", "system_prompt", "post_history_instructions", "alternate_greetings"),
        *("tags", "creator", "character_version", "extensions"),
    ),
}


class ReadCard(NamedTuple):
    """A character read from a card file."""

    character: Character
    repairs: tuple[str, ...]
    """What was wrong in the file and how it was read all the same, a sentence each."""


def read_card(
    data: bytes | str, *, slug: str, id: str, profile: Profile | None = None, bundled: bool = False
) -> ReadCard:
    """Read a card's JSON in any of the three formats.

    Raises:
        RplaError: It is not JSON, not an object, of an unknown spec, without a name, larger than 8 MB,
            nested too deep, or holds NaN, an infinity or half a surrogate pair.
    """
    card, repairs = load_object(data, "card")
    fields = _read_fields(card, repairs)
    character = Character(id=id, slug=slug, profile=profile, bundled=bundled, card=MappingProxyType(card), **fields)
    return ReadCard(character, repairs.notes)


def card_json(character: Character, spec: Spec | None = None) -> Json:
    """A character as a card, in the format it was read in where none is given (a new character: V3).

    In that format the JSON is what was read, but for the fields in which the character differs from it. In another
    one the character's fields are written anew and the unknown ones go along, as far as the format has room:
    `card_losses` names what V1 has no room for.

    Raises:
        RplaError: The character has no name, or text that no JSON file can hold.
    """
    if not character.name.strip():
        raise RplaError("A character needs a name.", "Give it one, then write the card.")
    root: Json = json.loads(json.dumps(dict(character.card)))
    source = _spec_of(root) if root else None
    target = spec or source or "v3"
    before = _read_fields(root, Repairs()) if target == source else None
    data: Json = root if source in (None, "v1") else root["data"]
    updates = _updates(character, before, data)

    mirrored = {key: updates[key] for key in _V1_KEYS if key in updates and key in root}
    if target == "v1":
        room = {*_V1_KEYS, *(data if source == "v1" else ())}
        written = {key: value for key, value in (data | updates).items() if key in room}
    elif target == source:
        written = root | mirrored | {"data": data | updates}
    else:
        beside = {} if source == "v1" else root | mirrored
        defaults: Json = {"extensions": {}} | ({"group_only_greetings": []} if target == "v3" else {})
        head = {"spec": _SPEC_NAMES[target], "spec_version": _SPEC_VERSIONS[target]}
        written = beside | head | {"data": defaults | data | updates}
    check_object(written, "card")
    return written


def card_losses(character: Character, spec: Spec | None) -> list[str]:
    """The card fields that hold something and that writing this format drops."""
    written = card_json(character, spec)
    if _spec_of(written) != "v1":
        return []
    own = card_json(character)
    own_data = {} if _spec_of(own) == "v1" else own["data"]
    held = [*own.items(), *own_data.items(), *card_json(character, "v3")["data"].items()]
    kept = {*written, "spec", "spec_version", "data"}
    return sorted({key for key, value in held if key not in kept and value not in ("", None, [], {})})


def _spec_of(card: Json) -> Spec:
    name = card.get("spec")
    if name is None:
        return "v1"
    for spec, known in _SPEC_NAMES.items():
        if name == known:
            return spec
    raise RplaError(f"The card's spec is unknown: {shown(name)}.", "chara_card_v2 and chara_card_v3 are read, and V1.")


def _read_fields(card: Json, repairs: Repairs) -> dict[str, Any]:
    """The values of a `Character` that stand in a card."""
    spec = _spec_of(card)
    data, at = card, ""
    if spec != "v1":
        if not isinstance(card.get("data"), dict):
            raise RplaError("The card has no data object.", "A card of this spec keeps its fields in one.")
        flat = {key: card[key] for key in _V1_KEYS if key in card}
        data, at = flat | card["data"], "data."
        if flat:
            repairs.add("V1's fields stand beside data; they were read only where data lacks them.")
        if not isinstance(card.get("spec_version"), str):
            repairs.add(f"spec_version was not text; read as {_SPEC_VERSIONS[spec]}.")
    if missing := [key for key in _REQUIRED["v1" if spec == "v1" else "v2"] if key not in data and key != "name"]:
        repairs.add(f"Missing, read as empty: {', '.join(missing)}.")

    name = " ".join(repairs.text(data.get("name", ""), at + "name").split())
    if not name:
        raise RplaError("The card has no name.", f"Write the character's name in {at}name.")
    texts = {attribute: repairs.text(data.get(key, ""), at + key) for attribute, key in _TEXTS.items() if key != "name"}
    greetings = (
        repairs.text(data.get("first_mes", ""), at + "first_mes"),
        *repairs.texts(data.get("alternate_greetings", []), at + "alternate_greetings"),
    )
    tags = repairs.texts(data.get("tags", []), at + "tags", split=True)
    return {
        "name": name,
        **texts,
        "greetings": tuple(greeting for greeting in greetings if greeting.strip()),
        "tags": tuple(tag.strip() for tag in tags if tag.strip()),
        "lore": read_lore(data.get("character_book"), at + "character_book", repairs)[0],
    }


def _updates(character: Character, before: dict[str, Any] | None, data: Json) -> Json:
    """The card fields to write: those that differ from ``before``, or all of them where there is none."""

    def changed(attribute: str) -> bool:
        return before is None or getattr(character, attribute) != before[attribute]

    updates: Json = {key: getattr(character, attribute) for attribute, key in _TEXTS.items() if changed(attribute)}
    if not updates.get("nickname") and "nickname" not in data:
        updates.pop("nickname", None)
    if changed("greetings"):
        first, *others = character.greetings or ("",)
        updates |= {"first_mes": first, "alternate_greetings": others}
    if changed("tags"):
        updates["tags"] = list(character.tags)
    if changed("lore") and (character.lore != Lore() or data.get("character_book") is not None):
        updates["character_book"] = lore_json(data.get("character_book"), character.lore, anew=before is None)
    return updates
