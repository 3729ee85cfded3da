"""What a turn costs where the character has much to remember: recall before the reply, remembering after it."""

import asyncio
import tempfile
import time
from pathlib import Path

from rpla.agent import Agent
from rpla.bench.at_hand import embedded
from rpla.bench.cast import keeper, told, user_text
from rpla.bench.commits import BareCommits
from rpla.bench.result import Result, percentile
from rpla.core.errors import RplaError
from rpla.core.events import TurnCommitted
from rpla.core.home import find_home
from rpla.core.ids import new_id
from rpla.core.models.base import RplaChatModel, Usage, estimate_tokens
from rpla.core.models.llamacpp import LlamaCppModel
from rpla.core.models.open import open_model
from rpla.core.models.scripted import ScriptedModel
from rpla.core.settings import MemorySettings, SamplingSettings, Settings
from rpla.memory.memories import Memory

_LORE = 1000
_LORE_BESIDE_A_MODEL = 40
_CHARACTERS = 250
_DAY_S = 86_400.0


def measure_turn(embedder: str, *, memories: int, turns: int) -> list[Result]:
    """Time of each turn above two bare commits of the same text, with so many memories and a model that answers at
    once. What is remembered after a turn is waited for before the next: that is outside of the time, as for a reader.
    """
    with tempfile.TemporaryDirectory(prefix="rpla-bench-") as folder:
        return asyncio.run(_measure(Path(folder), embedder, memories, turns))


def measure_cached_share(model_name: str, embedder: str, *, memories: int, turns: int) -> list[Result]:
    """Share of the prompt's tokens that a llamacpp: model has read before, in a chat of so many turns."""
    model = open_model(model_name, Settings(), find_home())
    if not isinstance(model, LlamaCppModel):
        raise RplaError(
            f"{model_name} is not a llamacpp: model.", "Give one: it is llama.cpp's cache that is measured."
        )
    with tempfile.TemporaryDirectory(prefix="rpla-bench-") as folder:
        used = asyncio.run(_chat(Path(folder), model, embedder, memories, turns))
    share = sum(usage.cached_tokens for usage in used) / sum(usage.prompt_tokens for usage in used)
    return [Result("cached_share", share, "≥ 0.90")]


async def _measure(folder: Path, embedder: str, memories: int, turns: int) -> list[Result]:
    reply = user_text(1, _CHARACTERS, len, lore_entries=_LORE)
    agent = Agent(
        keeper(700, estimate_tokens, lore_entries=_LORE, lore_tokens=60),
        model=ScriptedModel(reply, cycle=True),
        alignment="icl",
        home=folder / "home",
        settings=Settings(memory=MemorySettings(embedder=embedder)),
    )
    _fill(agent, memories)
    bare = BareCommits(folder / "bare.db")
    chat = agent.new_chat(greeting=None)
    above: list[float] = []
    recalled = 0
    for number in range(turns + 1):
        text = _says(memories + number)
        begun = time.perf_counter()
        answer = await agent.asay(text)
        turn_ms = (time.perf_counter() - begun) * 1000
        above.append(turn_ms - bare.write_ms((text, answer.text)))
        recalled += any(section.name == "memories" for section in answer.sections)
        await chat.settled()
    bare.close()
    agent.close()
    if not recalled:
        raise RplaError("Nothing was recalled in any turn, so nothing was measured.", "Give another embedder.")
    return [
        Result("turn_p50_ms", percentile(above[1:], 50), "≤ 30"),  # the first turn lays out the chat
        Result("turn_p95_ms", percentile(above[1:], 95), "≤ 60"),
    ]


async def _chat(folder: Path, model: RplaChatModel, embedder: str, memories: int, turns: int) -> list[Usage]:
    await model.load()
    agent = Agent(
        keeper(700, model.count_tokens, lore_entries=_LORE_BESIDE_A_MODEL, lore_tokens=150),
        model=model,
        alignment="icl",
        home=folder,
        settings=Settings(sampling=SamplingSettings(max_tokens=120, seed=7), memory=MemorySettings(embedder=embedder)),
    )
    _fill(agent, memories)
    chat = agent.new_chat(greeting=None)
    used: list[Usage] = []
    for number in range(turns):
        text = (
            f"{told(memories + number)} {user_text(number, 40, model.count_tokens, lore_entries=_LORE_BESIDE_A_MODEL)}"
        )
        async for event in chat.stream(text):
            if isinstance(event, TurnCommitted) and event.usage:
                used.append(event.usage)
        await chat.settled()  # the user reads and types meanwhile
    agent.close()
    return used


def _says(number: int) -> str:
    """What the user says: something to remember, something that calls up a memory, and a name of the lore's."""
    fact = told(number)
    return f"{fact} {user_text(number, _CHARACTERS - len(fact) - 1, len, lore_entries=_LORE)}"


def _fill(agent: Agent, count: int) -> None:
    """Have the character remember `count` things that were told on as many days."""
    memory = agent.mind.memory
    assert memory is not None
    assert memory.embedder is not None
    now = time.time()
    texts = [told(number) for number in range(count)]
    memory.add(
        [
            Memory(
                id=new_id(),
                user=memory.user,
                character=memory.character,
                text=text,
                created=(moment := now - (count - number) * _DAY_S),
                renewed=moment,
            )
            for number, text in enumerate(texts)
        ],
        list(embedded(texts, memory.embedder.wait())),
    )
