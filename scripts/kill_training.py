"""Kill a training at random moments and compare its final state with that of a run never disturbed.

    python scripts/kill_training.py --kills 50

A tiny model on noise, with validation and a checkpoint every few steps. The kills take turns: SIGKILL, SIGTERM and
SIGINT at a random moment, and SIGKILL at a random step of a checkpoint's writing (before a rename, a sync or a
removal). After each, every checkpoint and state that can be seen is loaded. The exit code is 1 when one cannot be
read, or any bit of weights, averages or optimizer differs in the end.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from training import Run, check_readable, last_state, same, tiny_config, write_corpus

COMPARED = ("iteration", "model", "optimizer", "schedule", "average", "sampler")
KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGKILL in writing")
OPERATIONS_IN_WRITING = 40  # renames, syncs and removals among which a death within writing falls


def newest(output: Path) -> str:
    """Name of the newest training state of a run, or nothing."""
    return max((path.stem for path in output.glob("training/*.pt")), default="")


def main() -> int:
    """Run; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=1200, help="of the whole run (default: %(default)s)")
    parser.add_argument("--every", type=int, default=5, help="iterations between checkpoints (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = np.random.default_rng(options.seed)
    killed: Counter[str] = Counter()
    starts = loaded = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = write_corpus(folder / "corpus")

        def config(run: str):
            return tiny_config(corpus, folder / run, max_iters=options.iterations, iters_per_checkpoint=options.every)

        started = time.perf_counter()
        unbroken = Run(config("unbroken"))
        assert unbroken.finish(3600) == 0, unbroken.error()
        took = time.perf_counter() - started
        print(f"undisturbed: {options.iterations} iterations in {took:.1f} s", flush=True)
        wanted, output = last_state(folder / "unbroken"), folder / "killed"
        while True:
            kind = KINDS[killed.total() % len(KINDS)] if killed.total() < options.kills else "none"
            dies_at = int(generator.integers(1, OPERATIONS_IN_WRITING)) if kind.endswith("writing") else 0
            run = Run(config("killed"), dies_at=dies_at)
            starts += 1
            before = newest(output)
            # One in four falls into the start; the others come after the first checkpoint of their start.
            settled = generator.uniform() < 0.75
            while settled and newest(output) == before and run.process.is_alive():
                time.sleep(0.01)
            run.process.join(generator.uniform(0, took / options.kills) if kind in KINDS[:3] else 3600)
            if run.process.exitcode == 0:
                break
            if run.process.exitcode is None:
                run.kill(getattr(signal, kind))
                run.finish()
            killed[kind] += 1
            files = check_readable(output)
            loaded += files
            print(f"{killed.total()}. {kind}: reached {newest(output) or 'nothing'}, {files} files read", flush=True)
        ours = last_state(output)
        different = [key for key in COMPARED if not same(ours[key], wanted[key])]
    shown = ", ".join(f"{count} {kind}" for kind, count in killed.items())
    print(f"{starts} starts, {shown}; {loaded} files loaded in between")
    print("the final state " + (f"differs: {', '.join(different)}" if different else "is the same, bit for bit"))
    return 1 if different or killed.total() < options.kills else 0


if __name__ == "__main__":
    sys.exit(main())
