"""A character as a graph for LangGraph's own server: messages in, the character's reply out.

`langgraph.json` names `graph`. A server's thread is a chat of ours; what is said in it is in the chat log as well.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.runtime import Runtime

from rpla.agent import Agent
from rpla.core.errors import RplaError
from rpla.core.events import TextDelta, TurnCommitted, TurnReplaced


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedContext:
    """What a run may choose; empty takes the settings."""

    character: str = "ada-lovelace"
    user: str = ""
    model: str = ""
    alignment: str = ""


class ServedState(MessagesState):
    """The server's thread."""

    chat: str
    """The id of the chat in the log; empty before the first turn."""


async def answer(state: ServedState, runtime: Runtime[ServedContext]) -> dict[str, Any]:
    """Let the character answer the newest message; pieces go out on the custom stream as they come."""
    messages = state["messages"]
    if not messages or messages[-1].type != "human":
        raise RplaError("There is no message to answer.", "Send one with the role user.")
    agent = await asyncio.to_thread(_agent, runtime.context or ServedContext(), state.get("chat") or "")
    reply = ""
    try:
        async for event in agent.astream(messages[-1].text):
            match event:
                case TextDelta(text) | TurnReplaced(text):
                    runtime.stream_writer({"type": type(event).__name__, "text": text})
                case TurnCommitted(turn):
                    reply = turn.text
        await agent.chat.leave()
        return {"messages": [AIMessage(reply)], "chat": agent.chat.id}
    finally:
        await asyncio.to_thread(agent.close)


def _agent(context: ServedContext, chat: str) -> Agent:
    agent = Agent(
        context.character,
        user=context.user or None,
        model=context.model or None,
        alignment=context.alignment or None,
    )
    try:
        if chat:
            agent.open_chat(chat)
        else:
            agent.new_chat(greeting=None)
    except RplaError:
        agent.close()
        raise
    return agent


graph = StateGraph(ServedState, context_schema=ServedContext).add_node(answer).add_edge(START, "answer").compile()
graph.name = "character"
