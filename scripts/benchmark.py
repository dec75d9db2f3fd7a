"""Measure Flowtron against what it replaces, contenders side by side in one run.

    python scripts/benchmark.py inference --json

A benchmark is a file scripts/bench_NAME.py with a function `run(options) -> dict` of figures, None for one that cannot
be measured here, and, if it takes options of its own, `add_options(parser)`. Progress goes to standard error; figures
to standard output, as lines or, with --json, as one object.
"""

import argparse
import importlib
import json
import os
import platform
import sys
from collections.abc import Sequence

import torch

NAMES = ("training", "inference", "vocoders", "data")


def machine() -> str:
    """One line on what the figures were measured on."""
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{model}, {os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}{load}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="name", required=True)
    for name in NAMES:
        try:
            module = importlib.import_module(f"bench_{name}")
        except ModuleNotFoundError as error:
            if error.name != f"bench_{name}":
                raise
            continue
        each = subparsers.add_parser(name, description=module.__doc__)
        each.add_argument("--json", action="store_true", help="print the figures as JSON")
        each.add_argument("--rounds", type=int, default=7, help="turns of each contender")
        each.add_argument("--threads", type=int, default=2)
        if hasattr(module, "add_options"):
            module.add_options(each)
        each.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(machine(), file=sys.stderr)
    figures = {name: None if value is None else round(value, 4) for name, value in options.run(options).items()}
    print(json.dumps(figures) if options.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
