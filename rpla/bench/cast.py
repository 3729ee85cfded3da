"""What the benchmarks play with: a card, lore and user turns of exact sizes."""

from collections.abc import Callable
from dataclasses import replace

from rpla.core.alignment import PRESETS
from rpla.core.character import Character, Lore, LoreEntry
from rpla.core.ids import id_of

NO_MEMORY = replace(PRESETS["icl"], memory=False, reflection=False)
"""The card alone: what memory costs is measured apart."""

_SENTENCES = (
    "{{char}} keeps the lighthouse at Skerry Point and has not slept a whole night in eleven years.",
    "Visitors are given strong tea, a chair by the stove, and more weather than they asked for.",
    "There is a ledger of every ship that passed since the lamp was lit, and {{char}} knows it by heart.",
    "A brother went to sea on the Corrigan and writes twice a year from ports with difficult names.",
    "Storms are spoken of as neighbours are: this one is a liar, that one always pays its debts.",
    "On Sundays the lens is polished with a cloth cut from an old wedding dress, nobody asks whose.",
)
_USER_SENTENCES = (
    "I walked up from the harbour before the rain and thought of what you told me last time.",
    "Was there a light on the water tonight, and did the ledger get another line?",
    "People below say the winter will be long, though they say so every year.",
    "Tell me again about the ship that came in without a crew, and leave nothing out.",
)
_WHO = (
    "my sister Ines",
    "the harbour master",
    "old Mr Pascoe",
    "my cousin Joan",
    "the new doctor",
    "our teacher",
    "the baker's son",
    "my friend Tomas",
    "the postmistress",
    "my brother Wilf",
    "the curate",
    "Aunt Hester",
    "the ferryman",
    "my neighbour Ruth",
    "the piper",
    "Captain Vane",
    "the twins",
    "my landlady",
    "the watchmaker",
    "little Annie",
)
_DID = (
    "bought a red boat",
    "lost a silver ring",
    "was bitten by a dog",
    "learned to swim",
    "fell out with the miller",
    "planted an apple tree",
    "broke an arm",
    "wrote a long letter",
    "sang at a wedding",
    "sold two horses",
    "found an old map",
    "got engaged",
    "painted the chapel door",
    "started a school",
    "caught a fever",
    "won a race",
    "burned the bread",
    "saw a whale",
    "lent me forty pounds",
    "gave up smoking",
)
_WHERE = (
    "in Lisbon",
    "by the quay",
    "in Penzance",
    "up at the farm",
    "near the old mine",
    "on the island",
    "in Bristol",
    "behind the church",
    "at the fair",
    "in the valley",
    "on the train to Leeds",
    "in the storm",
    "at midsummer",
    "before Christmas",
    "on a Sunday",
    "last March",
)


def told(number: int) -> str:
    """A fact that a user may tell; there are 6,400."""
    who, did = _WHO[number % len(_WHO)], _DID[number // len(_WHO) % len(_DID)]
    text = f"{who} {did} {_WHERE[number // len(_WHO) // len(_DID) % len(_WHERE)]}."
    return text[0].upper() + text[1:]


def text_of(sentences: tuple[str, ...], size: int, measure: Callable[[str], int], start: int = 0) -> str:
    """Sentences, and of the last one words, up to `size` by the measure."""
    words = " ".join(sentences[(start + n) % len(sentences)] for n in range(size // 4 + 2)).split()
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if measure(" ".join(words[:middle])) <= size else (low, middle - 1)
    return " ".join(words[:low])


def keeper(card_tokens: int, count_tokens: Callable[[str], int], *, lore_entries: int, lore_tokens: int) -> Character:
    """A character with a card of so many tokens, and a book of entries that `user_text` calls up one after another."""
    entries = tuple(
        LoreEntry(
            keys=(f"berth{number}", f"tide{number}", f"the {number}th watch"),
            content=text_of(_SENTENCES, lore_tokens, count_tokens, start=number).replace(
                "{{char}}", f"keeper {number}"
            ),
            name=f"berth {number}",
        )
        for number in range(lore_entries)
    )
    return Character(
        id=id_of("bench", "keeper"),
        slug="keeper",
        name="Morwenna",
        description=text_of(_SENTENCES, card_tokens, count_tokens),
        lore=Lore(entries=entries, scan_depth=1, token_budget=2 * lore_tokens + 16),
    )


def user_text(turn: int, size: int, measure: Callable[[str], int], *, lore_entries: int) -> str:
    """What the user says in a turn; it names one lore entry, another one each turn."""
    return f"{text_of(_USER_SENTENCES, size - measure(' berth000.'), measure, start=turn)} berth{turn % lore_entries}."
