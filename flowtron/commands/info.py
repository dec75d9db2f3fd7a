"""Tell what a checkpoint is."""

import argparse
from pathlib import Path

from flowtron.commands import Outcome

EXAMPLES = """\
flowtron info runs/demo/checkpoints/00008500
flowtron info flowtron_ljs.pt
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron info`."""
    parser.add_argument("path", help="checkpoint or vocoder folder, or a file of the original")


def run(options: argparse.Namespace) -> Outcome:
    """Describe a checkpoint."""
    from flowtron.checkpoint import DESCRIPTION, VOCODER_DESCRIPTION, info
    from flowtron.tensorfile import read_json

    text, values = info(options.path), {}
    for name in (DESCRIPTION, VOCODER_DESCRIPTION):
        if (Path(options.path) / name).is_file():
            values = read_json(Path(options.path) / name, "description")
    return Outcome(text, values or {"description": text.splitlines()})
