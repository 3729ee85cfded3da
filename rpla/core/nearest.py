"""What the user may have meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest_hint(word: str, known: Iterable[str]) -> str:
    """A sentence that offers the known names nearest to a mistyped one, or lists them all where none is near."""
    names = sorted(known)
    by_lower = {name.lower(): name for name in names}
    near = [by_lower[match] for match in get_close_matches(word.lower(), by_lower, n=3, cutoff=0.5)]
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"Known: {', '.join(names)}." if names else "There are none yet."
