"""What the benchmarks share: contenders that take turns, and medians with their spread."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

said: list[str] = []


def say(line: str) -> None:
    """Tell people how it goes, and keep it in `said`; standard output is for the figures."""
    said.append(line)
    print(line, file=sys.stderr, flush=True)


def take_turns(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time every contender once a round, after one untimed turn each, so that all share what else the machine does.

    Returns:
        Seconds of each turn, by contender.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if round_:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def per_unit(seconds: dict[str, list[float]], units: dict[str, float], what: str) -> dict[str, float]:
    """Print milliseconds per unit, median and range; return the medians in seconds per unit."""
    medians = {}
    for name, turns in seconds.items():
        each = [s / units[name] for s in turns]
        low, middle, high = (1e3 * f(each) for f in (min, statistics.median, max))
        say(f"{name:24s} {middle:10.3f} ms {what} ({low:.3f} to {high:.3f})")
        medians[name] = middle / 1e3
    return medians


# ru_maxrss of a program begins with that of the process that started it, which may be far larger.
_PEAK = """
import resource
try:
    lines = open('/proc/self/status').read().splitlines()
    print('peak', next(line.split()[1] for line in lines if line.startswith('VmHWM')))
except OSError:
    print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_memory_mb(program: str) -> float:
    """Largest resident memory in MB of a Python process that runs a program (source text) and nothing else."""
    done = subprocess.run([sys.executable, "-c", program + _PEAK], capture_output=True, text=True, check=True)
    return int(done.stdout.rsplit("peak", 1)[1]) / 1024
