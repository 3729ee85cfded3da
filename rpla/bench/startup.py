"""How long a person waits before anything happens."""

import statistics
import subprocess
import sys
import time

from rpla.bench.result import Result

_ROUNDS = 7


def measure_startup() -> list[Result]:
    """Seconds from starting the process to the end of its help."""
    command = [sys.executable, "-m", "rpla", "--help"]
    times: list[float] = []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own command
        times.append(time.perf_counter() - begun)
    return [Result("help_s", statistics.median(times), "≤ 0.3")]
