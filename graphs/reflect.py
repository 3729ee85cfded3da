"""Reflection: gather, ask, retrieve, conclude, keep.

What a character was told adds up to what it comes to think of a person (Park et al. 2023, section 4.2): the model asks
what its newest episodes raise, each question calls up episodes, and what follows from several of them is kept as an
insight that names them. Nothing is kept before the end, so it can be cut off anywhere and begun anew.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command
from langsmith import tracing_context
from typing_extensions import TypedDict

from rpla.core.models.base import Options, collect
from rpla.core.models.stream import capabilities_of, stream_pieces
from rpla.graphs.reflect_prompts import (
    AGAIN,
    ANSWER_TOKENS,
    EXAMPLE,
    EXAMPLE_INSIGHTS,
    MOST_SHOWN,
    QUESTIONS_SCHEMA,
    Json,
    Names,
    ask_prompt,
    conclude_prompt,
    insights_schema,
    objects_in,
    plain,
    questions_that_always_fit,
    read_insights,
    read_questions,
)
from rpla.memory.episodic import EpisodicMemory, Viewpoint
from rpla.memory.memories import Memory
from rpla.memory.reflection import Conclusion, Gathered, gather_episodes, keep_insights, sift

_T = TypeVar("_T")

_SHOWN_ANYWAY = 5
"""So many episodes are shown for a question even where fewer come to mind: the nearest fill up, then the weightiest."""
_ATTEMPTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ReflectContext:
    """What one reflection works with."""

    model: BaseChatModel
    options: Options
    memory: EpisodicMemory
    viewpoint: Viewpoint
    names: Names
    threshold: float


class ReflectState(TypedDict, total=False):
    """What the nodes hand on."""

    gathered: Gathered
    questions: list[str]
    retrieved: list[tuple[Memory, ...]]
    """For each question."""
    conclusions: list[Conclusion]
    kept: list[Memory]


async def reflect(
    memory: EpisodicMemory,
    model: BaseChatModel,
    viewpoint: Viewpoint,
    *,
    character: str,
    user: str,
    options: Options,
    threshold: float,
) -> list[Memory]:
    """Reflect on what has gathered, if it is due as seen from there; the insights that were kept.

    `character` and `user` are the names by which the two call one another. Cancelled at any point, it leaves nothing
    behind and starts over the next time. Raises RplaError where the model fails.
    """
    context = ReflectContext(
        model=model,
        options=replace(options, conversation=f"reflect {memory.character}", stop=()),
        memory=memory,
        # What stands in the prompt is what was lived last, and reflected on like the rest.
        viewpoint=replace(viewpoint, shown=frozenset()),
        names=Names(plain(character), plain(user)),
        threshold=threshold,
    )
    with tracing_context(enabled=False):
        output: Any = await _graph().ainvoke({}, context=context, version="v2")
    kept: list[Memory] = (output.value or {}).get("kept", [])
    return kept


def due(memory: EpisodicMemory, threshold: float) -> bool:
    """Whether so much importance has gathered since the last reflection."""
    return memory.store.gathered(memory.user, memory.character) >= threshold


async def gather(state: ReflectState, runtime: Runtime[ReflectContext]) -> Command[Literal["ask", "__end__"]]:
    """Look up what is new; the end where that is too little to reflect on."""
    context = runtime.context
    gathered = await asyncio.to_thread(gather_episodes, context.memory, context.viewpoint)
    if gathered.importance < context.threshold or len(gathered.episodes) < 2:
        return Command(goto="__end__")
    return Command(goto="ask", update={"gathered": gathered})


async def ask(state: ReflectState, runtime: Runtime[ReflectContext]) -> ReflectState:
    """Have the model ask what the episodes raise. Where it asks nothing, there are questions that always fit."""
    context = runtime.context
    prompt = await asyncio.to_thread(ask_prompt, context.model, context.names, state["gathered"].episodes)
    questions = await _answer(context, prompt, QUESTIONS_SCHEMA, read_questions)
    return {"questions": questions or questions_that_always_fit(context.names)}


async def retrieve(state: ReflectState, runtime: Runtime[ReflectContext]) -> ReflectState:
    """Call up the episodes that each question brings to mind."""
    context = runtime.context
    memory, viewpoint = context.memory, context.viewpoint
    weightiest = sorted(state["gathered"].episodes, key=lambda episode: -episode.importance)

    def recalled(question: str) -> tuple[Memory, ...]:
        found = [one.memory for one in memory.recall(question, viewpoint, limit=2 * MOST_SHOWN)]
        episodes = {one.id: one for one in found if one.kind == "episode"}
        vector = memory.embedder.query(question) if memory.embedder is not None else None
        nearest = [one for one, _ in memory.nearest(question, vector, viewpoint, MOST_SHOWN) if one.kind == "episode"]
        for one in (*nearest, *weightiest):
            if len(episodes) >= _SHOWN_ANYWAY:
                break
            episodes.setdefault(one.id, one)
        return tuple(episodes.values())[:MOST_SHOWN]

    return {"retrieved": [await asyncio.to_thread(recalled, question) for question in state["questions"]]}


async def conclude(state: ReflectState, runtime: Runtime[ReflectContext]) -> ReflectState:
    """Have the model say what follows from the episodes of each question."""
    context = runtime.context
    conclusions: list[Conclusion] = []
    for question, episodes in zip(state["questions"], state["retrieved"], strict=True):
        if len(episodes) < 2:
            continue
        prompt = await asyncio.to_thread(conclude_prompt, context.model, context.names, episodes, question)
        found = await _answer(context, prompt, insights_schema(len(episodes)), read_insights)
        for text, numbers in found:
            cited = tuple(episodes[number - 1] for number in numbers if 1 <= number <= len(episodes))
            conclusions.append(Conclusion(text=text, cited=cited, shown=episodes))
    return {"conclusions": conclusions}


async def keep(state: ReflectState, runtime: Runtime[ReflectContext]) -> ReflectState:
    """Keep the conclusions that hold, and that these episodes were reflected on."""
    context = runtime.context
    insights, vectors = await asyncio.to_thread(
        sift,
        state["conclusions"],
        context.memory,
        context.viewpoint,
        names=(context.names.character, context.names.user),
        refused=[str(insight["text"]) for insight in EXAMPLE_INSIGHTS],
    )
    writing = asyncio.create_task(
        asyncio.to_thread(keep_insights, context.memory, insights, vectors, state["gathered"])
    )
    try:
        return {"kept": await asyncio.shield(writing)}
    except asyncio.CancelledError:
        await asyncio.wait([writing])  # milliseconds; whoever cancelled may be about to close the store
        raise


def build_reflect_graph() -> StateGraph[ReflectState, ReflectContext]:
    """The builder of a reflection; the caller compiles it."""
    builder = StateGraph(ReflectState, context_schema=ReflectContext)
    builder.add_node(gather)
    builder.add_node(ask)
    builder.add_node(retrieve)
    builder.add_node(conclude)
    builder.add_node(keep)
    builder.add_edge(START, "gather")
    builder.add_edge("ask", "retrieve")
    builder.add_edge("retrieve", "conclude")
    builder.add_edge("conclude", "keep")
    return builder


@cache
def _graph() -> CompiledStateGraph[Any, ReflectContext, Any, Any]:
    return build_reflect_graph().compile(name="reflect")


async def _answer(
    context: ReflectContext, prompt: str, schema: Json, read: Callable[[Json], list[_T] | None]
) -> list[_T]:
    """What the model answers, read from its JSON; empty where it cannot be read, however often it is asked."""
    held = capabilities_of(context.model).json_schema
    options = replace(
        context.options,
        max_tokens=ANSWER_TOKENS,
        temperature=0.0,
        repetition_penalty=1.0,
        json_schema=schema if held else None,
    )
    for attempt in range(_ATTEMPTS):
        messages = [*EXAMPLE, HumanMessage(prompt + (AGAIN if attempt else ""))]
        answer = await collect(stream_pieces(context.model, messages, options))
        for found in objects_in(answer.text):
            if (read_out := read(found)) is not None:
                return read_out
        options = replace(options, temperature=0.7)
    return []
