"""Memory that stays flat: many utterances spoken, many steps trained, resident memory between the middle and the end.

    python scripts/leak_test.py VOICE                                   1,000 utterances and 2,000 steps
    python scripts/leak_test.py VOICE --utterances 100 --steps 200      shorter

Exit code 1 when memory grew by more than 3 % and 20 MB in the second half.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from training import tiny_config, write_corpus

SENTENCES = (
    "Hello.",
    "The quick brown fox jumps over the lazy dog.",
    "It is well known that deep generative models have a rich latent space.",
    "At 9:30 on the 21st, she paid $5.50 for 3 books; then she left.",
)


def resident_mb() -> float:
    """Resident memory of this process in megabytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def grown(name: str, measured: Iterable[float]) -> bool:
    """Print how memory went; whether the last quarter's median lies clearly above the second quarter's."""
    values = list(measured)
    quarter = max(1, len(values) // 4)
    quarters = [sorted(values[k * quarter : (k + 1) * quarter]) for k in range(4)]
    medians = [each[len(each) // 2] for each in quarters if each]
    growth = medians[-1] - medians[1] if len(medians) > 1 else 0.0
    print(
        f"{name}: resident memory by quarters {', '.join(f'{m:.0f}' for m in medians)} MB ({growth:+.0f} MB)",
        flush=True,
    )
    return growth > max(20.0, 0.03 * medians[1])


def speak(voice: str, n: int) -> Iterable[float]:
    """Speak n utterances of different lengths, one by one; yield the memory after each."""
    from flowtron.synthesizer import Synthesizer

    synthesizer = Synthesizer.load(voice)
    for k in range(n):
        synthesizer(SENTENCES[k % len(SENTENCES)], seed=k, attempts=1)
        yield resident_mb()


def train(n: int) -> Iterable[float]:
    """Train n steps, with validations and checkpoints between; yield the memory after each."""
    import flowtron.train as module

    measured: list[float] = []
    original = module.step

    def measuring(*arguments: object, **options: object) -> object:
        result = original(*arguments, **options)  # type: ignore[arg-type]
        measured.append(resident_mb())
        return result

    with tempfile.TemporaryDirectory() as name:
        corpus = write_corpus(Path(name) / "corpus")
        config = tiny_config(corpus, Path(name) / "run", max_iters=n, iters_per_checkpoint=200, with_tensorboard=True)
        module.step = measuring  # type: ignore[assignment]
        try:
            module.train(config)
        finally:
            module.step = original
    return measured


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("voice", help="checkpoint folder or bundled voice")
    parser.add_argument("--utterances", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    leaks = [
        grown(f"{options.utterances} utterances", speak(options.voice, options.utterances)),
        grown(f"{options.steps} training steps", train(options.steps)),
    ]
    return int(any(leaks))


if __name__ == "__main__":
    sys.exit(main())
