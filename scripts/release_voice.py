"""Turn a training's checkpoint into a bundled voice: float16 weights, paths of this machine left out.

python scripts/release_voice.py runs/demo demo --evaluation evaluation.json
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from flowtron.checkpoint import load_model, save_model
from flowtron.config import DataConfig, TrainConfig
from flowtron.errors import InputError, exit_code_of
from flowtron.run import checkpoints
from flowtron.synthesizer import VOICES

# Where things lay on the machine of the training means nothing to who loads the voice.
LOCAL_TRAIN = ("output_directory", "checkpoint_path", "warmstart_checkpoint_path")
LOCAL_DATA = ("training_files", "validation_files", "feature_cache_path")


def release(source: Path, name: str, evaluation: Path | None, output: Path = VOICES) -> Path:
    """Write the voice and return its folder.

    Args:
        source: checkpoint folder, or a training's output folder, whose last checkpoint is taken.
        name: of the voice.
        evaluation: report of `flowtron evaluate`, whose figures over all become the voice's metrics.
        output: folder of the voices.

    Raises:
        InputError: the checkpoint or the report cannot be read.
    """
    found = checkpoints(source)
    loaded = load_model(found[-1] if found else source)
    metrics = {key: value for key, value in loaded.metrics.items() if value is not None}
    if evaluation is not None:
        if not evaluation.is_file():
            raise InputError(f"{evaluation}: no such report; make it with flowtron evaluate.")
        summary = json.loads(evaluation.read_text(encoding="utf-8"))["summary"]["all"]
        metrics = {key: value for key, value in summary.items() if isinstance(value, int | float)}
    config = loaded.config.model_copy(deep=True)
    for key in LOCAL_TRAIN:
        setattr(config.train, key, TrainConfig.model_fields[key].default)
    for key in LOCAL_DATA:
        setattr(config.data, key, DataConfig.model_fields[key].default)
    # The folder is replaced in one go; the card that people wrote goes along.
    card = output / name / "README.md"
    text = card.read_bytes() if card.is_file() else None
    written = save_model(
        output / name,
        loaded.model,
        config,
        symbols=loaded.symbols,
        speakers=loaded.speakers,
        step=loaded.step,
        metrics=metrics,
        dtype=torch.float16,
        notes=loaded.notes,
    )
    if text is not None:
        card.write_bytes(text)
    return written


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="checkpoint, or a training's output folder")
    parser.add_argument("name", help="name of the voice")
    parser.add_argument("--evaluation", type=Path, default=None, help="JSON report of flowtron evaluate")
    parser.add_argument("--output", type=Path, default=VOICES, help="folder of the voices")
    options = parser.parse_args()
    return exit_code_of(lambda: print(release(options.source, options.name, options.evaluation, options.output)))


if __name__ == "__main__":
    sys.exit(main())
