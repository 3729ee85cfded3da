"""What the framework costs and saves around a real local model: throughput, cached prompt tokens, first token."""

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from rpla.agent import Agent
from rpla.bench.cast import NO_MEMORY, keeper, user_text
from rpla.bench.result import Result
from rpla.core.errors import RplaError
from rpla.core.events import TextDelta, TurnCommitted
from rpla.core.home import find_home
from rpla.core.models.base import Options, Piece, RplaChatModel, Usage, chat_dicts
from rpla.core.models.llamacpp import LlamaCppModel
from rpla.core.models.open import open_model
from rpla.core.settings import ChatSettings, SamplingSettings, Settings

_LORE = 40
_ROUNDS = 5
_BESIDE_TURNS = 8
"""Turns of the chat with the changing part first: it reads everything again each time."""


@dataclass(frozen=True, slots=True)
class _Turn:
    first_token_s: float
    usage: Usage


def measure_model(model_name: str, turns: int) -> list[Result]:
    """Figures for one llamacpp: model; minutes on two cores."""
    model = open_model(model_name, Settings(), find_home())
    if not isinstance(model, LlamaCppModel):
        raise RplaError(
            f"{model_name} is not a llamacpp: model.", "Give one: it is llama.cpp's cache that is measured."
        )
    return asyncio.run(_measure(model, turns))


async def _measure(model: LlamaCppModel, turns: int) -> list[Result]:
    await model.load()
    ratio = await _throughput(model)
    with_prefill = await _chat(model, turns, prefill=True)
    without = await _chat(model, turns, prefill=False)
    first = await _changing_part_first(model, min(turns, _BESIDE_TURNS))
    same_turns_last = with_prefill[: len(first)]
    return [
        Result("throughput_ratio", ratio, "≥ 0.97"),
        Result("cached_share", _cached(with_prefill), "≥ 0.90"),
        Result("cached_share_without_prefill", _cached(without), "≥ 0.75"),
        Result("ttft_growth", _first_token(with_prefill, turns) / _first_token(with_prefill, 5), "≤ 1.3"),
        Result("ttft_turn_5_s", _first_token(with_prefill, 5)),
        Result(f"ttft_turn_{turns}_s", _first_token(with_prefill, turns)),
        Result(f"ttft_turn_{len(first)}_s_changing_part_last", _first_token(same_turns_last, len(first))),
        Result(f"ttft_turn_{len(first)}_s_changing_part_first", _first_token(first, len(first))),
        Result("cached_share_changing_part_first", _cached(first)),
    ]


def _cached(turns: list[_Turn]) -> float:
    return sum(turn.usage.cached_tokens for turn in turns) / sum(turn.usage.prompt_tokens for turn in turns)


def _first_token(turns: list[_Turn], number: int) -> float:
    """Median of the turn of that number (from 1) and its neighbours."""
    return statistics.median(turn.first_token_s for turn in turns[max(0, number - 2) : number + 1])


async def _throughput(model: LlamaCppModel) -> float:
    """Tokens a second between the first and the last token through an agent, over those of llama.cpp alone."""
    character = keeper(700, model.count_tokens, lore_entries=1, lore_tokens=20)
    sampling = SamplingSettings(max_tokens=200, temperature=0)
    messages: list[BaseMessage] = [SystemMessage(character.description), HumanMessage("Tell me a long story.")]
    ratios: list[float] = []
    with tempfile.TemporaryDirectory(prefix="rpla-bench-") as folder:
        settings = Settings(sampling=sampling, chat=ChatSettings(prefill=False))
        agent = Agent(character, model=model, alignment=NO_MEMORY, home=Path(folder), settings=settings)
        for number in range(_ROUNDS + 1):
            agent.new_chat(greeting=None)
            rates: dict[str, float] = {}
            for which in ("agent", "bare") if number % 2 else ("bare", "agent"):
                if which == "agent":
                    rates[which] = await _agent_rate(agent)
                else:
                    rates[which] = await asyncio.to_thread(_bare_rate, model, messages)
            if number:  # the first round warms both up
                ratios.append(rates["agent"] / rates["bare"])
        agent.close()
    return statistics.median(ratios)


async def _agent_rate(agent: Agent) -> float:
    first = last = 0.0
    tokens = 0
    async for event in agent.astream("Tell me a long story."):
        if isinstance(event, TextDelta):
            last = time.perf_counter()
            first = first or last
        elif isinstance(event, TurnCommitted) and event.usage:
            tokens = event.usage.completion_tokens
    return (tokens - 1) / (last - first)


def _bare_rate(model: LlamaCppModel, messages: list[BaseMessage]) -> float:
    times: list[float] = []
    tokens = 0

    def on_chunk(chunk: dict[str, object]) -> bool:
        nonlocal tokens
        times.append(time.perf_counter())
        timings = chunk.get("timings")
        if isinstance(timings, dict):
            tokens = timings["predicted_n"]
        return False

    request = {"messages": chat_dicts(messages), "stream": True, "max_tokens": 200, "temperature": 0, "min_p": 0.05}
    model.server.handle_chat_completions(request | {"top_p": 0.95, "repeat_penalty": 1.05}, on_chunk)
    # The first chunk only names the role, the last only counts.
    return (tokens - 1) / (times[-2] - times[1])


async def _chat(model: RplaChatModel, turns: int, *, prefill: bool) -> list[_Turn]:
    character = keeper(700, model.count_tokens, lore_entries=_LORE, lore_tokens=150)
    settings = Settings(sampling=SamplingSettings(max_tokens=120, seed=7), chat=ChatSettings(prefill=prefill))
    measured: list[_Turn] = []
    with tempfile.TemporaryDirectory(prefix="rpla-bench-") as folder:
        agent = Agent(character, model=model, alignment=NO_MEMORY, home=Path(folder), settings=settings)
        chat = agent.new_chat(greeting=None)
        for number in range(turns):
            text = user_text(number, 40, model.count_tokens, lore_entries=_LORE)
            begun, first = time.perf_counter(), 0.0
            async for event in chat.stream(text):
                if isinstance(event, TextDelta):
                    first = first or time.perf_counter() - begun
                elif isinstance(event, TurnCommitted) and event.usage:
                    measured.append(_Turn(first, event.usage))
            await chat.settled()  # the user reads and types meanwhile
        agent.close()
    return measured


async def _changing_part_first(model: RplaChatModel, turns: int) -> list[_Turn]:
    """The same chat laid out the common way: what changes every turn stands at the top."""
    character = keeper(700, model.count_tokens, lore_entries=_LORE, lore_tokens=150)
    options = Options(max_tokens=120, seed=7, temperature=0.8, conversation="changing part first")
    history: list[BaseMessage] = []
    measured: list[_Turn] = []
    for number in range(turns):
        lore = character.lore.entries[number % _LORE].content
        history.append(HumanMessage(user_text(number, 40, model.count_tokens, lore_entries=_LORE)))
        messages = [SystemMessage(f"{lore}\n\n{character.description}"), *history]
        begun, first, text = time.perf_counter(), 0.0, ""
        async with aclosing(model.pieces(messages, options)) as pieces:
            async for piece in _texts(pieces):
                first = first or time.perf_counter() - begun
                text += piece.text
                if piece.usage:
                    measured.append(_Turn(first, piece.usage))
        history.append(AIMessage(text))
    return measured


async def _texts(pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    async for piece in pieces:
        if piece.text or piece.usage:
            yield piece
