"""Kill a training at random moments and compare its final state with that of a run never disturbed.

    python scripts/kill_training.py --kills 20

A tiny model on noise, with validation and a checkpoint every few steps, so that many kills fall into the writing of
one. Prints where each kill came; the exit code is 1 when any bit of weights, averages or optimizer differs.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from training import Run, last_state, same, tiny_config, write_corpus

COMPARED = ("iteration", "model", "optimizer", "schedule", "average", "sampler")


def main() -> int:
    """Run; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = write_corpus(folder / "corpus")

        def config(run: str):
            return tiny_config(corpus, folder / run, max_iters=options.iterations, iters_per_checkpoint=5)

        unbroken = Run(config("unbroken"))
        assert unbroken.finish(3600) == 0, unbroken.error()
        started = time.perf_counter()
        unbroken = Run(config("timed"))
        assert unbroken.finish(3600) == 0, unbroken.error()
        took = time.perf_counter() - started
        generator = np.random.default_rng(options.seed)
        kills = starts = 0
        while True:
            run = Run(config("killed"))
            starts += 1
            # Of the kills that remain, each takes about its share of what remains to be done.
            wait = generator.uniform(0.1, 2 * took / options.kills) if kills < options.kills else 3600
            run.process.join(wait)
            if run.process.exitcode is not None:
                assert run.process.exitcode == 0, run.error()
                break
            run.kill()
            run.finish()
            kills += 1
            states = sorted((folder / "killed").glob("training/*.pt"))
            print(f"kill {kills} after {wait:.2f} s; newest state {states[-1].stem if states else 'none'}", flush=True)
        ours, wanted = last_state(folder / "killed"), last_state(folder / "unbroken")
        different = [key for key in COMPARED if not same(ours[key], wanted[key])]
    print(f"{kills} kills, {starts} starts: " + (f"different: {different}" if different else "the same, bit for bit"))
    return 1 if different or kills < options.kills else 0


if __name__ == "__main__":
    sys.exit(main())
