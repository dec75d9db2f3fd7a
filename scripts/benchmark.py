"""Measure Flowtron against what it replaces, contenders side by side in one run.

    python scripts/benchmark.py inference --json --write docs/BENCHMARKS.md

A benchmark is a file scripts/bench_NAME.py with a function `run(options) -> dict` of figures, None for one that cannot
be measured here, and, if it has them, `add_options(parser)` and GOALS, a dict of words by figure. Progress goes to
standard error; figures to standard output, as lines or, with --json, as one object. With --write they take the place of
the lines between `<!-- NAME -->` and `<!-- end of NAME -->` of a document.
"""

import argparse
import datetime
import importlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from bench_common import said

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


def document(measured_on: str, figures: dict[str, float | None], goals: dict[str, str], command: str) -> str:
    """The figures as Markdown: what they were measured on and with, a table, what was said on the way."""
    values = {key: "not measured" if value is None else f"{value:g}" for key, value in figures.items()}
    rows = [f"| `{key}` | {value} | {goals.get(key, '')} |" for key, value in values.items()]
    return "\n".join(
        [
            f"    {command}",
            "",
            f"{datetime.date.today()}, {measured_on}",
            "",
            "| figure | measured | goal |",
            "|---|---|---|",
            *rows,
            "",
            "```",
            *said,
            "```",
        ]
    )


def write_section(path: Path, name: str, content: str) -> None:
    """Put content between a document's two marks of a benchmark.

    Raises:
        SystemExit: the marks are missing.
    """
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        raise SystemExit(f"{path}: the lines {begin} and {end} are missing; add them where the figures belong.")
    before, after = text.split(begin)[0], text.split(end)[1]
    path.write_text(f"{before}{begin}\n{content}\n{end}{after}", encoding="utf-8")


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
        each.add_argument("--write", type=Path, help="put the figures into this document's section of the benchmark")
        each.add_argument("--rounds", type=int, default=7, help="turns of each contender")
        each.add_argument("--threads", type=int, default=2)
        if hasattr(module, "add_options"):
            module.add_options(each)
        each.set_defaults(run=module.run, goals=getattr(module, "GOALS", {}))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    measured_on = f"{machine()}, {options.threads} threads"  # the load is that before the benchmark's own
    print(measured_on, file=sys.stderr)
    figures = {name: None if value is None else round(value, 4) for name, value in options.run(options).items()}
    if options.write is not None:
        command = " ".join(["python scripts/benchmark.py", *(sys.argv[1:] if arguments is None else arguments)])
        write_section(options.write, options.name, document(measured_on, figures, options.goals, command))
    print(json.dumps(figures) if options.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
