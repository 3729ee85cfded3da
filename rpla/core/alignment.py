"""How a model is made to be a character: as data, so that every way runs the same code."""

from dataclasses import dataclass
from typing import Literal

from rpla.core.errors import RplaError
from rpla.core.nearest import nearest_hint


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """Which sections of the prompt are on, and which weights are used.

    The survey calls these parameter-frozen (prompt) and parameter-tuned (adapter) alignment (arXiv 2407.11484).
    """

    name: str
    card: Literal["none", "line", "full"] = "full"
    """Nothing, Ditto's single line, or the whole card."""
    demonstrations: Literal["none", "fixed", "retrieved"] = "none"
    """The card's example dialogue as real turns: its first five exchanges, or the five nearest to the first message."""
    lore: bool = True
    knowledge: Literal["none", "retrieved", "given"] = "none"
    """Passages: none, the nearest to what is asked, or those that the caller gives with each turn."""
    memory: bool = True
    """Whether the character recalls earlier conversations, and remembers this one."""
    reflection: bool = True
    """Whether it draws conclusions from what it remembers."""
    check: bool = True
    """Whether a reply that leaves the role is asked for again."""
    adapter: str = ""
    """A LoRA on the model; empty for the model as it is."""


PRESETS: dict[str, Alignment] = {
    preset.name: preset
    for preset in (
        Alignment(name="none", card="none", lore=False, memory=False, reflection=False, check=False),
        Alignment(name="bare", card="line", lore=False, memory=False, reflection=False, check=False),
        Alignment(name="icl"),
        Alignment(name="icl-few", demonstrations="fixed"),
        Alignment(name="icl-few-bm25", demonstrations="retrieved"),
        Alignment(
            name="rag", card="line", lore=False, knowledge="retrieved", memory=False, reflection=False, check=False
        ),
        Alignment(name="card+rag", knowledge="retrieved"),
        Alignment(
            name="oracle", card="line", lore=False, knowledge="given", memory=False, reflection=False, check=False
        ),
        Alignment(name="full", demonstrations="fixed", knowledge="retrieved"),
    )
}
"""`none` is the floor; `bare` is Ditto's prompt; the `icl` ones are RoleGPT's zero-shot, few-shot dialogue engineering
and retrieval augmentation (RoleLLM section 3.2). `rag` adds what can be looked up to the line, `card+rag` to the card,
and `oracle` gives the gold evidence: the ceiling of retrieval. `full` is all of it, for talking."""


def find_alignment(name: str) -> Alignment:
    """The preset of that name. Raises RplaError that offers the nearest names."""
    if name not in PRESETS:
        raise RplaError(f"Unknown alignment {name!r}.", nearest_hint(name, PRESETS))
    return PRESETS[name]
