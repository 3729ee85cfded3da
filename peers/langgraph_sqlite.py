"""The common way to keep a chat with LangGraph, measured beside `rpla bench chat --section overhead`.

A graph of four nodes over `MessagesState`, checkpointed by SqliteSaver after every node; replies come at once. `make
peers` installs what it needs into `.venv-peers` and runs it.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState, StateGraph

TEXT = ("I walked up from the harbour before the rain and thought of what you told me last time. " * 3)[:250]


def speak(state: MessagesState) -> dict[str, list[AIMessage]]:
    """Answer at once."""
    return {"messages": [AIMessage(TEXT)]}


def nothing(state: MessagesState) -> dict[str, list[AIMessage]]:
    """A node that changes nothing."""
    return {}


def main(turns: int) -> None:
    """Print median and 95th percentile of a turn, growth over the chat, and bytes kept over bytes said."""
    builder = StateGraph(MessagesState)
    builder.add_sequence([("recall", nothing), ("speak", speak), ("check", nothing), ("commit", nothing)])
    builder.add_edge(START, "recall")
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoints.db"
        with SqliteSaver.from_conn_string(str(file)) as saver:
            graph = builder.compile(checkpointer=saver)
            for _ in range(turns):
                begun = time.perf_counter()
                graph.invoke({"messages": [HumanMessage(TEXT)]}, {"configurable": {"thread_id": "chat"}})
                times.append((time.perf_counter() - begun) * 1000)
        kept = sum(part.stat().st_size for part in Path(folder).iterdir())
    ordered = sorted(times)
    print(
        json.dumps(
            {
                "turns": turns,
                "turn_p50_ms": round(ordered[turns // 2], 1),
                "turn_p95_ms": round(ordered[int(turns * 0.95)], 1),
                "growth": round(sum(times[-10:]) / sum(times[5:15]), 2),
                "storage_ratio": round(kept / (turns * 2 * len(TEXT)), 1),
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
