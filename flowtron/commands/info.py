"""Tell what a checkpoint is."""

import argparse

from flowtron.commands import Outcome

EXAMPLES = """\
flowtron info demo
flowtron info runs/demo
flowtron info flowtron_ljs.pt
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron info`."""
    parser.add_argument("path", help="folder of a checkpoint, run or vocoder, a bundled voice, or an original file")


def run(options: argparse.Namespace) -> Outcome:
    """Describe a checkpoint."""
    from flowtron.checkpoint import DESCRIPTION, VOCODER_DESCRIPTION, info
    from flowtron.synthesizer import locate
    from flowtron.tensorfile import read_json

    path = locate(options.path)
    text, values = info(path), {}
    for name in (DESCRIPTION, VOCODER_DESCRIPTION):
        if (path / name).is_file():
            values = read_json(path / name, "description")
    return Outcome(text, values or {"description": text.splitlines()})
