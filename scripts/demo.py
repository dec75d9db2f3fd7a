"""Speak a sentence in every speaker of the bundled voice: wav, mel and attention pictures in demo/.

Without a bundled voice it makes a small corpus, trains on it for a few minutes, and speaks with that.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import flowtron
from flowtron.synthesizer import bundled_voices

SENTENCE = "It is well known that deep generative models have a rich latent space."
ROOT = Path(__file__).resolve().parent.parent


def train_a_little() -> Path:
    """Make a small corpus and train a small model on it; return its checkpoint."""
    corpus, run = ROOT / "corpus", ROOT / "runs" / "demo"
    python = [sys.executable]
    subprocess.run([*python, "-m", "pip", "install", "-q", "-e", f"{ROOT}[corpus]"], check=True)
    subprocess.run(
        [*python, str(ROOT / "scripts/make_corpus.py"), "--hours", "0.2", "--output", str(corpus)], check=True
    )
    overrides = ["train_config.max_hours=0.2", f"train_config.output_directory={run}", "train_config.max_iters=1500"]
    overrides += ["train_config.aligner_iters=400", "train_config.flow_start_iters=[400,900]"]
    overrides += [f"data_config.training_files={corpus}/train.txt", f"data_config.validation_files={corpus}/val.txt"]
    command = [*python, "-m", "flowtron.train", "-c", str(ROOT / "configs/demo.json"), "-p", *overrides]
    subprocess.run(command, check=True)
    return max((run / "checkpoints").iterdir())


def main() -> int:
    """Run the demonstration; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="*", default=[SENTENCE], help=f"what to say (default: {SENTENCE})")
    text = " ".join(parser.parse_args().text)
    started = time.perf_counter()
    voices = bundled_voices()
    voice = flowtron.load(voices[0] if voices else train_a_little())
    output = Path("demo")
    output.mkdir(exist_ok=True)
    for speaker in voice.speakers:
        began = time.perf_counter()
        speech = voice(text, speaker=speaker)
        wav, picture = speech.save(output / f"{speaker}.wav"), speech.plot(output / f"{speaker}.png")
        print(f"{wav} and {picture}: {speech.seconds:.1f} s of speech, made in {time.perf_counter() - began:.1f} s")
    print(f"done in {time.perf_counter() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
