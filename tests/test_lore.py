from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rpla.core.character import Lore, LoreEntry
from rpla.core.chatlog import Turn
from rpla.core.macros import Macros
from rpla.core.models.base import estimate_tokens
from rpla.core.prompt import Section
from rpla.memory.lore import LoreRecaller
from rpla.memory.recall import Moment
from tests.stage import KEEPER, new_chat, open_log, play, scripted

MACROS = Macros(char="Morwenna", user="Sam")


def entry(*keys: str, content: str = "", **fields: Any) -> LoreEntry:
    name = fields.pop("name", keys[0] if keys else "")
    return LoreEntry(keys=keys, content=content or f"about {name}", name=name, **fields)


def book(*entries: LoreEntry, **fields: Any) -> LoreRecaller:
    return LoreRecaller(Lore(entries=entries, **fields), MACROS, estimate_tokens)


def turn(text: str, place: int, sections: Iterable[Section] = (), **meta: Any) -> Turn:
    packed = [
        [section.name, section.tokens, section.source, [[item.id, item.score, item.reason] for item in section.items]]
        for section in sections
    ]
    role = "character" if sections or meta or place % 2 else "user"
    return Turn(
        id=f"turn {place}", chat="c", parent=None, role=role, text=text, created=0.0, meta=meta | {"sections": packed}
    )


def branch(*texts: str) -> list[Turn]:
    """Turns of which the last is the user's."""
    return [turn(text, place + len(texts) % 2 + 1) for place, text in enumerate(texts)]


async def recalled(recaller: LoreRecaller, turns: list[Turn], chat: str = "c") -> list[Section]:
    return await recaller(Moment(turns=turns, chat=chat))


async def names(recaller: LoreRecaller, *texts: str) -> list[str]:
    """The names of what is recalled at the end of a conversation of these texts."""
    sections = await recalled(recaller, branch(*texts))
    return sections[0].source.removeprefix("lore: ").split(", ") if sections else []


async def talk(recaller: LoreRecaller, *said: str) -> tuple[list[list[str]], list[Turn]]:
    """What is recalled at each of the user's messages, each answered, and the branch."""
    turns: list[Turn] = []
    each: list[list[str]] = []
    for text in said:
        turns.append(turn(text, len(turns)))
        sections = await recalled(recaller, turns)
        each.append([name for section in sections for name in section.source.removeprefix("lore: ").split(", ")])
        turns.append(turn("hm", len(turns), sections))
    return each, turns


# --- words


async def test_keys_match_whole_words_in_any_case() -> None:
    recaller = book(entry("lamp"), entry("Skerry Point"), entry("O'Brien"))
    assert await names(recaller, "The LAMP at skerry point.") == ["lamp", "Skerry Point"]
    assert await names(recaller, "lamplight, Skerry, Point") == []
    assert await names(recaller, "Ask o'brien.") == ["O'Brien"]


async def test_a_key_that_need_not_be_a_whole_word_matches_inside_one() -> None:
    recaller = book(entry("lamp", whole_words=False), entry("t", whole_words=False), entry("re", whole_words=True))
    assert await names(recaller, "a lamplighter") == ["lamp", "t"]
    assert await names(recaller, "are we") == []


async def test_a_case_sensitive_key_is_held_to_its_case() -> None:
    recaller = book(entry("May", case_sensitive=True), entry("Ma", case_sensitive=True, whole_words=False))
    assert await names(recaller, "in May") == ["May", "Ma"]
    assert await names(recaller, "you may") == []


async def test_keys_without_spaces_between_words_match() -> None:
    recaller = book(entry("灯台"), entry("灯台守"), entry("光"), entry("C++"), entry("???"))
    assert await names(recaller, "あの灯台の話") == ["灯台"]
    assert await names(recaller, "灯台守と光") == ["灯台", "灯台守", "光"]
    assert await names(recaller, "is it C++ or not ???") == ["C++", "???"]


async def test_macros_stand_for_names_in_keys_and_in_content() -> None:
    recaller = book(entry("{{char}}"), entry("/{{user}}s?/i", name="pattern", content="{{char}} likes {{user}}."))
    (section,) = await recalled(recaller, branch("morwenna and the sams"))
    assert section.text == "about {{char}}\nMorwenna likes Sam.".replace("{{char}}", "Morwenna")


async def test_a_name_with_signs_in_it_stands_for_itself_in_a_pattern() -> None:
    recaller = LoreRecaller(Lore(entries=(entry("/{{user}}!/"),)), Macros(char="M", user="S.(am"), estimate_tokens)
    assert await names(recaller, "S.(am!") == ["/{{user}}!/"]
    assert await names(recaller, "Sx(am!") == []


async def test_disabled_and_standing_entries_are_not_recalled() -> None:
    assert await names(book(entry("lamp", enabled=False), entry("ledger", constant=True)), "lamp ledger") == []


@pytest.mark.parametrize(
    "fields", [{"probability": 100}, {"probability": 0, "use_probability": False}, {"priority": 3}, {"sticky": 2}]
)
def test_a_constant_entry_without_conditions_stands_with_what_never_changes(fields: Any) -> None:
    assert entry("ledger", constant=True, **fields).standing
    assert not entry("ledger", **fields).standing


@pytest.mark.parametrize(
    "fields",
    [
        *({"delay": 1}, {"cooldown": 1}, {"probability": 99}, {"group": "g"}, {"decorators": ("@@depth 1",)}),
        {"delay_until_recursion": 1},
    ],
)
def test_a_constant_entry_with_conditions_is_recalled_when_they_hold(fields: Any) -> None:
    assert not entry("ledger", constant=True, **fields).standing


async def test_entries_come_in_the_books_order() -> None:
    recaller = book(entry("b", order=5), entry("a", order=1), entry("c", order=5))
    assert await names(recaller, "c b a") == ["a", "b", "c"]


# --- secondary keys


@pytest.mark.parametrize(
    ("logic", "none", "one", "both"),
    [
        ("and_any", False, True, True),
        ("and_all", False, False, True),
        ("not_any", True, False, False),
        ("not_all", True, True, False),
    ],
)
async def test_secondary_keys_are_asked_in_four_ways(logic: Any, none: bool, one: bool, both: bool) -> None:
    recaller = book(entry("lamp", secondary_keys=("oil", "wick"), selective=True, logic=logic))
    assert bool(await names(recaller, "the lamp")) == none
    assert bool(await names(recaller, "the lamp, the oil")) == one
    assert bool(await names(recaller, "the lamp, the oil, the wick")) == both
    assert await names(recaller, "oil and wick") == []


async def test_secondary_keys_do_not_count_where_the_entry_is_not_selective_or_has_patterns() -> None:
    recaller = book(
        entry("lamp", secondary_keys=("oil",)), entry("la", secondary_keys=("oil",), selective=True, regex=True)
    )
    assert await names(recaller, "the lamp") == ["lamp", "la"]


# --- patterns


async def test_patterns_are_written_between_slashes_or_declared() -> None:
    recaller = book(entry(r"/lamps?\b/"), entry(r"\bled\w+", regex=True), entry("/OIL/i", regex=True), entry("a/b"))
    assert await names(recaller, "the lamps") == [r"/lamps?\b/"]
    assert await names(recaller, "Lamps, the LEDGER, oil") == [r"\bled\w+", "/OIL/i"]
    assert await names(recaller, "a/b") == ["a/b"]


async def test_flags_and_javascripts_escapes_mean_what_they_mean_there() -> None:
    recaller = book(entry(r"/\u706f\u{53f0}/u"), entry("/^oil$/m"), entry("/a.b/s"), entry("/x.y/"), entry("/é/gi"))
    assert await names(recaller, "灯台") == [r"/\u706f\u{53f0}/u"]
    assert await names(recaller, "water\noil\nair") == ["/^oil$/m"]
    assert await names(recaller, "a\nb x\ny") == ["/a.b/s"]
    assert await names(recaller, "É") == ["/é/gi"]


async def test_a_case_sensitive_pattern_is_held_to_its_case() -> None:
    recaller = book(entry("Ma[y]", regex=True, case_sensitive=True))
    assert await names(recaller, "May") == ["Ma[y]"]
    assert await names(recaller, "may") == []


async def test_a_pattern_that_cannot_be_run_disables_its_key_alone_and_is_named() -> None:
    recaller = book(entry(r"/(?<=a)b/", "lamp"), entry(r"(x)\1", regex=True), entry("C++", regex=True, name="c"))
    assert await names(recaller, "ab xx C++ lamp") == ["/(?<=a)b/"]
    assert [pattern in notice for pattern, notice in zip(("(?<=a)b", r"(x)\1", "C++"), recaller.notices, strict=True)]


# --- depth


async def test_only_the_newest_turns_are_searched() -> None:
    recaller = book(entry("lamp"), entry("ledger"), scan_depth=2)
    assert await names(recaller, "the lamp", "something", "the ledger") == ["ledger"]
    assert await names(book(entry("lamp"), scan_depth=0), "lamp") == []


async def test_an_entry_has_a_depth_of_its_own() -> None:
    near, far = entry("lamp", scan_depth=1), entry("ledger", scan_depth=40)
    recaller = book(near, far, entry("oil"), entry("wick", decorators=("@@scan_depth 3",)), scan_depth=2)
    talk = ["ledger", *["so"] * 20, "wick", "oil and lamp", "so"]
    assert await names(recaller, *talk) == ["ledger", "oil", "wick"]
    assert await names(recaller, *talk[:-1]) == ["lamp", "ledger", "oil", "wick"]


# --- budget


async def test_the_budget_keeps_what_fits_and_macros_are_expanded() -> None:
    recaller = book(
        entry("big", content="x" * 4000, order=1), entry("small", content="{{char}} likes tea."), token_budget=50
    )
    (section,) = await recalled(recaller, branch("big small"))
    assert section.text == "Morwenna likes tea."
    assert 0 < section.tokens <= 50


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"priority": 1}, {}),
        ({"order": 200}, {"order": 100}),
        ({"priority": 1, "order": 1}, {"order": 200}),
        ({"ignore_budget": True}, {"priority": 9}),
        ({}, {"decorators": ("@@ignore_on_max_context",), "priority": 9}),
    ],
)
async def test_when_the_budget_is_short_the_more_important_entry_stays(first: Any, second: Any) -> None:
    a, b = entry("a", content="one " * 10, **first), entry("b", content="two " * 10, **second)
    room = estimate_tokens(a.content) + 1
    assert set(await names(book(a, b, token_budget=2 * room), "a b")) == {"a", "b"}
    assert await names(book(a, b, token_budget=room), "a b") == ["a"]
    assert await names(book(b, a, token_budget=room), "a b") == ["a"]


async def test_a_book_of_a_thousand_entries_under_one_key_is_not_counted_whole() -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return 1000

    entries = tuple(entry("the", content=f"entry {n}") for n in range(1000))
    assert await recalled(LoreRecaller(Lore(entries=entries), MACROS, count), branch("the")) == []
    assert len(counted) == 256


async def test_nothing_spoken_of_recalls_nothing_and_empty_content_is_nothing() -> None:
    assert await recalled(book(entry("lamp")), branch("hello")) == []
    assert await recalled(book(LoreEntry(keys=("lamp",), content=" ")), branch("lamp")) == []
    assert await recalled(book(entry("lamp")), []) == []


async def test_each_entry_is_named_with_its_reason() -> None:
    (section,) = await recalled(book(entry("lamp", "lantern"), entry("/oil+/")), branch("a lantern, oil"))
    assert [item.reason for item in section.items] == ["key: lantern", "key: /oil+/"]
    assert len({item.id for item in section.items}) == 2


# --- entries that call up others


async def test_content_calls_up_other_entries_where_the_book_is_recursive() -> None:
    entries = (entry("lamp", content="full of oil"), entry("oil", content="from whales"), entry("whales"))
    assert await names(book(*entries), "lamp") == ["lamp"]
    recaller = book(*entries, recursive=True)
    assert await names(recaller, "lamp") == ["lamp", "oil", "whales"]
    (section,) = await recalled(recaller, branch("lamp"))
    assert [item.reason for item in section.items] == [
        "key: lamp",
        "key: oil, in other lore",
        "key: whales, in other lore",
    ]


async def test_entries_may_keep_out_of_recursion_or_wait_for_it() -> None:
    lamp = entry("lamp", content="oil and whales and ships")
    recaller = book(
        lamp,
        entry("oil", exclude_recursion=True),
        entry("whales", prevent_recursion=True, content="krill"),
        entry("krill"),
        entry("ships", delay_until_recursion=1),
        entry("late", delay_until_recursion=2),
        recursive=True,
    )
    assert await names(recaller, "lamp, late") == ["lamp", "whales", "ships", "late"]
    assert await names(recaller, "oil") == ["oil"]
    assert await names(book(entry("ships", delay_until_recursion=1)), "ships") == []


async def test_a_secondary_key_may_stand_in_other_lore() -> None:
    recaller = book(
        entry("lamp", content="oil"),
        entry("keeper", secondary_keys=("oil",), selective=True),
        recursive=True,
    )
    assert await names(recaller, "keeper") == []
    assert await names(recaller, "keeper, lamp") == ["lamp", "keeper"]


async def test_recursion_comes_to_an_end() -> None:
    around = book(entry("a", content="b"), entry("b", content="a"), recursive=True)
    assert await names(around, "a") == ["a", "b"]
    chain = [entry(f"k{n}", content=f"k{n + 1}") for n in range(100)]
    assert len(await names(book(*chain, recursive=True), "k0")) == 9


# --- time


async def test_a_sticky_entry_stays_for_its_turns_and_is_not_renewed_by_staying() -> None:
    recaller = book(entry("lamp", sticky=5), scan_depth=1)
    each, _ = await talk(recaller, "lamp", "so", "so", "so", "lamp", "lamp")
    assert each == [["lamp"], ["lamp"], ["lamp"], [], ["lamp"], ["lamp"]]


async def test_an_entry_rests_after_it_was_recalled_and_after_it_stayed() -> None:
    each, _ = await talk(book(entry("lamp", cooldown=5)), *["lamp"] * 5)
    assert [bool(names) for names in each] == [True, False, False, True, False]
    each, _ = await talk(book(entry("lamp", sticky=3, cooldown=4)), *["lamp"] * 6)
    assert [bool(names) for names in each] == [True, True, False, False, True, True]


async def test_rewinding_undoes_what_stays_and_what_rests() -> None:
    recaller = book(entry("lamp", sticky=9), entry("oil", cooldown=9), scan_depth=1)
    _, turns = await talk(recaller, "hello", "lamp oil")
    after = await recalled(recaller, [*turns, turn("oil", 4)])
    assert [item.reason for item in after[0].items] == ["sticky"]
    rewound = await recalled(recaller, [*turns[:2], turn("oil", 2)])
    assert [item.reason for item in rewound[0].items] == ["key: oil"]


async def test_a_chat_keeps_what_stays_on_its_branch(tmp_path: Path) -> None:
    lore = Lore(entries=(entry("ledger", sticky=9), entry("oil", cooldown=9)), scan_depth=1)
    log = open_log(tmp_path)
    chat = new_chat(log, scripted("Aye.", "So.", "Well.", "No.", "Yes."), character=replace(KEEPER, lore=lore))

    async def reasons(text: str) -> list[str]:
        await play(chat.stream(text))
        return [item.reason for section in chat.why() if section.name == "lore" for item in section.items]

    assert await reasons("the ledger, the oil") == ["key: ledger", "key: oil"]
    assert await reasons("the oil") == ["sticky"]
    await play(chat.regenerate())
    assert [section.source for section in chat.why() if section.name == "lore"] == ["lore: ledger"]
    chat.rewind(2)
    assert await reasons("the oil") == ["key: oil"]
    log.close()


async def test_a_reply_that_is_gone_on_with_has_the_lore_it_was_begun_with() -> None:
    recaller = book(entry("lamp", cooldown=9), entry("oil", probability=50), entry("wick", probability=50))
    _, turns = await talk(recaller, "lamp oil wick")
    first = await recalled(recaller, turns[:1])
    assert await recalled(recaller, turns) == first


async def test_a_delayed_entry_waits_for_the_chat_to_have_so_many_turns() -> None:
    each, _ = await talk(book(entry("lamp", delay=4), entry("oil", delay=3, constant=True)), *["lamp"] * 3)
    assert each == [[], ["oil"], ["lamp", "oil"]]


async def test_chance_is_drawn_by_chat_and_turn() -> None:
    recaller = book(
        *(entry("lamp", name=f"n{n}", probability=50) for n in range(60)),
        entry("lamp", name="never", probability=0),
        entry("lamp", name="unused", probability=0, use_probability=False),
        token_budget=10_000,
    )
    drawn = await names(recaller, "lamp")
    assert 10 < len(drawn) < 50
    assert "never" not in drawn
    assert "unused" in drawn
    assert await names(recaller, "lamp") == drawn
    assert await recalled(recaller, branch("lamp"), chat="another") != await recalled(recaller, branch("lamp"))


async def test_of_a_group_one_entry_is_recalled() -> None:
    weather = [entry("sky", name=name, group="weather, sky") for name in ("rain", "sun", "snow")]
    chosen = {(await names(book(*weather), "sky", *["so"] * n))[0] for n in range(4)}
    assert chosen <= {"rain", "sun", "snow"}
    assert len(await names(book(*weather, entry("sky", name="else", group="sky")), "sky")) == 1
    heavy = [entry("sky", name="fog", group="weather", group_weight=0), weather[0]]
    assert await names(book(*heavy), "sky") == ["rain"]
    first = entry("sky", name="first", group="weather", group_override=True, order=1)
    last = entry("sky", name="last", group="weather", group_override=True, order=2)
    assert await names(book(*weather, last, first), "sky") == ["last"]


async def test_what_stays_wins_in_its_group() -> None:
    recaller = book(entry("rain", group="w", sticky=9), entry("sun", group="w", group_override=True), scan_depth=1)
    each, _ = await talk(recaller, "rain", "sun")
    assert each == [["rain"], ["rain"]]


# --- decorators


async def test_decorators_say_when_an_entry_may_come() -> None:
    recaller = book(
        entry("lamp", name="after", decorators=("@@activate_only_after 2",)),
        entry("lamp", name="every", decorators=("@@activate_only_every 2",)),
        entry("lamp", name="once", decorators=("@@dont_activate_after_match",)),
    )
    each, _ = await talk(recaller, *["lamp"] * 4)
    assert each == [["every", "once"], [], ["after", "every"], ["after"]]


async def test_decorators_keep_an_entry_or_hold_it_back() -> None:
    recaller = book(
        entry("lamp", name="kept", decorators=("@@keep_activate_after_match",)),
        entry("nothing", name="always", decorators=("@@activate", "@@dont_activate")),
        entry("lamp", name="never", decorators=("@@dont_activate",)),
        scan_depth=1,
    )
    each, _ = await talk(recaller, "so", "lamp", "so", "so")
    assert each == [["always"], ["kept", "always"], ["kept", "always"], ["kept", "always"]]


async def test_decorators_add_and_exclude_keys() -> None:
    recaller = book(
        entry("lamp", decorators=("@@additional_keys oil, wick", "@@exclude_keys dark,night")),
        entry("always", constant=True, decorators=("@@exclude_keys night",)),
        entry("whale", regex=True, decorators=("@@additional_keys oi[l]", "@@exclude_keys whale")),
    )
    assert await names(recaller, "lamp") == ["always"]
    assert await names(recaller, "lamp wick") == ["lamp", "always"]
    assert await names(recaller, "lamp oil") == ["lamp", "always", "whale"]
    assert await names(recaller, "lamp wick night") == []


async def test_an_entry_may_belong_to_a_greeting() -> None:
    recaller = book(entry("lamp", decorators=("@@is_greeting 1",)))
    for number, expected in ((0, 0), (1, 1), (2, 0)):
        turns = [turn("Hello.", 0, greeting=number), turn("lamp", 2)]
        assert len(await recalled(recaller, turns)) == expected
    assert await names(recaller, "lamp") == []


@pytest.mark.parametrize(
    ("decorators", "expected"),
    [
        (("@@depth 4", "@@role system", "@@position before_desc", "@@unheard_of"), True),
        (("@@depth 4", "@@@dont_activate"), False),
        (("@@unheard_of", "@@@too", "@@@dont_activate"), False),
        (("@@activate_only_after x", "@@@dont_activate"), False),
        (("@@activate_only_every 1", "@@@dont_activate"), True),
        (("@@activate_only_every 0", "@@activate_only_every"), True),
        (("@@activate_only_after 0", "@@activate_only_after 99"), True),
        (("@@activate_only_after 9999999999999",), True),
    ],
)
async def test_a_fallback_takes_the_place_of_what_is_not_acted_on(decorators: Any, expected: bool) -> None:
    assert bool(await names(book(entry("lamp", decorators=decorators)), "lamp")) == expected
