"""The chat turn: recall, speak, check, commit.

The user's text is on the disk before the graph starts. What goes on is reported as `TurnEvent`s through LangGraph's
stream writer, so that callers can show a reply while it grows.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal

from langchain_core.language_models import BaseChatModel
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command
from typing_extensions import TypedDict

from rpla.core.chatlog import Turn
from rpla.core.errors import RplaError
from rpla.core.events import Notice, TextDelta, TurnCommitted, TurnReplaced
from rpla.core.guard import Breach, Guard
from rpla.core.models.base import Options, Usage
from rpla.core.models.stream import stream_pieces
from rpla.core.prompt import Prompt, Section
from rpla.memory.recall import Moment, Recaller

REMINDERS: dict[Breach, str] = {
    "leaves the role": "You are {{char}} and nothing else. Answer as {{char}}, in {{char}}'s own words.",
    "says nothing": "Answer as {{char}}.",
    "speaks for the user": "Say only what {{char}} says.",
}

FRAME_S = 1 / 60
"""Pieces that arrive faster are put together: nobody sees them apart, and each costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A reply before it is committed."""

    text: str
    """What is kept of it."""
    spoken: str = ""
    """All that the model said, the breach included."""
    finish: str = ""
    """``stop``, ``length``, or ``cut`` where the guard ended it."""
    breach: Breach = ""
    usage: Usage | None = None
    sections: tuple[Section, ...] = ()
    repairs: int = 0
    """How often it was asked for again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatContext:
    """What one turn works with."""

    model: BaseChatModel
    options: Options
    moment: Moment
    build_prompt: Callable[[Sequence[Section], str], Prompt]
    """From what was recalled and a reminder, which may be empty."""
    new_guard: Callable[[], Guard]
    commit: Callable[[Draft], Awaitable[Turn]]
    recallers: Sequence[Recaller] = field(default=())
    begun: str = ""
    """The beginning of a reply that is being continued."""
    strict: bool = False
    """Hold the text back until it is checked."""
    repairs: int = 1


class ChatState(TypedDict, total=False):
    """What the nodes hand on."""

    recalled: list[Section]
    draft: Draft
    reply: Turn


async def recall(state: ChatState, runtime: Runtime[ChatContext]) -> ChatState:
    """Ask every source what comes to mind."""
    recalled: list[Section] = []
    for recaller in runtime.context.recallers:
        recalled += await recaller(runtime.context.moment)
        for notice in getattr(recaller, "take_notices", list)():
            runtime.stream_writer(Notice(notice))
    return {"recalled": recalled}


async def speak(state: ChatState, runtime: Runtime[ChatContext]) -> ChatState:
    """Stream a reply under the guard's eyes; it ends where the guard sees a breach."""
    context, write = runtime.context, runtime.stream_writer
    last = state.get("draft")
    repairs = last.repairs + 1 if last else 0
    prompt = context.build_prompt(state["recalled"], REMINDERS[last.breach] if last else "")
    if prompt.cut and not last:
        write(Notice(f"No room in the model's context for: {', '.join(prompt.cut)}."))
    guard, finish, usage = context.new_guard(), "", None
    held, shown = "", 0.0
    async with aclosing(stream_pieces(context.model, prompt.messages, context.options)) as pieces:
        async for piece in pieces:
            guard.feed(piece.text)
            finish, usage = piece.finish or finish, piece.usage or usage
            if guard.breach:
                finish = "cut"
                break
            held += piece.text
            if held and not context.strict and (now := time.monotonic()) - shown >= FRAME_S:
                write(TextDelta(held))
                held, shown = "", now
    guard.finish()
    if held and not context.strict and not guard.breach:
        write(TextDelta(held))
    return {
        "draft": Draft(
            text=guard.kept,
            spoken=guard.text,
            finish=finish,
            breach=guard.breach,
            usage=usage,
            sections=prompt.sections,
            repairs=repairs,
        )
    }


async def check(state: ChatState, runtime: Runtime[ChatContext]) -> Command[Literal["speak", "commit"]]:
    """Keep the reply, keep the part before it spoke for the user, or have it said again.

    Raises RplaError where the model says nothing, however often it is asked.
    """
    context, draft = runtime.context, state["draft"]
    mended = draft.breach == "speaks for the user" and draft.text
    if draft.breach and not mended and draft.repairs < context.repairs:
        if not context.strict:
            runtime.stream_writer(TurnReplaced(context.begun, draft.breach))
        return Command(goto="speak")
    if not draft.text:
        draft = replace(draft, text=draft.spoken.strip() if draft.breach == "leaves the role" else "")
        if not draft.text:
            raise RplaError("The model said nothing.", "Your message is kept. Regenerate, or try another model.")
    if context.strict or draft.breach:
        runtime.stream_writer(TurnReplaced(context.begun + draft.text, draft.breach or "checked"))
    return Command(goto="commit", update={"draft": draft})


async def commit(state: ChatState, runtime: Runtime[ChatContext]) -> ChatState:
    """Make the reply durable."""
    draft = state["draft"]
    reply = await runtime.context.commit(draft)
    runtime.stream_writer(TurnCommitted(reply, draft.sections, draft.usage))
    return {"reply": reply}


def build_chat_graph() -> StateGraph[ChatState, ChatContext]:
    """The builder of the chat turn; the caller compiles it."""
    builder = StateGraph(ChatState, context_schema=ChatContext)
    builder.add_node(recall)
    builder.add_node(speak)
    builder.add_node(check)
    builder.add_node(commit)
    builder.add_edge(START, "recall")
    builder.add_edge("recall", "speak")
    builder.add_edge("speak", "check")
    return builder
