"""A small cast and a chat on a scripted model, for tests of the engine."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from rpla.chat import Chat
from rpla.core.alignment import PRESETS, Alignment
from rpla.core.character import Character, Lore, LoreEntry, Persona
from rpla.core.chatlog import ChatLog
from rpla.core.events import TurnCommitted, TurnEvent
from rpla.core.ids import id_of
from rpla.core.models.scripted import ScriptedModel
from rpla.core.settings import Settings
from rpla.memory.gate import Verdict

KEEPER = Character(
    id=id_of("test", "keeper"),
    slug="keeper",
    name="Morwenna Hale",
    nickname="Morwenna",
    description="{{char}} keeps the lighthouse at Skerry Point. She talks to storms.",
    personality="dry, exact, kind in secret",
    scenario="{{user}} comes up the stairs out of the rain.",
    greetings=("Mind the third stair, {{user}}.", "You are wet. Sit.", "Another one."),
    example_dialogue="<START>\n{{user}}: Do you sleep?\n{{char}}: In instalments.\n",
    creator_notes="NOT FOR MODELS",
    lore=Lore(
        entries=(
            LoreEntry(keys=("ledger",), content="The ledger has every ship since 1811.", name="The ledger"),
            LoreEntry(keys=("Corrigan",), content="{{char}}'s brother sails on the Corrigan.", name="The Corrigan"),
            LoreEntry(keys=("lamp",), content="The lamp is never out.", constant=True),
        )
    ),
)


def open_log(folder: Path) -> ChatLog:
    return ChatLog(folder / "chats.db")


def new_chat(
    log: ChatLog,
    model: Any,
    *,
    character: Character = KEEPER,
    user: str = "sam",
    alignment: str | Alignment = "icl",
    greeting: bool = False,
    settings: dict[str, Any] | None = None,
) -> Chat:
    info = log.create_chat(user=id_of("user", user), character=character.id)
    chat = Chat(
        log,
        info,
        character=character,
        persona=Persona(name="Sam", description="a surveyor"),
        model=model,
        alignment=PRESETS[alignment] if isinstance(alignment, str) else alignment,
        settings=Settings.model_validate(settings or {}),
    )
    if greeting:
        chat.greet()
    return chat


async def play(turn: AsyncGenerator[TurnEvent, None]) -> list[TurnEvent]:
    return [event async for event in turn]


async def said(turn: AsyncGenerator[TurnEvent, None]) -> str:
    return next(event.turn.text for event in await play(turn) if isinstance(event, TurnCommitted))


def scripted(*replies: str) -> ScriptedModel:
    return ScriptedModel(*replies)


def keep_everything(monkeypatch: Any) -> None:
    """Have the gate keep whatever is said: for tests of what becomes of memories, not of which are made."""
    kept = Verdict(label="fact", fact=1.0, keep=True)
    monkeypatch.setattr("rpla.memory.remember._gate", lambda embedder: lambda said: kept)
