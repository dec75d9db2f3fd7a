"""Training under faults: whatever happens, every checkpoint is readable and the final weights are the undisturbed ones.

    python scripts/fault_test.py             all of them
    python scripts/fault_test.py disk        one kind only: disk, readonly, worker, rank

Signals at random moments are sent by kill_training.py.

A tiny model on a corpus of noises; what matters is the order in which files appear. The full disk and the read-only
folder are a small tmpfs, which takes root to mount.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from training import check_readable, last_state, same, tiny_config, write_corpus

ROOT = Path(__file__).parent.parent
COMPARED = ("model", "optimizer", "average", "sampler", "iteration")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SECONDS = 600.0  # that one run may take


def start(folder: Path, output: Path, launcher: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
    """Start a training in a process group of its own."""
    config = folder / f"{output.name}.json"
    values = tiny_config(folder / "corpus", output, **options).to_json()
    config.write_text(json.dumps(values))
    command = [sys.executable, *launcher, "-m", "flowtron.cli", "train", "-c", str(config)]
    return subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process; return its exit code and what it said."""
    _, said = process.communicate(timeout=SECONDS)
    return process.returncode, said


def complete(folder: Path, output: Path, launcher: tuple[str, ...] = (), **options: Any) -> None:
    """Start a run again until it ends by itself."""
    code, said = finish(start(folder, output, launcher, **options))
    assert code == 0, said


def check_same(output: Path, unbroken: Path) -> None:
    """Compare the last states of two runs, bit for bit."""
    ours, theirs = last_state(output), last_state(unbroken)
    different = [key for key in COMPARED if not same(ours[key], theirs[key])]
    assert not different, f"{', '.join(different)} differ from the undisturbed run's"


@contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[Path]:
    """Mount a small file system in memory."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Change the options of a mounted file system."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def one_sentence(code: int, said: str) -> str:
    """Check that a run ended by telling why, in one sentence."""
    lines = [line for line in said.splitlines() if line.startswith("flowtron")]
    assert code in (1, 2) and "Traceback" not in said and lines, (code, said)
    return lines[-1]


def disk(folder: Path, unbroken: Path) -> str:
    """A disk that fills up while the run goes on, and is then given room."""
    size = sum(path.stat().st_size for path in unbroken.rglob("*") if path.is_file())
    with tmpfs(folder / "disk", f"{int(size * 0.8) // 4096 * 4096}") as mounted:
        output = mounted / "run"
        code, said = finish(start(folder, output, iters_per_checkpoint=1, keep_checkpoints=9))
        sentence = one_sentence(code, said)
        loaded = check_readable(output)
        remount(mounted, "size=64m")
        complete(folder, output, iters_per_checkpoint=1)
        check_same(output, unbroken)
    return f"{loaded} files whole on the full disk; with room it goes on to the same bits; said: {sentence}"


def readonly(folder: Path, unbroken: Path) -> str:
    """An output folder that becomes read-only."""
    with tmpfs(folder / "readonly", "64m") as mounted:
        output = mounted / "run"
        complete(folder, output, max_iters=4)
        remount(mounted, "ro")
        code, said = finish(start(folder, output))
        sentence = one_sentence(code, said)
        loaded = check_readable(output)
        remount(mounted, "rw")
        complete(folder, output)
        check_same(output, unbroken)
    return f"{loaded} files whole; writable again it goes on to the same bits; said: {sentence}"


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(each) for each in found.stdout.split()]


def worker(folder: Path, unbroken: Path) -> str:
    """A loader worker that is killed."""
    output = folder / "worker"
    endless = {"max_iters": 100_000, "iters_per_checkpoint": 1, "n_workers": 1}
    process = start(folder, output, **endless)
    until = time.monotonic() + SECONDS
    while not (found := children(process.pid)) or not list(output.glob("checkpoints/*")):
        assert process.poll() is None and time.monotonic() < until, process.stderr and process.stderr.read()
        time.sleep(0.1)
    # Only the loader's worker: a training without a GPU has no other children.
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    sentence = one_sentence(*finish(process))
    loaded = check_readable(output)
    reached = last_state(output)["iteration"]
    complete(folder, output, max_iters=reached + 2, n_workers=1)
    return f"{loaded} files whole; the run goes on from iteration {reached}; said: {sentence}"


def rank(folder: Path, unbroken: Path) -> str:
    """One of two processes under torchrun that is killed; torchrun starts both again."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3")
    undisturbed, output = folder / "two_ranks", folder / "rank"
    complete(folder, undisturbed, launcher, iters_per_checkpoint=2)
    process = start(folder, output, launcher, iters_per_checkpoint=2)
    until = time.monotonic() + SECONDS
    while not list(output.glob("training/*.pt")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    killed = max(children(process.pid))
    os.kill(killed, signal.SIGKILL)
    code, said = finish(process)
    assert code == 0, said[-2000:]
    loaded = check_readable(output)
    check_same(output, undisturbed)
    return f"torchrun started both again; {loaded} files whole, the same bits as two undisturbed processes"


CASES: dict[str, Callable[[Path, Path], str]] = {
    "disk": disk,
    "readonly": readonly,
    "worker": worker,
    "rank": rank,
}


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), help=f"of {', '.join(CASES)}; all if absent")
    options = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus")
        unbroken = folder / "unbroken"
        complete(folder, unbroken)
        for case in options.cases:
            began = time.monotonic()
            try:
                outcome = CASES[case](folder, unbroken)
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                failures += 1
                outcome = f"FAILED: {type(error).__name__}: {str(error)[-1500:]}"
            print(f"{case} ({time.monotonic() - began:.0f} s): {outcome}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
