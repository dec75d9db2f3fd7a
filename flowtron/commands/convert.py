"""Convert a checkpoint of the original, without running any code in it."""

import argparse

from flowtron.commands import Outcome

EXAMPLES = """\
flowtron convert flowtron_ljs.pt voices/ljs
flowtron convert waveglow_256channels_universal_v5.pt voices/waveglow
flowtron convert generator_v1 voices/hifigan -c config_v1.json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron convert`."""
    parser.add_argument("source", help="checkpoint of Flowtron, WaveGlow, Tacotron 2 or HiFi-GAN")
    parser.add_argument("target", help="folder to write")
    parser.add_argument("-c", "--config", default=None, help="its config, for what shapes cannot tell")


def run(options: argparse.Namespace) -> Outcome:
    """Convert and tell what was found and assumed."""
    from flowtron.convert import convert

    report = convert(options.source, options.target, options.config)
    return Outcome(report, {"folder": options.target, "report": report.splitlines()})
