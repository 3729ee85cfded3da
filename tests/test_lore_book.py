"""The book of a card: what is read of it in each of its shapes, and that nothing in it is lost."""

import copy
import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpla.core.card import card_json, read_card
from rpla.core.character import Character, Lore, LoreEntry
from rpla.core.lorebook import lore_json, read_lore, split_decorators
from rpla.core.untrusted_json import Repairs

# As SillyTavern writes an entry to a card, and to a world-info file.
IN_CARD = {
    "id": 7,
    "keys": ["lamp", "/lan+tern/i"],
    "secondary_keys": ["oil"],
    "comment": "The lamp",
    "content": "@@depth 4\n@@@activate_only_after 2\n\nIt burns.",
    "constant": False,
    "selective": True,
    "insertion_order": 5,
    "enabled": True,
    "position": "before_char",
    "use_regex": True,
    "extensions": {
        "position": 4,
        "exclude_recursion": True,
        "prevent_recursion": True,
        "delay_until_recursion": 2,
        "display_index": 3,
        "probability": 40,
        "useProbability": True,
        "depth": 4,
        "selectiveLogic": 3,
        "outlet_name": "",
        "group": "lights",
        "group_override": True,
        "group_weight": 30,
        "scan_depth": 9,
        "match_whole_words": False,
        "use_group_scoring": None,
        "case_sensitive": True,
        "automation_id": "",
        "role": 0,
        "vectorized": False,
        "sticky": 3,
        "cooldown": 4,
        "delay": 6,
        "ignore_budget": True,
        "triggers": [],
    },
}
IN_WORLD = {
    "uid": 7,
    "key": ["lamp", "/lan+tern/i"],
    "keysecondary": ["oil"],
    "comment": "The lamp",
    "content": "@@depth 4\n@@@activate_only_after 2\n\nIt burns.",
    "constant": False,
    "selective": True,
    "order": 5,
    "disable": False,
    "position": 4,
    "excludeRecursion": True,
    "preventRecursion": True,
    "delayUntilRecursion": 2,
    "displayIndex": 3,
    "probability": 40,
    "useProbability": True,
    "depth": 4,
    "selectiveLogic": 3,
    "group": "lights",
    "groupOverride": True,
    "groupWeight": 30,
    "scanDepth": 9,
    "matchWholeWords": False,
    "caseSensitive": True,
    "sticky": 3,
    "cooldown": 4,
    "delay": 6,
    "ignoreBudget": True,
    "vectorized": False,
    "role": None,
}
LAMP = LoreEntry(
    keys=("lamp", "/lan+tern/i"),
    content="It burns.",
    name="The lamp",
    order=5,
    case_sensitive=True,
    whole_words=False,
    secondary_keys=("oil",),
    selective=True,
    logic="and_all",
    ignore_budget=True,
    scan_depth=9,
    probability=40,
    sticky=3,
    cooldown=4,
    delay=6,
    group="lights",
    group_override=True,
    group_weight=30,
    exclude_recursion=True,
    prevent_recursion=True,
    delay_until_recursion=2,
    decorators=("@@depth 4", "@@@activate_only_after 2"),
)
OTHERS: dict[str, Any] = {
    **{"keys": ("x", "y"), "content": "Other.", "name": "other", "enabled": False, "constant": True, "order": -3},
    **{"case_sensitive": True, "regex": True, "whole_words": True, "secondary_keys": ("z",), "selective": True},
    **{"logic": "not_any", "priority": 8, "ignore_budget": True, "scan_depth": 0, "probability": 5, "sticky": 1},
    **{"use_probability": False, "cooldown": 2, "delay": 3, "group": "g", "group_override": True, "group_weight": 7},
    **{"exclude_recursion": True, "prevent_recursion": True, "delay_until_recursion": 4},
    **{"decorators": ("@@activate", "@@x 1")},
}


def read(book: Any) -> tuple[Lore, tuple[str, ...]]:
    repairs = Repairs()
    return read_lore(book, "book", repairs)[0], repairs.notes


def card(spec: str, *entries: Any, **book: Any) -> dict[str, Any]:
    data = {"name": "Ada", "character_book": {"entries": list(entries), "extensions": {}} | book}
    return data if spec == "v1" else {"spec": f"chara_card_{spec}", "spec_version": f"{spec[1]}.0", "data": data}


def character_of(card: Any) -> Character:
    return read_card(json.dumps(card), slug="ada", id="0" * 32).character


@pytest.mark.parametrize("raw", [IN_CARD, IN_WORLD], ids=["card", "world"])
@pytest.mark.parametrize("spec", ["v1", "v2", "v3"])
def test_every_field_of_a_sillytavern_entry_is_read_and_written_back(spec: str, raw: Any) -> None:
    character = character_of(card(spec, raw, recursive_scanning=True, scan_depth=6))
    assert character.lore == Lore(entries=(LAMP,), recursive=True, scan_depth=6)
    assert card_json(character) == card(spec, raw, recursive_scanning=True, scan_depth=6)


@pytest.mark.parametrize("raw", [IN_CARD, IN_WORLD], ids=["card", "world"])
@pytest.mark.parametrize("spec", ["v2", "v3"])
def test_written_as_a_card_an_entry_has_its_fields_where_cards_have_them(spec: Any, raw: Any) -> None:
    character = character_of(card("v1", raw))
    written = card_json(character, spec)
    (entry,) = written["data"]["character_book"]["entries"]
    kept = {key: entry[key] for key in ("keys", "secondary_keys", "content", "insertion_order", "enabled", "comment")}
    assert kept == {key: IN_CARD[key] for key in kept}
    unlike = {key for key, value in IN_CARD["extensions"].items() if entry["extensions"].get(key, value) != value}  # type: ignore[attr-defined]
    assert unlike == set()
    assert character_of(written).lore == character.lore


def test_every_field_of_an_entry_is_told_apart_by_the_values_of_these_tests() -> None:
    names = {field.name for field in fields(LoreEntry)}
    assert set(OTHERS) == names
    assert all(OTHERS[name] != getattr(LoreEntry(keys=(), content=""), name) for name in names)


@pytest.mark.parametrize("attribute", OTHERS)
@pytest.mark.parametrize("raw", [{"keys": ["k"], "content": "c"}, IN_CARD, IN_WORLD, None], ids=repr)
def test_a_changed_field_is_written_and_nothing_else_changes(raw: Any, attribute: str) -> None:
    book = {"entries": [raw] if raw else []}
    lore, _ = read(book)
    entry = replace(lore.entries[0] if raw else LoreEntry(keys=("k",), content="c"), **{attribute: OTHERS[attribute]})
    for anew in (False, True):
        written = lore_json(copy.deepcopy(book), replace(lore, entries=(entry,)), anew=anew)
        assert read(json.loads(json.dumps(written)))[0].entries == (entry,)
        if raw and not anew:
            (after,) = written["entries"]
            before = {**raw, **raw.get("extensions", {})}
            unlike = {
                key for key, value in {**after, **after.get("extensions", {})}.items() if before.get(key) != value
            }
            assert len(unlike - {"extensions"}) <= 1


@pytest.mark.parametrize("attribute", ["whole_words", "scan_depth"])
@pytest.mark.parametrize("raw", [IN_CARD, IN_WORLD, IN_WORLD | IN_CARD], ids=["card", "world", "both"])
def test_a_field_can_be_left_to_the_book_again(raw: Any, attribute: str) -> None:
    lore, _ = read({"entries": [raw]})
    entry = replace(lore.entries[0], **{attribute: None})
    written = lore_json({"entries": [copy.deepcopy(raw)]}, replace(lore, entries=(entry,)), anew=False)
    assert read(written)[0].entries == (entry,)


def test_plain_words_of_sillytaverns_exports_are_no_patterns() -> None:
    theirs, ours = (
        {"keys": ["C++"], "content": "c", "use_regex": True, "extensions": extensions}
        for extensions in ({"display_index": 0}, {})
    )
    assert read({"entries": [theirs]}) == (Lore(entries=(LoreEntry(keys=("C++",), content="c"),)), ())
    lore, repairs = read({"entries": [ours]})
    assert lore.entries[0].regex
    assert "C++ is disabled" in repairs[0]


@pytest.mark.parametrize(
    ("text", "decorators", "content"),
    [
        ("plain", (), "plain"),
        ("\n plain", (), "\n plain"),
        ("@@a 1\n@@@b\nText\n@@c", ("@@a 1", "@@@b"), "Text\n@@c"),
        ("\n @@a  \r\n\n@@b x, y\r\n\r\n  Text", ("@@a", "@@b x, y"), "  Text"),
        ("@@a", ("@@a",), ""),
        ("@@ no name", (), "@@ no name"),
        ("@@1", (), "@@1"),
        ("@ one", (), "@ one"),
        ("", (), ""),
    ],
)
def test_decorators_stand_at_the_head_of_the_content(text: str, decorators: Any, content: str) -> None:
    assert split_decorators(text) == (decorators, content)


def test_what_is_odd_in_an_entry_stays_as_it_is() -> None:
    raw = {"keys": ["k"], "content": "c", "extensions": ["junk"], "sticky": 4, "probability": "half"}
    lore, repairs = read({"entries": [raw]})
    assert (lore.entries[0].sticky, lore.entries[0].probability) == (4, 100)
    assert repairs == ("book.entries[0].probability was not a number that can stand there; read as 100.",)
    changed = replace(lore.entries[0], sticky=5, group="g")
    written = lore_json({"entries": [dict(raw)]}, replace(lore, entries=(changed,)), anew=False)
    assert written["entries"] == [raw | {"sticky": 5, "group": "g"}]
    assert read(written)[0].entries == (changed,)


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
_loose = st.none() | st.booleans() | st.integers(-3, 300) | st.floats(0, 9) | _text | st.lists(_text, max_size=2)
_entry = st.fixed_dictionaries(
    {},
    optional={
        **{key: _loose for key in {**IN_CARD, **IN_WORLD} if key != "extensions"},
        "extensions": st.fixed_dictionaries({}, optional=dict.fromkeys([*IN_CARD["extensions"], "use_regex"], _loose))  # type: ignore[misc]
        | _loose,
    },
)
_changes = st.fixed_dictionaries({}, optional={name: st.just(value) for name, value in OTHERS.items()})


@settings(max_examples=200, deadline=None)
@given(st.lists(_entry, max_size=3), st.lists(_changes, max_size=3), st.sampled_from(["v1", "v2", "v3"]))
def test_whatever_stands_in_a_book_is_kept_and_every_change_is_read_again(raws: Any, changes: Any, spec: Any) -> None:
    source = card(spec, *raws)
    character = character_of(source)
    assert json.dumps(card_json(character), sort_keys=True) == json.dumps(source, sort_keys=True)
    entries = [
        replace(character.lore.entries[place], **change)
        if place < len(raws)
        else LoreEntry(**{"keys": (), "content": "", **change})
        for place, change in enumerate(changes)
    ]
    changed = replace(character, lore=replace(character.lore, entries=tuple(entries)))
    for target in ("v2", "v3"):
        assert character_of(card_json(changed, target)).lore == changed.lore  # type: ignore[arg-type]
    assert character_of(card_json(changed)).lore == changed.lore
