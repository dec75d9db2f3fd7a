"""Train from a config; the same command goes on after an interruption."""

import argparse
import os

from flowtron.commands import Outcome, add_device_option

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
    add_device_option(parser)


def run(options: argparse.Namespace) -> Outcome:
    """Train as configured."""
    from flowtron.config import load_config
    from flowtron.device import choose_device

    config = load_config(options.config, options.params)
    if choose_device(options.device).type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    from flowtron.train import train

    path = train(config)
    return Outcome(f"saved {path}", {"checkpoint": str(path)})
