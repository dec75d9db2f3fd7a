"""Word errors, quality and pitch spread of a voice against sigma, from which its default sigma is chosen.

python scripts/sigma_table.py demo --sentences corpus/test.txt --limit 25 --output sigma.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from flowtron.data import read_filelist
from flowtron.errors import exit_code_of
from flowtron.evaluate import evaluate
from flowtron.synthesizer import Synthesizer

SIGMAS = (0.0, 0.5, 0.667, 0.8, 1.0)


def measure(model: str, sentences: str, limit: int, sigmas: list[float], vocoder: str | None) -> dict[str, Any]:
    """Return the summaries of `flowtron.evaluate.evaluate` by sigma; the first also has the recordings and copies."""
    voice = Synthesizer.load(model, **({} if vocoder is None else {"vocoder": vocoder}))
    every = read_filelist(sentences)
    references = [
        each for speaker in voice.speakers for each in [u for u in every if u.speaker == speaker][: limit or None]
    ]
    found = {}
    for number, sigma in enumerate(sigmas):
        found[f"{sigma:g}"], _ = evaluate(voice, references, with_pitch=True, with_references=number == 0, sigma=sigma)
        print(f"sigma {sigma:g} measured", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, Any]) -> str:
    """Return a Markdown table, a row a sigma, after the rows of the recordings and of their copy synthesis."""
    first = next(iter(found.values()))
    speakers = [name for name in first if name != "all"]
    lines = [
        "| sigma | " + " | ".join(f"{s}: words % | DNSMOS | pitch, Hz | its spread, Hz" for s in speakers) + " |",
        "|---|" + "---|" * 4 * len(speakers),
    ]

    def row(name: str, summary: dict[str, Any], suffix: str, pitch_suffix: str | None) -> None:
        cells = []
        for speaker in speakers:
            values = summary[speaker]
            cells += [f"{values[f'wer{suffix}']:.1f}", f"{values[f'dnsmos{suffix}']:.2f}"]
            keys = (f"f0_{part}_hz{pitch_suffix}" for part in ("mean", "spread"))
            cells += ["", ""] if pitch_suffix is None else [f"{values[key]:.0f}" for key in keys]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    row("recordings", first, "_source", "_source")
    row("copy synthesis", first, "_copy", None)
    for sigma, summary in found.items():
        row(sigma, summary, "", "")
    return "\n".join(lines)


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder or name of a bundled voice")
    parser.add_argument("--sentences", required=True, help="filelist path|text|speaker of held-out recordings")
    parser.add_argument("--limit", type=int, default=25, help="sentences a speaker; 0 is all (default: %(default)s)")
    parser.add_argument("--sigmas", type=float, nargs="+", default=SIGMAS, help="(default: %(default)s)")
    parser.add_argument("--vocoder", default=None, help="the voice's own if absent")
    parser.add_argument("--output", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args()

    def work() -> None:
        found = measure(options.model, options.sentences, options.limit, options.sigmas, options.vocoder)
        if options.output:
            options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(table(found))

    return exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main())
