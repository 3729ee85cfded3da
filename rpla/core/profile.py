"""The profile behind a character, as profile.json."""

from types import MappingProxyType
from typing import Any

from rpla.core.character import Claim, Profile
from rpla.core.errors import RplaError
from rpla.core.nearest import nearest_hint
from rpla.core.untrusted_json import Json, check_object, load_object, shown

_TEXTS = ("label", "description", "era", "calling")
_LISTS = ("aliases", "catchphrases", "cannot_know")
_FIELDS = {*_TEXTS, *_LISTS, "claims", "relations"}


def read_profile(text: bytes | str) -> Profile:
    """Read a profile.json. Unlike a card it is strict: it is written for rpla, so what is wrong in it is a mistake.

    Raises:
        RplaError: It is not a JSON object, or a field is missing, unknown or of the wrong type; the field is named.
    """
    data, _ = load_object(text, "profile")
    _only_known(data, _FIELDS, "")
    for required in ("label", "description"):
        if not _text(data.get(required, ""), required).strip():
            raise RplaError(f"The profile's {required} is missing or empty.", "Every profile has one.")
    relations = data.get("relations", {})
    if not isinstance(relations, dict):
        raise _wrong("relations", "an object of names to what they are to the character")
    texts: dict[str, Any] = {field: _text(data.get(field, ""), field) for field in _TEXTS}
    lists: dict[str, Any] = {field: _texts(data.get(field, []), field) for field in _LISTS}
    return Profile(
        **texts,
        **lists,
        claims=tuple(_claim(claim, f"claims[{n}]") for n, claim in enumerate(_list(data.get("claims", []), "claims"))),
        relations=MappingProxyType({name: _text(what, f"relations.{shown(name)}") for name, what in relations.items()}),
    )


def profile_json(profile: Profile) -> Json:
    """The JSON that `read_profile` reads as this profile.

    Raises:
        RplaError: It holds text that no JSON file can hold.
    """
    written = {
        **{field: getattr(profile, field) for field in _TEXTS},
        **{field: list(getattr(profile, field)) for field in _LISTS},
        "claims": [{"text": claim.text, "source": claim.source} for claim in profile.claims],
        "relations": dict(profile.relations),
    }
    check_object(written, "profile")
    return written


def _claim(value: Any, field: str) -> Claim:
    if not isinstance(value, dict):
        raise _wrong(field, "an object with text and source")
    _only_known(value, {"text", "source"}, f"{field}.")
    if not (text := _text(value.get("text", ""), f"{field}.text")).strip():
        raise RplaError(f"The profile's {field}.text is missing or empty.", "A claim says something.")
    return Claim(text=text, source=_text(value.get("source", ""), f"{field}.source"))


def _only_known(data: Json, known: set[str], at: str) -> None:
    for field in data:
        if field not in known:
            raise RplaError(f"The profile has an unknown field: {at}{shown(field)}.", nearest_hint(shown(field), known))


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(field, "a list")
    return value


def _texts(value: Any, field: str) -> tuple[str, ...]:
    return tuple(_text(item, f"{field}[{place}]") for place, item in enumerate(_list(value, field)))


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise _wrong(field, "text")
    return value


def _wrong(field: str, kind: str) -> RplaError:
    return RplaError(f"The profile's {field} is not {kind}.", "Mend that field in profile.json.")
