"""What a character remembers: episodes it lived through, and the insights it drew from them."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["episode", "insight"]
Provenance = Literal["told", "said", "hearsay", "noted", "inferred"]
KINDS: tuple[Kind, ...] = ("episode", "insight")
PROVENANCES: tuple[Provenance, ...] = ("told", "said", "hearsay", "noted", "inferred")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """One thing a character remembers of one user."""

    id: str
    user: str
    character: str
    """Whose memory it is."""
    kind: Kind = "episode"
    text: str
    """In the words in which it was said, or concluded."""
    context: str = ""
    """What was said just before: searched, never shown."""
    provenance: Provenance = "told"
    """``told`` by the user, ``said`` by the character, ``hearsay`` that the user passed on, ``noted`` by hand, or
    ``inferred`` by reflection."""
    chat: str | None = None
    turn: str | None = None
    """The turn it comes from: on branches without that turn it is not recalled."""
    created: float
    """When it was said, in seconds since the epoch."""
    renewed: float
    """When it was last said again; `created` where it was not."""
    importance: float = 0.5
    """0 to 1."""
    present: tuple[str, ...] = ()
    """Ids of those who were there; only they remember it. Empty: the user and the character."""
    story_time: float | None = None
    """When in the story it happened, where the story has a clock."""
    pinned: bool = False
    """Always recalled, and never merged or superseded."""
    mentions: int = 1
    """How often it was said."""
    superseded_by: str | None = None
    """The memory that took its place."""
    evidence: tuple[str, ...] = ()
    """Of an insight: ids of the episodes it stands on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
    """A memory that came to mind, and why."""

    memory: Memory
    score: float
    """What memories are ordered by: the weighted sum of the three below."""
    relevance: float
    recency: float
    importance: float

    @property
    def reason(self) -> str:
        """Why it came to mind, in words."""
        if self.memory.pinned:
            return "pinned"
        return f"relevance {self.relevance:.2f}, recency {self.recency:.2f}, importance {self.importance:.2f}"
