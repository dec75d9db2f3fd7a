"""What every training has, of a model or a vocoder: its processes, its folder, how it stops and how it goes on."""

import contextlib
import gc
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from filelock import FileLock, Timeout
from torch import Tensor, nn

from flowtron.checkpoint import best_checkpoint, load_training_state, save_training_state
from flowtron.config import Config, TrainConfig
from flowtron.device import keep_freed_memory
from flowtron.errors import InputError
from flowtron.optim import Average, Schedule, build_optimizer, skip_unless
from flowtron.tensorfile import replaced_file
from flowtron.warmstart import freeze_all_but

MAX_BAD_STEPS = 10
# Several processes ask each other whether to stop after so many iterations, or earlier when that takes longer.
AGREE_EVERY = 10
AGREE_SECONDS = 2.0
LOCK = ".lock"  # held by a run on its output directory


def mixed_precision(train: TrainConfig) -> str:
    """Name accelerate's mode for the configured precision; log-determinants and softmax stay in float32 in all.

    `fp16_run` asks for half precision where it is fast: bfloat16 on a GPU or CPU that has it, float16 on another GPU.

    Raises:
        InputError: float16 is asked of a CPU.
    """
    has_gpu = torch.cuda.is_available()
    if train.precision == "float16" and not has_gpu:
        raise InputError("train_config.precision is float16, which only GPUs train in; use bfloat16 or float32.")
    if train.precision or not train.fp16_run:
        return {"bfloat16": "bf16", "float16": "fp16"}.get(train.precision, "no")
    if has_gpu:
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)() else "no"


def start_processes(config: Config) -> Accelerator:
    """Join the other processes of the run, if torchrun started several."""
    train, model = config.train, config.model
    # In stages, and beside an aligner that rests, some weights have no gradient; otherwise nobody need look for them.
    has_idle_weights = bool(model.aligner_dim or train.flow_start_iters or not train.gate_loss)
    handlers: list[Any] = [DistributedDataParallelKwargs(find_unused_parameters=has_idle_weights)]
    has_gpu = torch.cuda.is_available()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        backend = config.dist.dist_backend if has_gpu else "gloo"
        # The others wait while the first process validates.
        handlers.append(InitProcessGroupKwargs(backend=backend, timeout=timedelta(hours=2)))
    # It is a global of accelerate's, and an earlier training in this process may have left another precision in it.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=mixed_precision(train), cpu=not has_gpu, kwargs_handlers=handlers)
    keep_freed_memory()
    if train.n_threads:
        torch.set_num_threads(train.n_threads)
    return accelerator


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("checkpoints/*") if path.name.isdigit())


def training_states(folder: Path) -> list[Path]:
    """Training states of a run, oldest first."""
    return sorted(path for path in folder.glob("training/*.pt") if path.stem.isdigit())


def newest_state(config: Config) -> Path | None:
    """The training state to go on from: the newest of the output directory, else `checkpoint_path`, else None."""
    files = training_states(Path(config.train.output_directory))
    if files:
        return files[-1]
    return Path(config.train.checkpoint_path) if config.train.checkpoint_path else None


def forget_old(folder: Path, keep: int) -> None:
    """Delete all of a run but the newest checkpoints and the best, and what a kill left half-written."""
    for path in checkpoints(folder)[:-keep]:
        if path != best_checkpoint(folder):
            shutil.rmtree(path)
    for path in training_states(folder)[:-keep]:
        path.unlink()
    # By our names alone: the folder may hold what is not ours.
    for path in [*folder.glob(".best.*"), *folder.glob("checkpoints/.[0-9]*"), *folder.glob("training/.[0-9]*.pt.*")]:
        if path.is_dir() and path.suffix in (".new", ".old"):
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


@dataclass(kw_only=True)
class Run:
    """All that moves during a training; `objective` is the network (`.model`) together with its losses."""

    config: Config
    accelerator: Accelerator
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    average: Average | None
    iteration: int = 0
    bad_steps: int = 0
    is_measured: bool = True  # whether what was validated last is of these weights, where validation is due
    saved_iteration: int = -1
    _agreement: tuple[int, float] = (0, 0.0)  # iteration and second of the last one, by should_stop
    _agree_after: int = 1

    @property
    def trained(self) -> nn.Module:
        """The bare network with the weights being trained."""
        model: nn.Module = self.accelerator.unwrap_model(self.objective).model
        return model

    @property
    def best_weights(self) -> nn.Module:
        """The network to use: with the averaged weights where there are any."""
        return self.trained if self.average is None else self.average.module

    @property
    def folder(self) -> Path:
        """Where checkpoints and logs go."""
        return Path(self.config.train.output_directory)

    @property
    def checkpoint(self) -> Path:
        """The folder of this iteration's checkpoint."""
        return self.folder / "checkpoints" / f"{self.iteration:08d}"

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do, as when a run that has ended is started again."""
        max_iters = self.config.train.max_iters
        return 0 < max_iters <= self.iteration or self.schedule.is_exhausted

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(values)
        return values

    def mean_over_processes(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means of named losses over all processes."""
        if self.accelerator.num_processes == 1:
            return losses
        means = self.sum_over_processes(torch.stack(list(losses.values()))) / self.accelerator.num_processes
        return dict(zip(losses, means.unbind()))

    def update(self, finite: Tensor) -> None:
        """Move the weights by their gradients, unless loss or gradient are not finite, and clear the gradients."""
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        # Scaling of float16 losses looks for overflow itself, and has to, to find its scale.
        if self.accelerator.scaler is not None or skip_unless(inner, finite):
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.trained, finite)
        self.optimizer.zero_grad()

    def tell_bad_step(self, paths: Sequence[str], iteration: int | None = None) -> None:
        """Name the recordings of this process in a step that was left out, of this iteration when None."""
        names = ", ".join(paths[:8]) + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")
        where = f" (process {self.accelerator.process_index})" if self.accelerator.num_processes > 1 else ""
        at = self.iteration if iteration is None else iteration
        print(f"iteration {at}{where}: loss or gradient is not finite, skipped: {names}", file=sys.stderr)

    def give_up(self) -> NoReturn:
        """Stop after too many steps that were left out, the state being saved.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"{self.bad_steps} steps in a row had no finite loss or gradient; the state is saved in {self.folder}, "
            "look at the files named above or lower train_config.learning_rate."
        )

    def should_stop(self, requested: bool) -> bool:
        """Whether to save and stop; several processes agree on it, so that none waits for one that has left."""
        if self.accelerator.num_processes == 1:
            return requested
        before, then = self._agreement
        if self.iteration < before + self._agree_after:
            return False
        now = time.monotonic()
        mine = torch.tensor([float(requested), now - then if before else AGREE_SECONDS], dtype=torch.float64)
        stops, seconds = self.sum_over_processes(mine.float().to(self.accelerator.device)).tolist()
        # All count on from the same numbers, so all ask again at the same iteration.
        a_step = seconds / self.accelerator.num_processes / max(1, self.iteration - before)
        self._agreement = self.iteration, now
        self._agree_after = max(1, min(AGREE_EVERY, int(AGREE_SECONDS / max(a_step, 1e-6))))
        return bool(stops > 0)

    def measure(self, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Let the first process measure, and tell the others what it found."""
        measured = [evaluate() if self.accelerator.is_main_process else {}]
        # Pictures hold megabytes in reference cycles, which Python, seeing few objects, would not look for.
        gc.collect()
        if self.accelerator.num_processes > 1:
            torch.distributed.broadcast_object_list(measured)
        return measured[0]

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on."""
        return {
            "iteration": self.iteration,
            "bad_steps": self.bad_steps,
            "is_measured": self.is_measured,
            "optim_algo": self.config.train.optim_algo,
            "model": self.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take up what `state_dict` gave; a run that averages only now starts with the weights that it has.

        The optimizer's settings are those of the config.

        Raises:
            ValueError: another optimizer's.
        """
        algorithm = self.config.train.optim_algo
        if saved.get("optim_algo", algorithm) != algorithm:
            raise ValueError(f"its optim_algo is {saved['optim_algo']}, the config's {algorithm}")
        self.trained.load_state_dict(saved["model"])
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(saved["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings):
            group.update(own)
        if self.average is not None:
            if saved["average"] is None:
                self.average.module.load_state_dict(saved["model"])
            else:
                self.average.load_state_dict(saved["average"])
        if self.accelerator.scaler is not None and saved.get("scaler"):
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.schedule.load_state_dict(saved["schedule"])
        self.iteration, self.bad_steps = saved["iteration"], saved["bad_steps"]
        self.is_measured, self.saved_iteration = saved.get("is_measured", True), self.iteration

    def resume(self, path: Path, saved: dict[str, Any] | None = None) -> None:
        """Go on from a training state, which was read already if it is given.

        Raises:
            InputError: it is damaged or of another model.
        """
        try:
            self.load_state_dict(load_training_state(path) if saved is None else saved)
        except (KeyError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise InputError(
                f"{path}: a training state of another model or optimizer ({reason}); go on with its own config, or "
                "start anew with train_config.warmstart_checkpoint_path and another output_directory."
            ) from None
        self.accelerator.print(f"resumed from {path} at iteration {self.iteration}")

    def save_state(self) -> None:
        """Write the state to go on from."""
        file = self.folder / "training" / f"{self.iteration:08d}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_training_state(file, self.state_dict())
        self.saved_iteration = self.iteration

    def save(self, write_checkpoint: Callable[[Path], object], is_best: bool) -> Path:
        """Write a checkpoint with the state to go on from, forget old ones, and return the checkpoint's folder.

        The training state comes last: whatever a kill leaves unfinished before it is written again, the same, by the
        run that goes on from the state before.
        """
        path = self.checkpoint
        write_checkpoint(path)
        if is_best:
            with replaced_file(self.folder / "best") as note:
                note.write(path.name.encode())
        self.save_state()
        forget_old(self.folder, self.config.train.keep_checkpoints)
        return path

    def validate_and_save(
        self, evaluate: Callable[[], dict[str, float]], save: Callable[[dict[str, float], bool], object]
    ) -> Path:
        """Measure, note whether it is the best, and save; the first process does it, and tells the others.

        The state is written before as well, marked as not measured, so that nothing that happens to the measuring
        costs the steps taken; a run that goes on from it measures first.
        """
        self.is_measured = False
        if self.accelerator.is_main_process:
            self.save_state()
        metrics = self.measure(evaluate)
        # Losses of different stages do not compare: until the last has begun, the newest is the best.
        is_settled = bool(self.config.vocoder.kind) or self.iteration >= self.config.settled_iteration
        is_best = not is_settled or self.schedule.validated(metrics["validation/total"])
        self.is_measured = True
        if self.accelerator.is_main_process:
            save(metrics, is_best)
        self.accelerator.wait_for_everyone()
        return self.checkpoint


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other trainings out of an output directory, which is made if there is none.

    Raises:
        InputError: another one is in it, or it cannot be written.
    """
    if int(os.environ.get("RANK", 0)):
        yield
        return
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{folder}: another training is running in it; wait for its end or name another "
            "train_config.output_directory."
        ) from None
    except NotImplementedError:  # a file system without locks
        pass
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another place.") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def steps_kept(state: Run, save: Callable[[], object]) -> Iterator[None]:
    """Save the steps taken since the last checkpoint when an error ends the training.

    Raises:
        InputError: as it came.
    """
    try:
        yield
    except InputError:
        if state.accelerator.is_main_process and state.iteration > max(0, state.saved_iteration):
            save()
        raise


def moving_parts(config: Config, accelerator: Accelerator, model: nn.Module, objective: nn.Module) -> dict[str, Any]:
    """Return the fields of a new `Run`: its network frozen as configured, with optimizer, average and schedule."""
    train = config.train
    if train.finetune_layers:
        accelerator.print(freeze_all_but(model, train.finetune_layers))
    optimizer = build_optimizer((p for p in model.parameters() if p.requires_grad), train)
    average = Average(model, train.ema_decay).to(accelerator.device) if train.ema_decay else None
    objective, optimizer = accelerator.prepare(objective, optimizer)
    return {
        "config": config,
        "accelerator": accelerator,
        "objective": objective,
        "optimizer": optimizer,
        "schedule": Schedule(optimizer, train),
        "average": average,
    }


class Interrupt(contextlib.AbstractContextManager["Interrupt"]):
    """Asks a training to save and stop: at the first SIGINT or SIGTERM, or when its hours are over."""

    def __init__(self, max_hours: float = 0.0) -> None:
        self.by_signal = self.by_keyboard = False
        self._deadline = time.monotonic() + max_hours * 3600 if max_hours > 0 else float("inf")

    @property
    def requested(self) -> bool:
        """Whether to save and stop."""
        return self.by_signal or time.monotonic() > self._deadline

    def __enter__(self) -> "Interrupt":
        self._previous = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _request(self, number: int, frame: object) -> None:
        if self.by_signal:
            raise KeyboardInterrupt
        self.by_signal, self.by_keyboard = True, number == signal.SIGINT
        print("saving, then stopping; once more to stop at once", file=sys.stderr)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
