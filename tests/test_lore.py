from rpla.core.character import Lore, LoreEntry
from rpla.core.macros import Macros
from rpla.core.models.base import estimate_tokens
from rpla.memory.lore import LoreRecaller
from rpla.memory.recall import Moment

MACROS = Macros(char="Morwenna", user="Sam")


def entry(*keys: str, content: str = "", **fields) -> LoreEntry:
    return LoreEntry(keys=keys, content=content or f"about {keys[0]}", name=keys[0], **fields)


def book(*entries: LoreEntry, **fields) -> LoreRecaller:
    return LoreRecaller(Lore(entries=entries, **fields), MACROS, estimate_tokens)


def names(recaller: LoreRecaller, text: str) -> list[str]:
    return [found.name for found in recaller.matching(text)]


def test_keys_match_whole_words_in_any_case() -> None:
    recaller = book(entry("lamp"), entry("Skerry Point"), entry("O'Brien"))
    assert names(recaller, "The LAMP at skerry point.") == ["lamp", "Skerry Point"]
    assert names(recaller, "lamplight, Skerry, Point") == []
    assert names(recaller, "Ask o'brien.") == ["O'Brien"]


def test_a_case_sensitive_key_is_held_to_its_case() -> None:
    recaller = book(entry("May", case_sensitive=True))
    assert names(recaller, "in May") == ["May"]
    assert names(recaller, "you may") == []


def test_keys_without_spaces_between_words_match() -> None:
    recaller = book(entry("灯台"), entry("C++"), entry("???"))
    assert names(recaller, "あの灯台の話") == ["灯台"]
    assert names(recaller, "is it C++ or not ???") == ["C++", "???"]


def test_disabled_and_constant_entries_are_not_recalled() -> None:
    assert names(book(entry("lamp", enabled=False), entry("ledger", constant=True)), "lamp ledger") == []


def test_entries_come_in_the_books_order() -> None:
    recaller = book(entry("b", order=5), entry("a", order=1), entry("c", order=5))
    assert names(recaller, "c b a") == ["a", "b", "c"]


async def test_only_the_newest_turns_are_searched() -> None:
    recaller = book(entry("lamp"), entry("ledger"), scan_depth=2)
    sections = await recaller(Moment(texts=["the lamp", "something", "the ledger"]))
    assert [section.source for section in sections] == ["lore: ledger"]


async def test_the_budget_keeps_what_fits_and_macros_are_expanded() -> None:
    recaller = book(
        entry("big", content="x" * 4000, order=1), entry("small", content="{{char}} likes tea."), token_budget=50
    )
    (section,) = await recaller(Moment(texts=["big small"]))
    assert section.text == "Morwenna likes tea."
    assert 0 < section.tokens <= 50


async def test_nothing_spoken_of_recalls_nothing() -> None:
    assert await book(entry("lamp"))(Moment(texts=["hello"])) == []
