"""Speak a sentence in every speaker of the bundled voice: wav, mel and attention pictures in demo/."""

import argparse
import sys
import time
from pathlib import Path

import flowtron

SENTENCE = "It is well known that deep generative models have a rich latent space."


def main() -> int:
    """Run the demonstration; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="*", default=[SENTENCE], help=f"what to say (default: {SENTENCE})")
    text = " ".join(parser.parse_args().text)
    started = time.perf_counter()
    voice = flowtron.load("demo")
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
