"""A card's example dialogue as exchanges, and which of them to show (RoleLLM section 3.2)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

SHOWN = 5
"""How many exchanges are shown, as many as RoleGPT retrieves: what differs between the ways is which, not how many."""
_LINE = re.compile(r"^\s*(?:\{\{(user|char)\}\}|<(USER|BOT)>)\s*:\s*", re.IGNORECASE)
_UNPROMPTED = "…"


@dataclass(frozen=True, slots=True)
class Exchange:
    """What the user says and how the character answers, with macros still in place."""

    user: str
    character: str


def read_exchanges(example_dialogue: str) -> tuple[Exchange, ...]:
    """The exchanges of a card's ``<START>``-separated dialogue, in their order."""
    exchanges: list[Exchange] = []
    for block in re.split(r"<START>", example_dialogue, flags=re.IGNORECASE):
        asked = ""
        for speaker, text in _speeches(block):
            if speaker == "user":
                asked = f"{asked}\n{text}".strip()
            else:
                exchanges.append(Exchange(asked or _UNPROMPTED, text))
                asked = ""
    return tuple(exchanges)


def _speeches(block: str) -> list[tuple[str, str]]:
    """``(user or char, text)`` for each labelled line with the lines that go on from it; empty ones are left out."""
    speeches: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if match := _LINE.match(line):
            by_user = (match[1] or match[2]).lower() == "user"
            speeches.append(("user" if by_user else "char", [line[match.end() :]]))
        elif speeches:
            speeches[-1][1].append(line)
    joined = [(speaker, "\n".join(lines).strip()) for speaker, lines in speeches]
    return [(speaker, text) for speaker, text in joined if text]


def nearest_exchanges(exchanges: Sequence[Exchange], text: str, k: int = SHOWN) -> tuple[Exchange, ...]:
    """The `k` exchanges nearest to a text by BM25, the nearest last, where a model heeds it most."""
    if len(exchanges) <= k:
        return tuple(exchanges)
    import bm25s

    corpus = bm25s.tokenize(
        [f"{exchange.user} {exchange.character}" for exchange in exchanges], stopwords="en", show_progress=False
    )
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    query = bm25s.tokenize([text], stopwords="en", show_progress=False, return_ids=False)
    scores = index.get_scores(query[0]) if query[0] else [0.0] * len(exchanges)
    # Equal scores keep the card's order.
    best = sorted(range(len(exchanges)), key=lambda n: (-scores[n], n))[:k]
    return tuple(exchanges[n] for n in reversed(best))
