"""Curves of a training from its TensorBoard logs: losses, learning rate, alignment.

python scripts/plot_curves.py runs/demo --output docs/voice_curves.png
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from flowtron.errors import InputError, exit_code_of

PANELS = {
    "likelihood, nats per dimension": ("training/nats_per_dim", "validation/nats_per_dim"),
    "aligned share of fixed sentences": ("teacher_forced/aligned_share", "free_running/aligned_share"),
    "diagonality of attention": ("teacher_forced/diagonality", "free_running/diagonality"),
    "gradient norm": ("training/gradient_norm",),
}
SMOOTHED = 20  # logged points under one point of a training curve


def read_scalars(runs: list[Path]) -> dict[str, dict[int, float]]:
    """Return {name: {iteration: value}} of runs that went on from each other; the later one wins.

    Raises:
        InputError: a run has no log.
    """
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        files = sorted((run / "logs").glob("events.out.tfevents.*"))
        if not files:
            raise InputError(f"{run / 'logs'}: no TensorBoard log; name a training's output directory.")
        for file in files:
            events = EventAccumulator(str(file), size_guidance={SCALARS: 0}).Reload()
            for name in events.Tags()["scalars"]:
                points = found.setdefault(name, {})
                logged = events.Scalars(name)
                # What a run logs again after going on from an earlier state replaces what came after that state.
                for step in [step for step in points if logged and step >= logged[0].step]:
                    del points[step]
                points.update((event.step, event.value) for event in logged)
    return found


def draw(scalars: dict[str, dict[int, float]]) -> Figure:
    """Return a figure of a panel each for likelihood, alignment and gradient."""
    figure, panels = plt.subplots(2, 2, figsize=(10, 6), sharex=True, layout="constrained")
    for panel, (title, names) in zip(panels.flat, PANELS.items()):
        for name in names:
            steps, values = zip(*sorted(scalars[name].items())) if scalars.get(name) else ((), ())
            if name.startswith("training/"):
                groups = range(0, len(values) - SMOOTHED + 1, SMOOTHED)
                steps = tuple(steps[i + SMOOTHED - 1] for i in groups)
                values = tuple(sum(values[i : i + SMOOTHED]) / SMOOTHED for i in groups)
            panel.plot(steps, values, label=name, linewidth=1)
        panel.set_title(title, fontsize=10)
        panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set_xlabel("iteration")
    return figure


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="output directories, in the order of training")
    parser.add_argument("--output", type=Path, required=True, help="picture to write")
    options = parser.parse_args()
    return exit_code_of(lambda: draw(read_scalars(options.runs)).savefig(options.output, dpi=110))


if __name__ == "__main__":
    sys.exit(main())
