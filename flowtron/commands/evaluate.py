"""Measure a voice on held-out recordings: errors heard, quality, likeness, alignment, speed."""

import argparse
from pathlib import Path
from typing import Any

from flowtron.commands import Outcome, add_voice_options, check_writable, load_voice, progress_bar
from flowtron.errors import InputError

EXAMPLES = """\
flowtron evaluate runs/demo/checkpoints/00008500 --sentences corpus/test.txt
flowtron evaluate runs/demo/checkpoints/00008500 --sentences corpus/test.txt --limit 20 --json > measures.json
flowtron evaluate runs/demo/checkpoints/00008500 --sentences corpus/test.txt --output report.json --worst 5
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron evaluate`."""
    add_voice_options(parser, positional=True)
    parser.add_argument("--sentences", required=True, help="filelist path|text|speaker of recordings to compare with")
    parser.add_argument("--limit", type=int, default=0, help="only the first so many of each speaker; 0 is all")
    parser.add_argument(
        "-s", "--sigma", type=float, default=None, help="standard deviation of z; the default if absent"
    )
    parser.add_argument(
        "--draws", type=int, default=1, help="draws of each sentence; the best one is kept (default: %(default)s)"
    )
    parser.add_argument("--whisper", default=None, help="folder of a faster-whisper model; the packaged one if absent")
    parser.add_argument("--pitch", action="store_true", help="also measure pitch, which takes longer")
    parser.add_argument("--no-references", action="store_true", help="leave recordings and copy synthesis unmeasured")
    parser.add_argument(
        "-o", "--output", default=None, help="JSON file to write, with every utterance and what was heard"
    )
    parser.add_argument(
        "--worst", type=int, default=0, help="also write the worst so many as wav and picture beside it"
    )


def run(options: argparse.Namespace) -> Outcome:
    """Measure and tabulate."""
    from flowtron.data import Utterance, read_filelist
    from flowtron.evaluate import evaluate, table, write_report

    check_writable(options.output)
    for name in ("limit", "worst"):
        if getattr(options, name) < 0:
            raise InputError(f"--{name} is {getattr(options, name)}; give 0 or more.")
    if options.worst and not options.output:
        raise InputError(f"--worst {options.worst} has no place to write to; name a file with --output.")
    references: list[Utterance] = []
    taken: dict[str, int] = {}
    for utterance in read_filelist(options.sentences):
        taken[utterance.speaker] = taken.get(utterance.speaker, 0) + 1
        if not options.limit or taken[utterance.speaker] <= options.limit:
            references.append(utterance)
    voice = load_voice(options)
    sampling: dict[str, Any] = {"draws": options.draws}
    if options.sigma is not None:
        sampling["sigma"] = options.sigma
    with progress_bar("measuring", options) as show:
        summary, rows = evaluate(
            voice,
            references,
            options.whisper,
            with_pitch=options.pitch,
            with_references=not options.no_references,
            progress=lambda done: show(done / len(references)),
            **sampling,
        )
    lines = [table(summary)]
    if options.output:
        written = write_report(summary, rows, Path(options.output), options.worst)
        lines.append(f"wrote {', '.join(map(str, written))}")
    return Outcome("\n".join(lines), summary)
