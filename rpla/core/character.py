"""Who is played: the character, the user's persona, and the profile behind a character."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rpla.core.errors import RplaError

KeyLogic = Literal["and_any", "not_all", "not_any", "and_all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoreEntry:
    """A note that enters the prompt when one of its keys is spoken of.

    Turns are counted as messages are: a question and its answer are two.
    """

    keys: tuple[str, ...]
    """Words, or a pattern in the form ``/pattern/flags``."""
    content: str
    name: str = ""
    enabled: bool = True
    constant: bool = False
    """Needs no key."""
    order: int = 100
    """Among entries that are recalled, lower comes first."""
    case_sensitive: bool = False
    regex: bool = False
    """Every key is a pattern."""
    whole_words: bool | None = None
    """Whether keys match whole words only; None is yes, where words are spaced."""
    secondary_keys: tuple[str, ...] = ()
    selective: bool = False
    """Whether the secondary keys count."""
    logic: KeyLogic = "and_any"
    """What is asked of the secondary keys once a key has matched."""
    priority: int = 0
    """When the budget is short, higher stays."""
    ignore_budget: bool = False
    """Before any priority. The budget itself is kept all the same."""
    scan_depth: int | None = None
    """How many of the newest turns are searched for its keys; None is the book's number."""
    probability: int = 100
    """In percent."""
    use_probability: bool = True
    sticky: int = 0
    """For how many turns it stays once it was recalled, that reply among them."""
    cooldown: int = 0
    """For how many turns it then rests."""
    delay: int = 0
    """Not before the chat has so many turns."""
    group: str = ""
    """Names of groups, between commas: of each, one entry is recalled at a time."""
    group_override: bool = False
    """In its group, the highest order wins, and no lot is drawn."""
    group_weight: int = 100
    exclude_recursion: bool = False
    """Other entries' content does not call it up."""
    prevent_recursion: bool = False
    """Its content does not call up others."""
    delay_until_recursion: int = 0
    """Only other entries' content calls it up; of several levels the lower goes first."""
    decorators: tuple[str, ...] = ()
    """V3's lines at the head of the content, as written: ``@@depth 4``."""

    @property
    def standing(self) -> bool:
        """Whether it is in every prompt of every chat, and so has its place with what never changes."""
        chance = self.use_probability and self.probability < 100
        timed = self.delay or self.cooldown or self.delay_until_recursion
        return self.enabled and self.constant and not (chance or timed or self.group or self.decorators)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lore:
    """A character's book of lore entries."""

    entries: tuple[LoreEntry, ...] = ()
    scan_depth: int = 4
    """How many of the newest turns are searched for keys."""
    token_budget: int = 512
    """Most tokens of lore in one prompt."""
    recursive: bool = False
    """Whether the content of recalled entries is searched for keys too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One statement about a character, and the work that says so."""

    text: str
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What is known of a character beyond the card: what Ditto collects (arXiv 2401.12474 section 3.1), and more."""

    label: str
    description: str
    """One line, such as "English mathematician (1815-1852)": the whole of Ditto's training prompt beside the name."""
    aliases: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    catchphrases: tuple[str, ...] = ()
    relations: Mapping[str, str] = field(default_factory=dict)
    """Name of another character to what they are to this one."""
    cannot_know: tuple[str, ...] = ()
    """What lies outside this character's time and world."""
    era: str = ""
    calling: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Character:
    """Someone a model can be. Reading and writing card files is `rpla.core.card`'s work."""

    id: str
    """Opaque and fixed-length: chats and memories name this, so a character can be renamed."""
    slug: str
    """The short name typed on a command line, such as ``ada-lovelace``."""
    name: str
    description: str = ""
    personality: str = ""
    scenario: str = ""
    greetings: tuple[str, ...] = ()
    """The first message and its alternates."""
    example_dialogue: str = ""
    """Card text with ``<START>`` between exchanges and ``{{user}}:``/``{{char}}:`` before lines."""
    instructions: str = ""
    """The card's own system prompt; ``{{original}}`` in it stands for the framework's contract."""
    closing_instructions: str = ""
    """Instructions the card wants after the history."""
    creator: str = ""
    creator_notes: str = ""
    """For people choosing a character. Never shown to a model."""
    tags: tuple[str, ...] = ()
    version: str = ""
    nickname: str = ""
    """What ``{{char}}`` stands for where it is not the name (V3)."""
    lore: Lore = Lore()
    profile: Profile | None = None
    bundled: bool = False
    """Whether it came with rpla: such a one is not edited or removed."""
    card: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The card file's JSON as it was read, unknown fields included, so that writing it again loses nothing."""

    @property
    def spoken_name(self) -> str:
        """The name used in conversation."""
        return self.nickname or self.name

    @property
    def line(self) -> str:
        """One line that says who this is: the profile's, else the card's first sentence, at most 160 characters."""
        if self.profile is not None:
            return self.profile.description
        first = self.description.strip().replace("\n", " ")
        for end in (". ", "! ", "? "):
            if 0 < (at := first.find(end)) < 160:
                return first[: at + 1]
        return first if len(first) <= 160 else first[:159].rsplit(" ", 1)[0] + "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """Who the user is, to a character. Raises RplaError where the name is empty."""

    name: str = "User"
    description: str = ""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise RplaError("A persona needs a name.", "Say what characters are to call you.")
