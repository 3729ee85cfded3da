"""Whether a character that reflects keeps the user waiting."""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from rpla.agent import Agent
from rpla.bench.cast import keeper, told, user_text
from rpla.bench.result import Result
from rpla.core.events import TextDelta
from rpla.core.home import find_home
from rpla.core.ids import new_id
from rpla.core.models.base import RplaChatModel
from rpla.core.models.open import open_model
from rpla.core.settings import MemorySettings, SamplingSettings, Settings
from rpla.memory.memories import Memory

_MEMORIES = 30
_LORE = 8
_UNDER_WAY_S = (2.0, 4.0, 6.0)
"""How long after the reply the user speaks, by turns: at different points of the reflection."""
_NEVER = 1e9


def measure_reflecting(model_name: str, embedder: str, *, turns: int) -> list[Result]:
    """Time to the first token with a reflection under way over that without, medians of as many turns of one chat."""
    model = open_model(model_name, Settings(), find_home())
    assert isinstance(model, RplaChatModel)
    without = asyncio.run(_chat(model, embedder, turns, threshold=_NEVER))
    under_way = asyncio.run(_chat(model, embedder, turns, threshold=0.1))
    return [
        Result("ttft_reflecting_ratio", statistics.median(under_way) / statistics.median(without), "≤ 1.2"),
        Result("ttft_s", statistics.median(without)),
        Result("ttft_reflecting_s", statistics.median(under_way)),
    ]


async def _chat(model: RplaChatModel, embedder: str, turns: int, *, threshold: float) -> list[float]:
    await model.load()
    settings = Settings(
        sampling=SamplingSettings(max_tokens=32, seed=7, temperature=0),
        memory=MemorySettings(embedder=embedder, reflect_after=threshold),
    )
    times: list[float] = []
    with tempfile.TemporaryDirectory(prefix="rpla-bench-") as folder:
        agent = Agent(
            keeper(700, model.count_tokens, lore_entries=_LORE, lore_tokens=150),
            model=model,
            alignment="icl",
            home=Path(folder),
            settings=settings,
        )
        memory = agent.mind.require_memory()
        await asyncio.to_thread(memory.load_embedder)
        now = time.time()
        memory.add(
            [
                Memory(
                    id=new_id(), user=memory.user, character=memory.character, text=told(n), created=now, renewed=now
                )
                for n in range(_MEMORIES)
            ]
        )
        chat = agent.new_chat(greeting=None)
        for number in range(turns + 1):
            text = user_text(number, 40, model.count_tokens, lore_entries=_LORE)
            begun, first = time.perf_counter(), 0.0
            async for event in chat.stream(text):
                if isinstance(event, TextDelta):
                    first = first or time.perf_counter() - begun
            if number:  # the first turn reads the card
                times.append(first)
            await asyncio.sleep(_UNDER_WAY_S[number % len(_UNDER_WAY_S)])
        await chat.leave()
        agent.close()
    return times
