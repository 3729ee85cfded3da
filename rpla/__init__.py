"""Role-playing language agents: characters that talk, remember and stay themselves.

The names below are the public API. They load on first use, so that ``import rpla`` and ``rpla --help`` stay quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rpla.agent import Agent, Reply
    from rpla.chat import Chat
    from rpla.core.alignment import PRESETS, Alignment
    from rpla.core.character import Character, Lore, LoreEntry, Persona, Profile
    from rpla.core.errors import MissingExtra, RplaError
    from rpla.core.events import Notice, TextDelta, TurnCommitted, TurnEvent, TurnReplaced, TurnStarted
    from rpla.core.library import CharacterLibrary
    from rpla.core.models.open import open_model
    from rpla.core.models.scripted import ScriptedModel
    from rpla.core.prompt import Item, Section
    from rpla.core.settings import Settings, load_settings
    from rpla.memory.knowledge import Knowledge
    from rpla.memory.memories import Memory, Recalled
    from rpla.memory.passages import Passage

_HOMES = {
    "Agent": "rpla.agent",
    "Alignment": "rpla.core.alignment",
    "Character": "rpla.core.character",
    "CharacterLibrary": "rpla.core.library",
    "Chat": "rpla.chat",
    "Item": "rpla.core.prompt",
    "Knowledge": "rpla.memory.knowledge",
    "Lore": "rpla.core.character",
    "LoreEntry": "rpla.core.character",
    "Memory": "rpla.memory.memories",
    "MissingExtra": "rpla.core.errors",
    "Notice": "rpla.core.events",
    "PRESETS": "rpla.core.alignment",
    "Passage": "rpla.memory.passages",
    "Persona": "rpla.core.character",
    "Profile": "rpla.core.character",
    "Recalled": "rpla.memory.memories",
    "Reply": "rpla.agent",
    "RplaError": "rpla.core.errors",
    "ScriptedModel": "rpla.core.models.scripted",
    "Section": "rpla.core.prompt",
    "Settings": "rpla.core.settings",
    "TextDelta": "rpla.core.events",
    "TurnCommitted": "rpla.core.events",
    "TurnEvent": "rpla.core.events",
    "TurnReplaced": "rpla.core.events",
    "TurnStarted": "rpla.core.events",
    "load_settings": "rpla.core.settings",
    "open_model": "rpla.core.models.open",
}

__all__ = [
    "PRESETS",
    "Agent",
    "Alignment",
    "Character",
    "CharacterLibrary",
    "Chat",
    "Item",
    "Knowledge",
    "Lore",
    "LoreEntry",
    "Memory",
    "MissingExtra",
    "Notice",
    "Passage",
    "Persona",
    "Profile",
    "Recalled",
    "Reply",
    "RplaError",
    "ScriptedModel",
    "Section",
    "Settings",
    "TextDelta",
    "TurnCommitted",
    "TurnEvent",
    "TurnReplaced",
    "TurnStarted",
    "load_settings",
    "open_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rpla' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
