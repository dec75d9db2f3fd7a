"""Write a checkpoint in the original's state-dict layout, or as ONNX graphs."""

import argparse

from flowtron.commands import Outcome

EXAMPLES = """\
flowtron export demo flowtron.pt
flowtron export --format onnx runs/demo voice-onnx/
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron export`."""
    parser.add_argument("source", help="checkpoint folder, a run's folder or a bundled voice")
    parser.add_argument("target", help=".pt file to write, or folder for ONNX graphs")
    parser.add_argument("--format", choices=("original", "onnx"), default="original", help="what to write")


def run(options: argparse.Namespace) -> Outcome:
    """Export and tell what was left out."""
    from flowtron.synthesizer import locate

    source = locate(options.source)
    if options.format == "onnx":
        from flowtron.onnx_export import export_onnx

        folder = export_onnx(source, options.target)
        return Outcome(f"wrote {folder}: encoder and steps of flow as ONNX", {"folder": str(folder)})
    from flowtron.convert import export

    report = export(source, options.target)
    return Outcome(report, {"file": options.target, "report": report.splitlines()})
