"""Rank a corpus by exact likelihood; find wrong transcripts and damaged recordings."""

import argparse
from pathlib import Path
from typing import Any

from flowtron.commands import Outcome, add_voice_options, check_no_input, check_writable, load_voice, progress_bar
from flowtron.errors import InputError

EXAMPLES = """\
flowtron score corpus/train.txt -m runs/demo/checkpoints/00008500
flowtron score corpus/train.txt -m runs/demo/checkpoints/00008500 --csv scores.csv --frames frames.npz
flowtron score recordings.txt --speaker heart --json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron score`."""
    parser.add_argument("filelist", metavar="FILELIST", help="path|text|speaker of the recordings")
    add_voice_options(parser)
    parser.add_argument("-i", "--speaker", default=None, help="score all recordings as this speaker's")
    parser.add_argument("-n", "--rows", type=int, default=20, help="rows to show, worst first (default: %(default)s)")
    parser.add_argument("--csv", default=None, help="file to write all rows to, worst first")
    parser.add_argument("--frames", default=None, help=".npz to write each recording's nats of every frame to, by path")


def run(options: argparse.Namespace) -> Outcome:
    """Score and rank."""
    import numpy as np

    from flowtron.data import read_filelist
    from flowtron.score import rows, score_corpus, table, write_csv

    check_writable(options.csv, options.frames)
    if options.frames and Path(options.frames).suffix != ".npz":
        raise InputError(f"{options.frames}: nats of frames are written as .npz; choose that suffix.")
    if options.rows < 0:
        raise InputError(f"--rows is {options.rows}; give 0 or more.")
    check_no_input([options.filelist], options.csv, options.frames)
    utterances = read_filelist(options.filelist)
    voice = load_voice(options)
    with progress_bar("scoring", options) as show:
        scores, problems = score_corpus(
            voice, utterances, options.speaker, progress=lambda done: show(done / len(utterances))
        )
    lines = [table(scores, problems, options.rows)]
    if options.csv:
        write_csv(scores, Path(options.csv))
        lines.append(f"wrote {options.csv}")
    if options.frames:
        by_path: dict[str, Any] = {str(score.utterance.path): score.frame_nats for score in scores}
        np.savez_compressed(options.frames, **by_path)
        lines.append(f"wrote {options.frames}")
    return Outcome("\n".join(lines), {"recordings": rows(scores), "not_scored": problems})
