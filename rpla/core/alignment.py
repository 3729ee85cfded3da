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
    check: bool = True
    """Whether a reply that leaves the role is asked for again."""
    adapter: str = ""
    """A LoRA on the model; empty for the model as it is."""


PRESETS: dict[str, Alignment] = {
    preset.name: preset
    for preset in (
        Alignment(name="none", card="none", lore=False, check=False),
        Alignment(name="bare", card="line", lore=False, check=False),
        Alignment(name="icl"),
        Alignment(name="icl-few", demonstrations="fixed"),
        Alignment(name="icl-few-bm25", demonstrations="retrieved"),
    )
}
"""`none` is the floor; `bare` is Ditto's prompt; the `icl` ones are RoleGPT's zero-shot, few-shot dialogue engineering
and retrieval augmentation (RoleLLM section 3.2)."""


def find_alignment(name: str) -> Alignment:
    """The preset of that name. Raises RplaError that offers the nearest names."""
    if name not in PRESETS:
        raise RplaError(f"Unknown alignment {name!r}.", nearest_hint(name, PRESETS))
    return PRESETS[name]
