"""Write a checkpoint in the original's state-dict layout."""

import argparse

from flowtron.commands import Outcome

EXAMPLES = """\
flowtron export runs/demo/checkpoints/00008500 flowtron.pt
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron export`."""
    parser.add_argument("source", help="checkpoint folder")
    parser.add_argument("target", help=".pt file to write, in the original's layout")


def run(options: argparse.Namespace) -> Outcome:
    """Export and tell what was left out."""
    from flowtron.convert import export

    report = export(options.source, options.target)
    return Outcome(report, {"file": options.target, "report": report.splitlines()})
