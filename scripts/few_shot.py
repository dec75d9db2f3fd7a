"""Teach the bundled voice a new speaker from a few recordings, and measure how near it comes.

    python scripts/make_recordings.py --output recordings
    python scripts/few_shot.py --recordings recordings --output runs/few_shot

The new speaker starts at the mean of the voice's speakers. Prints the speaker similarity and the word
error rate before and after, on recordings held out from the training, beside those of the recordings themselves and of
their copy synthesis by the same vocoder.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from flowtron.checkpoint import load_model
from flowtron.config import Config
from flowtron.data import Utterance, read_filelist
from flowtron.errors import InputError, exit_code_of
from flowtron.evaluate import evaluate
from flowtron.synthesizer import VOICES, Synthesizer, bundled_voices
from flowtron.train import train

MEASURES = ("speaker_similarity", "wer", "cer", "dnsmos", "alignment_failures", "sentences")
OF_RECORDINGS = tuple(f"{measure}_{what}" for what in ("source", "copy") for measure in ("wer", "cer", "dnsmos"))


def recipe(voice: Path, recordings: Path, output: Path, iterations: int) -> Config:
    """Config that fine-tunes the whole of a voice on one new speaker, at a low learning rate."""
    config = load_model(voice).config.model_copy(deep=True)
    config.model.n_speakers = 1
    settings: dict[str, Any] = {
        "output_directory": str(output),
        "warmstart_checkpoint_path": str(voice),
        "max_iters": iterations,
        "learning_rate": 1e-4,
        "lr_warmup_iters": 20,
        "ema_decay": 0.98,
        "iters_per_checkpoint": iterations,
        "aligner_iters": 0,
        "flow_start_iters": [],
    }
    for key, value in settings.items():
        setattr(config.train, key, value)
    config.data.training_files = str(recordings / "train.txt")
    config.data.validation_files = str(recordings / "val.txt")
    config.data.feature_cache_path = str(recordings / "cache")
    return config


def judge(voice: Synthesizer, references: list[Utterance]) -> dict[str, float]:
    """Speak the texts of recordings as the voice's first speaker and measure how near that comes to them."""
    as_first = [Utterance(u.path, u.text, voice.speakers[0]) for u in references]
    summary, _ = evaluate(voice, as_first)
    return {name: summary["all"][name] for name in (*MEASURES, *OF_RECORDINGS)}


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voice", type=Path, default=None, help="checkpoint folder; the bundled voice by default")
    parser.add_argument("--recordings", type=Path, default=Path("recordings"), help="folder of make_recordings.py")
    parser.add_argument("--output", type=Path, default=Path("runs/few_shot"))
    parser.add_argument("--iterations", type=int, default=300)
    options = parser.parse_args()

    def work() -> None:
        if options.voice is None and not bundled_voices():
            raise InputError("no voice is bundled; name a checkpoint folder with --voice.")
        voice = options.voice or VOICES / bundled_voices()[0]
        references = read_filelist(options.recordings / "test.txt")
        report = {"before": judge(Synthesizer.load(voice), references)}
        tuned = train(recipe(voice, options.recordings, options.output, options.iterations))
        report["after"] = judge(Synthesizer.load(tuned), references)
        text = json.dumps(report, indent=1)
        (options.output / "few_shot.json").write_text(text + "\n", encoding="utf-8")
        print(text)

    return exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main())
