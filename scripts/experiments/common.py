"""What the experiments share: options, a folder of results, tables and intervals."""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowtron.synthesizer import Synthesizer

SENTENCES = (
    "How much variation is there?",
    "It is well known that deep generative models have a rich latent space.",
    "We are testing this model.",
    "Humans are walking on the streets?",
)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every experiment."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True, help="checkpoint folder or bundled voice")
    parser.add_argument("-v", "--vocoder", default=None, help="a vocoder's name or folder; the voice's own if absent")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write table, plots and wavs to")
    parser.add_argument("--seeds", type=int, default=10, help="draws of each setting (default: %(default)s)")
    return parser


def load(options: argparse.Namespace) -> Synthesizer:
    """Load the voice that the options name, and make the folder."""
    (options.output / "wavs").mkdir(parents=True, exist_ok=True)
    return Synthesizer.load(options.model, **({} if options.vocoder is None else {"vocoder": options.vocoder}))


def level_db(wav: np.ndarray) -> float:
    """Mean power of wav (T_samples,) in dB of full scale."""
    return 10 * float(np.log10(max(1e-12, float(np.mean(wav**2)))))


def mean_interval(values: Sequence[float], resamples: int = 2000) -> tuple[float, float, float]:
    """Mean of values with its 95 % bootstrap interval; NaN is left out."""
    known = np.array([value for value in values if np.isfinite(value)])
    if not len(known):
        return float("nan"), float("nan"), float("nan")
    draws = known[np.random.default_rng(0).integers(0, len(known), (resamples, len(known)))].mean(1)
    return float(known.mean()), *(float(bound) for bound in np.percentile(draws, [2.5, 97.5]))


def shown(interval: tuple[float, float, float], digits: int = 2) -> str:
    """An interval for a table: value [low, high]."""
    return f"{interval[0]:.{digits}f} [{interval[1]:.{digits}f}, {interval[2]:.{digits}f}]"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table, of all columns that any of them has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def write_results(
    options: argparse.Namespace, rows: Sequence[dict[str, Any]], each: Sequence[dict[str, Any]], checks: dict[str, Any]
) -> None:
    """Write the table (table.md), every measurement (measurements.csv), and what it shows (result.json); print them."""
    (options.output / "table.md").write_text(markdown(rows) + "\n", encoding="utf-8")
    if each:
        with (options.output / "measurements.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(each[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(each)
    result = {"command": " ".join(["python", *sys.argv]), "shows": checks, "table": list(rows)}
    (options.output / "result.json").write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    print(markdown(rows))
    for name, value in checks.items():
        print(f"{name}: {value}")
