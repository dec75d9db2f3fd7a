"""Draw the model from the code's own names: docs/model.svg.

    python scripts/draw_model.py -c configs/demo.json -o docs/model.svg

Every box is a module that is looked up by its name in a model built from the config, with its class and its number of
weights; a name that is not there any more is an error.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import nn

from flowtron.config import load_config
from flowtron.model import build_model

WIDTH, HEIGHT = 2.7, 0.72
COLOURS = {"text": "#dbe9f6", "flow": "#fde3cf", "guide": "#e2f0d9", "data": "#ffffff"}
# Name in the model, centre, colour. The left side is the whole, the right side one step of flow.
BOXES = [
    ("text_encoder", (1.6, 1.2), "text"),
    ("speaker_embedding", (1.6, 2.3), "text"),
    ("duration_predictor", (1.6, 4.2), "guide"),
    ("aligner", (1.6, 5.3), "guide"),
    ("flows.0", (5.2, 2.3), "flow"),
    ("flows.1", (5.2, 4.2), "flow"),
    ("flows.0.conditioner.attention_lstm", (9.8, 1.2), "flow"),
    ("flows.0.conditioner.attention", (9.8, 2.25), "flow"),
    ("flows.0.conditioner.lstm", (9.8, 3.3), "flow"),
    ("flows.0.conditioner.dense", (9.8, 4.35), "flow"),
    ("flows.0.conditioner.output", (9.8, 5.4), "flow"),
]
DATA = {"tokens, speaker_id": (1.6, 0.1), "mel": (5.2, 0.6), "z ~ N(0, sigma²)": (5.2, 5.9)}
DATA |= {"previous frames x[:t]": (9.8, 0.1), "log_scale, shift": (9.8, 6.5)}
ARROWS = [
    ((1.6, 0.3), (1.6, 0.8), ""),
    ((3.0, 1.4), (3.8, 2.1), "encoded"),
    ((3.0, 2.3), (3.8, 2.35), ""),
    ((3.0, 4.3), (3.8, 4.3), "prior"),
    ((3.0, 5.1), (3.8, 4.5), "prior, in training"),
    ((5.2, 0.8), (5.2, 1.9), "forward: training"),
    ((5.2, 2.7), (5.2, 3.8), ""),
    ((5.2, 4.6), (5.2, 5.7), "inverse: speaking"),
    *(((9.8, y + 0.38), (9.8, y + 0.67), "") for y in (1.2, 2.25, 3.3, 4.35)),
    ((9.8, 0.3), (9.8, 0.82), ""),
    ((9.8, 5.8), (9.8, 6.3), ""),
]


def label(model: nn.Module, name: str) -> str:
    """Name, class and number of weights of a module."""
    module = model.get_submodule(name)
    inner = next((f"({type(child).__name__})" for child in module.children() if name.startswith("flows.")), "")
    kind = f"{type(module).__name__}{inner if name.count('.') == 1 and inner != '(Conditioner)' else ''}"
    n_weights = sum(weight.numel() for weight in module.parameters())
    return f"{name.split('.')[-1] if name.count('.') > 1 else name}\n{kind}, {n_weights:,} weights"


def draw(config: Path, output: Path) -> None:
    """Draw the model of a config."""
    model = build_model(load_config(config).model)
    figure = Figure(figsize=(12, 6.6), layout="constrained")
    axes = figure.subplots()
    for name, (x, y), colour in BOXES:
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        box = FancyBboxPatch(corner, WIDTH, HEIGHT, "round,pad=0.03", facecolor=COLOURS[colour], edgecolor="#555555")
        axes.add_patch(box)
        axes.text(x, y, label(model, name), ha="center", va="center", fontsize=8)
    for text, (x, y) in DATA.items():
        axes.text(x, y, text, ha="center", va="center", fontsize=9, style="italic")
    for start, end, text in ARROWS:
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "#555555"})
        axes.text((start[0] + end[0]) / 2 + 0.06, (start[1] + end[1]) / 2 + 0.04, text, fontsize=7.5)
    n_flows = len(model.get_submodule("flows"))  # type: ignore[arg-type]
    axes.set_title(f"{type(model).__name__} of {config.name}: {n_flows} steps of flow", loc="left", fontsize=10)
    axes.text(9.8, 7.0, "conditioner of a step: x'[t] = exp(log_scale) · x[t] + shift", ha="center", fontsize=9)
    axes.plot([7.2, 7.2], [0, 6.9], color="#bbbbbb", linestyle=":")
    axes.set(xlim=(0, 12), ylim=(-0.2, 7.3))
    axes.axis("off")
    # Without a date and with fixed ids, the same model gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "flowtron", "svg.fonttype": "none"}):
        figure.savefig(output, format="svg", metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", type=Path, default=Path("configs/demo.json"))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/model.svg"))
    options = parser.parse_args(arguments)
    draw(options.config, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
