"""What a turn costs beside the model: time and disk, with a model that answers at once."""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from rpla.agent import Agent
from rpla.bench.cast import NO_MEMORY, keeper, user_text
from rpla.bench.commits import BareCommits
from rpla.bench.result import Result, percentile
from rpla.core.models.base import estimate_tokens
from rpla.core.models.scripted import ScriptedModel
from rpla.core.settings import Settings

_LORE = 1000
_CHARACTERS = 250


def measure_overhead(turns: int) -> list[Result]:
    """Time of each turn above two bare commits of the same text; its growth; bytes on disk over bytes of text."""
    with tempfile.TemporaryDirectory(prefix="rpla-bench-") as folder:
        return asyncio.run(_measure(Path(folder), turns))


async def _measure(folder: Path, turns: int) -> list[Result]:
    reply = user_text(1, _CHARACTERS, len, lore_entries=_LORE)
    agent = Agent(
        keeper(700, estimate_tokens, lore_entries=_LORE, lore_tokens=60),
        model=ScriptedModel(reply, cycle=True),
        alignment=NO_MEMORY,
        home=folder / "home",
        settings=Settings(),
    )
    bare = BareCommits(folder / "bare.db")
    agent.new_chat(greeting=None)
    turn_ms: list[float] = []
    bare_ms: list[float] = []
    texts = 0
    for number in range(turns):
        text = user_text(number, _CHARACTERS, len, lore_entries=_LORE)
        texts += len(text.encode()) + len(reply.encode())
        begun = time.perf_counter()
        await agent.asay(text)
        turn_ms.append((time.perf_counter() - begun) * 1000)
        bare_ms.append(bare.write_ms((text, reply)))
    bare.close()
    agent._log.checkpoint()
    agent.close()
    kept = sum(file.stat().st_size for file in (folder / "home").rglob("*") if file.is_file())
    above = [turn - commits for turn, commits in zip(turn_ms, bare_ms, strict=True)][1:]
    late, early = statistics.median(turn_ms[-21:]), statistics.median(turn_ms[4:16])
    return [
        Result("overhead_p50_ms", percentile(above, 50), "≤ 5"),
        Result("overhead_p95_ms", percentile(above, 95), "≤ 15"),
        Result("overhead_growth", late / early, "≤ 1.25"),
        Result("storage_ratio", kept / texts, "≤ 4"),
        Result("bare_commits_p50_ms", percentile(bare_ms, 50)),
    ]
