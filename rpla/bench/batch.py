"""What an hf: model gains by serving requests as one batch."""

import asyncio
import statistics
import time

from langchain_core.messages import HumanMessage, SystemMessage

from rpla.bench.cast import keeper, user_text
from rpla.bench.result import Result
from rpla.core.home import find_home
from rpla.core.models.base import Options, RplaChatModel, collect
from rpla.core.models.open import open_model
from rpla.core.settings import HfSettings, Settings

_TOKENS = 48
_REQUESTS = 32
_ROUNDS = 2


def measure_batch(model_name: str, dtype: str) -> list[Result]:
    """Tokens a second of 32 requests at once over those of one; minutes on two cores."""
    model = open_model(model_name, Settings(hf=HfSettings(dtype=dtype)), find_home())
    assert isinstance(model, RplaChatModel)
    return asyncio.run(_measure(model))


async def _measure(model: RplaChatModel) -> list[Result]:
    await model.load()
    await _rate(model, 1)
    one = statistics.median([await _rate(model, 1) for _ in range(_ROUNDS)])
    many = statistics.median([await _rate(model, _REQUESTS) for _ in range(_ROUNDS)])
    return [
        Result("batch_ratio", many / one, "≥ 4"),
        Result("tokens_per_s_one", one),
        Result(f"tokens_per_s_{_REQUESTS}", many),
    ]


async def _rate(model: RplaChatModel, requests: int) -> float:
    character = keeper(150, model.count_tokens, lore_entries=1, lore_tokens=20)
    options = Options(max_tokens=_TOKENS, temperature=0.8)

    async def one(number: int) -> int:
        asked = user_text(number, 40, model.count_tokens, lore_entries=_REQUESTS)
        reply = await collect(model.pieces([SystemMessage(character.description), HumanMessage(asked)], options))
        assert reply.usage is not None
        return reply.usage.completion_tokens

    begun = time.perf_counter()
    tokens = await asyncio.gather(*(one(number) for number in range(requests)))
    return sum(tokens) / (time.perf_counter() - begun)
