"""Train from a config; the same command goes on after an interruption."""

import argparse
import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout

from flowtron.commands import Outcome
from flowtron.errors import InputError

EXAMPLES = """\
flowtron train -c configs/demo.json
flowtron train -c configs/demo.json -p train_config.max_hours=0.2 train_config.output_directory=runs/first
tensorboard --logdir runs/first
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron train`."""
    parser.add_argument("-c", "--config", required=True, help="JSON config")
    parser.add_argument(
        "-p", "--params", nargs="*", action="extend", default=[], metavar="section.key=value", help="overrides of it"
    )
    parser.add_argument("-d", "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")


def run(options: argparse.Namespace) -> Outcome:
    """Train as configured."""
    import torch

    from flowtron.config import load_config
    from flowtron.device import choose_device

    if options.device == "mps":
        raise InputError("device is 'mps', on which only synthesis runs; train with auto, cpu, cuda or cuda:N.")
    config = load_config(options.config, options.params)
    device = choose_device(options.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    elif device.type != "cuda":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    from flowtron.train import train

    # What is told on the way is no result, and not told at all in quiet mode; errors are raised.
    told = io.StringIO() if options.quiet else sys.stderr
    with redirect_stdout(told), redirect_stderr(told):
        path = train(config)
    return Outcome(f"saved {path}", {"checkpoint": str(path)})
