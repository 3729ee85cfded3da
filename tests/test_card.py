import contextlib
import json
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpla.core.card import ReadCard, card_json, card_losses, read_card
from rpla.core.character import Character, Lore, LoreEntry
from rpla.core.errors import RplaError
from rpla.core.profile import profile_json, read_profile

V1_KEYS = ("name", "description", "personality", "scenario", "first_mes", "mes_example")
FULL_DATA = {
    "name": "Ada",
    "description": "A mathematician. She writes.",
    "personality": "exact",
    "scenario": "London, 1851",
    "first_mes": "Do sit.",
    "mes_example": "<START>\n{{user}}: Hm?\n{{char}}: Quite.",
    "creator_notes": "for people",
    "system_prompt": "{{original}} Be Ada.",
    "post_history_instructions": "Stay Ada.",
    "alternate_greetings": ["Good day.", "Ah."],
    "tags": ["science", "wit"],
    "creator": "someone",
    "character_version": "1.2",
    "extensions": {"depth_prompt": {"depth": 4}},
    "character_book": {
        "scan_depth": 7,
        "token_budget": 900,
        "recursive_scanning": False,
        "extensions": {},
        "entries": [
            {
                "keys": ["engine", "mill"],
                "content": "It computes.",
                "extensions": {"position": 1},
                "enabled": True,
                "insertion_order": 3,
                "constant": True,
                "case_sensitive": True,
                "name": "The Engine",
                "selective": False,
            },
            {"keys": ["byron"], "content": "Her father.", "extensions": {}, "enabled": False, "insertion_order": 9},
        ],
    },
}
FULL = {
    "spec": "chara_card_v3",
    "spec_version": "3.0",
    "data": {
        **FULL_DATA,
        "nickname": "A.A.L.",
        "group_only_greetings": ["All of you?"],
        "assets": [{"type": "icon", "uri": "ccdefault:", "name": "main", "ext": "png"}],
        "creator_notes_multilingual": {"fr": "pour les gens"},
        "source": ["https://example.org/ada"],
        "creation_date": 1700000000,
    },
}


def v2(**data: Any) -> dict[str, Any]:
    return {"spec": "chara_card_v2", "spec_version": "2.0", "data": FULL_DATA | data}


def read(card: object) -> ReadCard:
    return read_card(json.dumps(card), slug="ada", id="0" * 32)


def reread(character: Character, spec: Any = None) -> Character:
    return read(card_json(character, spec)).character


# --- what is read


def test_every_field_of_a_v3_card_reaches_the_character() -> None:
    character, repairs = read(FULL)
    assert repairs == ()
    assert character == Character(
        id="0" * 32,
        slug="ada",
        name="Ada",
        description="A mathematician. She writes.",
        personality="exact",
        scenario="London, 1851",
        greetings=("Do sit.", "Good day.", "Ah."),
        example_dialogue="<START>\n{{user}}: Hm?\n{{char}}: Quite.",
        instructions="{{original}} Be Ada.",
        closing_instructions="Stay Ada.",
        creator="someone",
        creator_notes="for people",
        tags=("science", "wit"),
        version="1.2",
        nickname="A.A.L.",
        lore=Lore(
            scan_depth=7,
            token_budget=900,
            entries=(
                LoreEntry(
                    keys=("engine", "mill"),
                    content="It computes.",
                    name="The Engine",
                    constant=True,
                    order=3,
                    case_sensitive=True,
                ),
                LoreEntry(keys=("byron",), content="Her father.", enabled=False, order=9),
            ),
        ),
    )


def test_a_v1_card_is_a_flat_object() -> None:
    character, repairs = read({key: f"the {key}" for key in V1_KEYS})
    assert repairs == ()
    assert (character.name, character.greetings, character.example_dialogue) == (
        "the name",
        ("the first_mes",),
        "the mes_example",
    )


def test_card_text_stays_text() -> None:
    hostile = "{{''.__class__}} {0.__globals__} ${HOME} {% raw %} %(name)s"
    character = read(v2(description=hostile)).character
    assert character.description == hostile
    assert card_json(character)["data"]["description"] == hostile


# --- round trips

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=6,
)
_name = _text.filter(lambda name: name.strip())


def _object(known: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Known fields, each there or not and of the right kind or any other, among unknown ones."""
    loose = {key: value | _json for key, value in known.items()}
    return st.builds(
        lambda unknown, fields: unknown | fields,
        st.dictionaries(_text.map(lambda key: f"x_{key}"), _json, max_size=3),
        st.fixed_dictionaries({}, optional=loose),
    )


_entry = _object(
    {
        **{"keys": st.lists(_text, max_size=3), "key": st.lists(_text, max_size=2), "content": _text, "name": _text},
        **{"comment": _text, "enabled": st.booleans(), "disable": st.booleans(), "constant": st.booleans()},
        **{"insertion_order": st.integers(), "case_sensitive": st.booleans(), "use_regex": st.booleans()},
    }
)
_book = _object(
    {
        "entries": st.lists(_entry, max_size=3) | st.dictionaries(_text, _entry, max_size=2),
        "scan_depth": st.integers(),
        "token_budget": st.integers(),
    }
)
_flat = {key: _text for key in V1_KEYS if key != "name"}
_v1 = st.builds(lambda card, name: card | {"name": name}, _object(_flat), _name)
_data = st.builds(
    lambda data, name: data | {"name": name},
    _object(
        {
            **_flat,
            **{"alternate_greetings": st.lists(_text, max_size=3), "tags": st.lists(_text, max_size=3)},
            **{"character_book": _book, "nickname": _text, "extensions": st.dictionaries(_text, _json, max_size=2)},
        }
    ),
    _name,
)
_v2_or_v3 = st.builds(
    lambda root, number, data: root | {"spec": f"chara_card_v{number}", "spec_version": f"{number}.0", "data": data},
    _object(_flat),
    st.sampled_from([2, 3]),
    _data,
)
_cards = _v1 | _v2_or_v3


@settings(max_examples=150, deadline=None)
@given(_cards)
def test_writing_what_was_read_gives_the_same_json_unknown_fields_included(card: dict[str, Any]) -> None:
    assert json.dumps(card_json(read(card).character), sort_keys=True) == json.dumps(card, sort_keys=True)


@settings(max_examples=100, deadline=None)
@given(
    _cards,
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.just("New Name"),
            "scenario": _text,
            "nickname": _text,
            "greetings": st.lists(st.sampled_from(["Hi.", "Ho."]), max_size=3).map(tuple),
            "tags": st.lists(st.sampled_from(["a", "b,c"]), max_size=2).map(tuple),
            "lore": st.builds(
                Lore,
                scan_depth=st.integers(0, 9),
                entries=st.lists(
                    st.builds(
                        LoreEntry,
                        keys=st.lists(st.sampled_from(["k", "l"]), max_size=2).map(tuple),
                        content=_text,
                        name=_text,
                        enabled=st.booleans(),
                        constant=st.booleans(),
                        order=st.integers(),
                        case_sensitive=st.booleans(),
                    ),
                    max_size=3,
                ).map(tuple),
            ),
        },
    ),
)
def test_every_change_to_a_character_is_in_the_card_written_as_v3(card: dict[str, Any], changes: Any) -> None:
    changed = replace(read(card).character, **changes)
    assert reread(changed, "v3") == changed
    if card.get("spec"):
        assert reread(changed) == changed


@settings(max_examples=100, deadline=None)
@given(_v2_or_v3, st.sampled_from(["v2", "v3"]))
def test_v2_and_v3_hold_each_others_fields_and_the_unknown_ones(card: dict[str, Any], spec: Any) -> None:
    character = read(card).character
    written = card_json(character, spec)
    assert written["spec"] == f"chara_card_{spec}"
    assert reread(character, spec) == character
    assert {key: value for key, value in written["data"].items() if key.startswith("x_")} == {
        key: value for key, value in card["data"].items() if key.startswith("x_")
    }
    assert card_losses(character, spec) == []


@settings(max_examples=50, deadline=None)
@given(_cards)
def test_v1_holds_its_six_fields_and_names_every_other_one_that_held_something(card: dict[str, Any]) -> None:
    character = read(card).character
    written, losses = card_json(character, "v1"), card_losses(character, "v1")
    assert written["name"] == character.name or "data" not in card
    assert not set(losses) & set(written)
    for key, value in card.get("data", card).items():
        assert key in written or key in losses or value in ("", None, [], {})


def test_downgrading_to_v1_names_what_is_dropped() -> None:
    character = read(FULL).character
    assert card_json(character, "v1") == {key: FULL_DATA[key] for key in V1_KEYS}
    assert card_losses(character, "v1") == [
        *("alternate_greetings", "assets", "character_book", "character_version", "creation_date", "creator"),
        *("creator_notes", "creator_notes_multilingual", "extensions", "group_only_greetings", "nickname"),
        *("post_history_instructions", "source", "system_prompt", "tags"),
    ]


def test_a_new_character_is_written_as_v3_with_the_required_fields() -> None:
    written = card_json(Character(id="1" * 32, slug="eve", name="Eve"))
    assert (written["spec"], written["spec_version"]) == ("chara_card_v3", "3.0")
    assert set(written["data"]) == {
        *V1_KEYS,
        *("creator_notes", "system_prompt", "post_history_instructions", "alternate_greetings", "tags", "creator"),
        *("character_version", "extensions", "group_only_greetings"),
    }


def test_a_changed_field_leaves_the_rest_of_the_json_alone() -> None:
    card = v2(tags="a, b", scenario=None, x={"deep": [1]})
    written = card_json(replace(read(card).character, name="Eve"))
    assert written == v2(tags="a, b", scenario=None, x={"deep": [1]}, name="Eve")


def test_a_changed_lore_entry_keeps_its_unknown_fields_wherever_it_moves() -> None:
    character = read(FULL).character
    engine, byron = character.lore.entries
    moved = replace(character, lore=replace(character.lore, entries=(byron, replace(engine, content="It thinks not."))))
    first, second = card_json(moved)["data"]["character_book"]["entries"]
    assert first == FULL_DATA["character_book"]["entries"][1]  # type: ignore[index]
    assert second["content"] == "It thinks not."
    only = replace(character, lore=replace(character.lore, entries=(replace(engine, order=5),)))
    (entry,) = card_json(only)["data"]["character_book"]["entries"]
    assert entry == FULL_DATA["character_book"]["entries"][0] | {"insertion_order": 5}  # type: ignore[index]


def test_a_flat_copy_of_a_changed_field_is_kept_in_step() -> None:
    card = v2() | {"name": "Ada", "description": "A mathematician. She writes."}
    written = card_json(replace(read(card).character, name="Eve"))
    assert (written["name"], written["data"]["name"]) == ("Eve", "Eve")
    assert written["description"] == card["description"]


def test_writing_does_not_change_the_character_read() -> None:
    character = read(FULL).character
    card_json(replace(character, lore=Lore()), "v2")["data"]["extensions"]["depth_prompt"]["depth"] = 99
    assert card_json(character) == FULL


# --- what is mended


@pytest.mark.parametrize(
    ("card", "attribute", "expected", "repair"),
    [
        (v2(description=None), "description", "", "data.description was null"),
        (v2(scenario=1851), "scenario", "1851", "data.scenario was not text"),
        (v2(character_version=1.5), "version", "1.5", "data.character_version was not text"),
        (v2(personality=["x"]), "personality", "", "data.personality was a list"),
        (v2(tags="a, b,,c"), "tags", ("a", "b", "c"), "data.tags was text"),
        (v2(tags=None), "tags", (), "data.tags was null"),
        (v2(tags=["a", 7]), "tags", ("a", "7"), "data.tags[1] was not text"),
        (v2(alternate_greetings="Ho, there"), "greetings", ("Do sit.", "Ho, there"), "data.alternate_greetings"),
        (v2(character_book=[]), "lore", Lore(), "data.character_book was a list"),
        (v2(character_book={"entries": 3}), "lore", Lore(), "data.character_book.entries was a number"),
        (v2(character_book={"entries": [3]}), "lore", Lore(), "data.character_book.entries[0] was a number"),
        (v2(character_book={"scan_depth": "9"}), "lore", Lore(scan_depth=9), "scan_depth was not a whole number"),
        (v2(character_book={"scan_depth": -1}), "lore", Lore(), "scan_depth was not a number that can stand there"),
        (v2(character_book={"token_budget": "1e999"}), "lore", Lore(), "token_budget was not a number"),
        (v2() | {"spec_version": 2.0}, "name", "Ada", "spec_version was not text"),
        (v2() | {"first_mes": "Old."}, "greetings", ("Do sit.", "Good day.", "Ah."), "V1's fields stand beside data"),
        (
            {"name": "Ada", "first_mes": "Hi."},
            "greetings",
            ("Hi.",),
            "Missing, read as empty: description, personality",
        ),
    ],
)
def test_a_damaged_field_is_read_and_reported(card: Any, attribute: str, expected: Any, repair: str) -> None:
    character, repairs = read(card)
    assert getattr(character, attribute) == expected
    assert [note for note in repairs if repair in note], repairs
    assert card_json(character) == card


@pytest.mark.parametrize(
    ("fields", "expected", "repair"),
    [
        ({"keys": "a, b"}, {"keys": ("a", "b")}, "keys was text"),
        ({"keys": ["", " ", "a"]}, {"keys": ("a",)}, ""),
        ({"insertion_order": "12"}, {"order": 12}, "insertion_order was not a whole number; read as 12"),
        ({"insertion_order": True}, {"order": 100}, "insertion_order was not a number"),
        ({"enabled": "false"}, {"enabled": False}, "enabled was not true or false"),
        ({"constant": 1}, {"constant": True}, "constant was not true or false"),
        ({"content": None}, {"content": ""}, "content was null"),
        ({"use_regex": True}, {"regex": True}, ""),
        ({"use_regex": "yes"}, {"regex": True}, "use_regex was not true or false"),
        ({"keys": ["/(?=x)y/", "k"]}, {"keys": ("/(?=x)y/", "k")}, "the key /(?=x)y/ is disabled"),
        ({"extensions": {"sticky": "3"}}, {"sticky": 3}, "extensions.sticky was not a whole number; read as 3"),
        ({"extensions": {"cooldown": -1}}, {}, "extensions.cooldown was not a number that can stand there"),
        ({"extensions": {"selectiveLogic": 9}}, {}, "extensions.selectiveLogic was not a known logic"),
        ({"extensions": {"delay_until_recursion": True, "sticky": None}}, {"delay_until_recursion": 1}, ""),
        ({"extensions": ["sticky"]}, {}, ""),
    ],
)
def test_a_damaged_lore_entry_is_read_and_reported(fields: Any, expected: Any, repair: str) -> None:
    character, repairs = read(v2(character_book={"entries": [{"keys": ["k"], "content": "c"} | fields]}))
    assert character.lore.entries == (replace(LoreEntry(keys=("k",), content="c"), **expected),)
    assert bool(repairs) == bool(repair)
    assert all(repair in note for note in repairs)


def test_entries_in_the_shape_of_a_sillytavern_world_file_are_read_and_written_back() -> None:
    raw = {
        "uid": 0,
        "key": ["mill"],
        "comment": "Mill",
        "content": "c",
        "disable": True,
        "order": 5,
        "keysecondary": [],
    }
    card = v2(character_book={"entries": {"0": raw}})
    character, repairs = read(card)
    assert character.lore.entries == (LoreEntry(keys=("mill",), content="c", name="Mill", enabled=False, order=5),)
    assert repairs == ("data.character_book.entries was an object of entries; read as a list.",)
    assert card_json(character) == card
    awake = replace(
        character, lore=Lore(entries=(replace(character.lore.entries[0], enabled=True, keys=("x",), name="Y"),))
    )
    assert reread(awake) == awake
    assert card_json(awake)["data"]["character_book"]["entries"][0]["uid"] == 0


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_bytes_with_a_byte_order_mark_are_read(encoding: str) -> None:
    character, repairs = read_card(
        json.dumps(v2(name="Zoë"), ensure_ascii=False).encode(encoding), slug="z", id="0" * 32
    )
    assert character.name == "Zoë"
    assert len(repairs) == (encoding == "utf-8-sig")


def test_a_key_that_stands_twice_is_reported() -> None:
    repairs = read_card('{"name": "A", "name": "B"}', slug="b", id="0" * 32).repairs
    assert "name stood twice in one object; the last was read." in repairs


def test_a_million_repairs_are_counted_rather_than_listed() -> None:
    repairs = read(v2(tags=[1] * 1000)).repairs
    assert len(repairs) == 51
    assert repairs[-1] == "There were 950 more repairs."


def test_a_name_is_one_line() -> None:
    assert read({"name": " Ada \n Lovelace\t"}).character.name == "Ada Lovelace"


# --- what is refused


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "not JSON"),
        ("not json", "not JSON: Expecting value (line 1, column 1)"),
        (b"\xff\xfe\xfa", "not text"),
        ("[]", "not a JSON object"),
        ('"Ada"', "not a JSON object"),
        ("{}", "no name"),
        ('{"name": "  "}', "no name"),
        ('{"name": null}', "no name"),
        ('{"name": ["Ada"]}', "no name"),
        ('{"spec": "chara_card_v2", "data": {"name": ""}}', "no name"),
        ('{"spec": "chara_card_v2", "name": "Ada"}', "no data object"),
        ('{"spec": "chara_card_v2", "name": "Ada", "data": []}', "no data object"),
        ('{"spec": "chara_card_v9", "data": {}}', "spec is unknown: chara_card_v9"),
        ('{"spec": ["\x7f"], "data": {}}', "spec is unknown"),
        ('{"name": "A", "x": {"y": [0, NaN]}}', "x.y[1] is not a finite number"),
        ('{"name": "A", "x": -Infinity}', "x is not a finite number"),
        ('{"name": "A", "x": 1e999}', "x is not a finite number"),
        ('{"name": "A\\ud800"}', "name holds half a surrogate pair"),
        ('{"name": "A", "x": {"\\udfff": 1}}', "has half a surrogate pair in its key"),
        ('{"name": "A", "x": ' + "9" * 5000 + "}", "a number that is too long"),
        ('{"name": "A", "x": ' + "[" * 100 + "]" * 100 + "}", "nested too deep"),
        ("[" * 1_000_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ('{"name": "' + "A" * 8 * 1024**2 + '"}', "larger than 8 MB"),
        (b" " * (8 * 1024**2 + 1), "larger than 8 MB"),
        ('{"name": "A", "x": [' + "0," * 400_000 + "0]}", "too many values"),
        ('{"name": "A", "x": [' + "{}," * 400_000 + "{}]}", "too many values"),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_a_file_that_is_no_card_is_refused_with_the_reason(data: Any, message: str) -> None:
    with pytest.raises(RplaError) as refused:
        read_card(data, slug="a", id="0" * 32)
    assert message in refused.value.message
    assert refused.value.hint
    str(refused.value).encode()
    assert "\x7f" not in str(refused.value)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutilated_cards_are_read_or_refused_quickly_and_never_crash(data: st.DataObject) -> None:
    text = bytearray(json.dumps(FULL).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        end = at + data.draw(st.integers(0, 30))
        text[at:end] = data.draw(
            st.sampled_from([b"null", b"[", b"}", b'"', b"\\ud83d", b"\xe2\x80\xae", b"1e400", b""])
        )
    start = time.monotonic()
    with contextlib.suppress(RplaError):
        assert card_json(read_card(bytes(text), slug="a", id="0" * 32).character) == json.loads(text)
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("changes", [{"name": " "}, {"description": "\ud800"}, {"tags": ("\udc00",)}])
def test_a_character_that_no_card_can_hold_is_not_written(changes: Any) -> None:
    with pytest.raises(RplaError):
        card_json(replace(read(FULL).character, **changes))


# --- profiles

PROFILE = {
    "label": "Ada",
    "description": "English mathematician (1815-1852)",
    "aliases": ["A.A.L."],
    "claims": [{"text": "She wrote Note G.", "source": "Taylor 1843"}],
    "catchphrases": ["Quite."],
    "relations": {"Babbage": "friend"},
    "cannot_know": ["radio"],
    "era": "1851",
    "calling": "mathematician",
}


def test_a_profile_round_trips() -> None:
    profile = read_profile(json.dumps(PROFILE))
    assert profile.claims[0].source == "Taylor 1843"
    assert profile.relations["Babbage"] == "friend"
    assert profile_json(profile) == PROFILE


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"label": ""}, "label"),
        ({"description": None}, "description"),
        ({"aliases": "Ada"}, "aliases"),
        ({"catchphrases": [1]}, "catchphrases[0]"),
        ({"claims": ["She wrote."]}, "claims[0]"),
        ({"claims": [{"text": "x"}, {"source": "y"}]}, "claims[1].text"),
        ({"claims": [{"text": "x", "sauce": "y"}]}, "claims[0].sauce"),
        ({"relations": ["Babbage"]}, "relations"),
        ({"relations": {"Babbage": 1}}, "relations.Babbage"),
        ({"catchphrase": []}, "catchphrase"),
        ({"era": 1851}, "era"),
    ],
)
def test_a_wrong_profile_field_is_named(changes: Any, field: str) -> None:
    with pytest.raises(RplaError) as refused:
        read_profile(json.dumps(PROFILE | changes))
    assert f" {field}" in refused.value.message
