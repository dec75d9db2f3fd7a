"""Training: one visible loop, its checkpoints and its log.

    python -m flowtron.train -c configs/demo.json -p train_config.learning_rate=1e-3

Started again with the same output directory, it goes on where it stopped.
"""

import argparse
import contextlib
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import nn
from torch.optim.swa_utils import AveragedModel

from flowtron.checkpoint import load_training_state, save_model, save_training_state
from flowtron.config import Config, load_config
from flowtron.data import Batch, Dataset, LengthBucketBatchSampler, SpeakerTable, make_loader, read_filelist
from flowtron.errors import InputError
from flowtron.model import Flowtron, build_model
from flowtron.monitor import Monitor, evaluate
from flowtron.objective import Losses, Objective
from flowtron.optim import Schedule, averaged, build_optimizer
from flowtron.text import SYMBOLS, Tokenizer
from flowtron.warmstart import freeze_all_but, warm_start

MAX_BAD_BATCHES = 10


@dataclass
class State:
    """All that moves during training."""

    config: Config
    accelerator: Accelerator
    speakers: SpeakerTable
    tokenizer: Tokenizer
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    average: AveragedModel | None
    sampler: LengthBucketBatchSampler
    loader: Any
    validation: Dataset
    iteration: int = 0
    epoch: int = 0
    bad_batches: int = 0

    @property
    def model(self) -> Flowtron:
        """The bare model with the weights being trained."""
        return self.accelerator.unwrap_model(self.objective).model

    @property
    def voice(self) -> Flowtron:
        """The model to synthesize with: the averaged weights where there are any."""
        if self.average is None:
            return self.model
        assert isinstance(self.average.module, Flowtron)
        return self.average.module

    @property
    def folder(self) -> Path:
        """Where checkpoints and logs go."""
        return Path(self.config.train.output_directory)


def prepare_tokenizer(config: Config) -> Tokenizer:
    """Build the tokenizer of a config.

    Raises:
        InputError: the model's table has not as many rows as there are symbols.
    """
    symbols = tuple(config.model.symbols or SYMBOLS)
    if len(symbols) != config.model.n_text:
        raise InputError(
            f"model_config.n_text is {config.model.n_text}, but there are {len(symbols)} symbols; make them equal."
        )
    data = config.data
    return Tokenizer(symbols, tuple(data.text_cleaners), data.p_arpabet, data.keep_ambiguous)


def prepare(config: Config) -> State:
    """Build everything from a config, with the state of an earlier run of the same output directory.

    Raises:
        InputError: something that the config names is missing or does not fit.
    """
    train, data = config.train, config.data
    if train.n_threads:
        torch.set_num_threads(train.n_threads)
    set_seed(train.seed)
    # bfloat16 needs no loss scaling; without hardware for it, a CPU would only be slower.
    half = "no"
    if train.fp16_run and torch.cuda.is_available():
        half = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    elif train.fp16_run and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        half = "bf16"
    accelerator = Accelerator(
        mixed_precision=half,
        gradient_accumulation_steps=train.accumulate,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    tokenizer = prepare_tokenizer(config)
    utterances = read_filelist(data.training_files)
    speakers = SpeakerTable.from_utterances(utterances)
    if len(speakers) > config.model.n_speakers:
        raise InputError(
            f"{data.training_files}: {len(speakers)} speakers, but model_config.n_speakers is "
            f"{config.model.n_speakers}; set it to at least {len(speakers)}."
        )
    datasets = [
        Dataset(
            rows,
            tokenizer,
            config.audio_settings(),
            speakers,
            cache_dir=data.feature_cache_path or None,
            resample=data.resample,
            trim_db=data.trim_db,
            seed=train.seed,
        )
        for rows in (utterances, read_filelist(data.validation_files))
    ]
    sampler = LengthBucketBatchSampler(
        datasets[0].lengths(),
        batch_size=None if data.frames_per_batch else train.batch_size,
        frames_per_batch=data.frames_per_batch or None,
        seed=train.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    model = build_model(config.model)
    if train.warmstart_checkpoint_path:
        table = warm_start(model, train.warmstart_checkpoint_path, train.include_layers, train.ignore_layers)
        accelerator.print(table)
    if train.finetune_layers:
        accelerator.print(freeze_all_but(model, train.finetune_layers))
    objective = Objective(model, train, data.betab_scaling_factor, data.use_attn_prior)
    optimizer = build_optimizer((p for p in model.parameters() if p.requires_grad), train)
    average = averaged(model, train.ema_decay) if train.ema_decay else None
    objective, optimizer = accelerator.prepare(objective, optimizer)
    if average is not None:
        average.to(accelerator.device)
    state = State(
        config,
        accelerator,
        speakers,
        tokenizer,
        objective,
        optimizer,
        Schedule(optimizer, train),
        average,
        sampler,
        make_loader(datasets[0], sampler, n_workers=data.n_workers),
        datasets[1],
    )
    resume(state)
    return state


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("checkpoints/*") if path.name.isdigit())


def save(state: State, metrics: dict[str, float]) -> Path:
    """Write a checkpoint, the model to speak with beside the state to go on with, and forget old ones."""
    path = state.folder / "checkpoints" / f"{state.iteration:08d}"
    random_state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        random_state["cuda"] = torch.cuda.get_rng_state()
    training = {
        "iteration": state.iteration,
        "epoch": state.epoch,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "average": None if state.average is None else state.average.state_dict(),
        "sampler": state.sampler.state_dict(),
        "random": random_state,
    }
    # The training state goes first: a model without it would look like a whole checkpoint.
    training_file = state.folder / "training" / f"{state.iteration:08d}.pt"
    training_file.parent.mkdir(parents=True, exist_ok=True)
    save_training_state(training_file, training)
    save_model(
        path,
        state.voice,
        state.config,
        symbols=list(state.tokenizer.symbols),
        speakers=state.speakers.names,
        step=state.iteration,
        metrics=metrics,
    )
    return path


def forget_old(state: State, keep: set[Path]) -> None:
    """Delete all but the newest checkpoints and those to keep."""
    import shutil

    for path in checkpoints(state.folder)[: -state.config.train.keep_checkpoints]:
        if path not in keep:
            shutil.rmtree(path)
    names = {path.name for path in checkpoints(state.folder)[-state.config.train.keep_checkpoints :]}
    for training_file in (state.folder / "training").glob("*.pt"):
        if training_file.stem not in names:
            training_file.unlink()


def resume(state: State) -> None:
    """Go on from the newest whole checkpoint of the output directory, or from `checkpoint_path`."""
    files = sorted((state.folder / "training").glob("*.pt"))
    if not files and state.config.train.checkpoint_path:
        files = [Path(state.config.train.checkpoint_path)]
    if not files:
        return
    saved = load_training_state(files[-1])
    state.iteration, state.epoch = saved["iteration"], saved["epoch"]
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.schedule.load_state_dict(saved["schedule"])
    if state.average is not None and saved["average"] is not None:
        state.average.load_state_dict(saved["average"])
    state.sampler.load_state_dict(saved["sampler"])
    torch.set_rng_state(saved["random"]["torch"])
    if torch.cuda.is_available() and "cuda" in saved["random"]:
        torch.cuda.set_rng_state(saved["random"]["cuda"])
    state.accelerator.print(f"resumed from {files[-1]} at iteration {state.iteration}")


def batches(state: State) -> Iterator[Batch]:
    """Batches of all epochs, from where the sampler stands."""
    while state.epoch < state.config.train.epochs:
        state.sampler.set_epoch(state.epoch)
        state.loader.dataset.set_epoch(state.epoch)
        for batch in state.loader:
            state.sampler.advance()
            yield batch.to(state.accelerator.device, non_blocking=True)
        state.epoch += 1


def global_share(state: State, batch: Batch) -> float:
    """Weight of this process's mean loss, so that the average over processes is the mean over the global batch."""
    if state.accelerator.num_processes == 1:
        return 1.0
    frames = batch.mel_lengths.sum().float()
    return float(frames / state.accelerator.reduce(frames.clone(), reduction="mean"))


def step(state: State, batch: Batch) -> tuple[Losses, float] | None:
    """Take one optimizer step; return the losses and the gradient's norm, or None when they are not finite."""
    accelerator, train = state.accelerator, state.config.train
    state.objective.train()
    state.schedule.apply(state.iteration)
    with accelerator.accumulate(state.objective):
        with accelerator.autocast():
            losses: Losses = state.objective(batch, state.iteration)
        accelerator.backward(losses.total * global_share(state, batch))
        norm = math.nan
        if accelerator.sync_gradients:
            limit = train.grad_clip_val or math.inf
            norm = float(accelerator.clip_grad_norm_(state.objective.parameters(), limit))
            if not (math.isfinite(norm) and bool(losses.total.isfinite())):
                state.optimizer.zero_grad()
                return None
        state.optimizer.step()
        state.optimizer.zero_grad()
        if accelerator.sync_gradients and state.average is not None:
            state.average.update_parameters(state.model)
    return losses, norm


def skip(state: State, batch: Batch) -> None:
    """Report a batch whose loss or gradient is not finite; give up after several in a row."""
    state.bad_batches += 1
    names = ", ".join(batch.paths[:3]) + (" ..." if len(batch.paths) > 3 else "")
    state.accelerator.print(f"iteration {state.iteration}: loss or gradient is not finite, batch skipped ({names})")
    if state.bad_batches >= MAX_BAD_BATCHES:
        save(state, {})
        raise InputError(
            f"{state.bad_batches} batches in a row had no finite loss; the state is saved in {state.folder}, "
            "look at the named files or lower train_config.learning_rate."
        )


def train(config: Config) -> Path:
    """Train as configured and return the folder of the last checkpoint.

    Raises:
        InputError: the config or the data cannot be used, or the loss stays infinite.
    """
    state = prepare(config)
    settings = config.train
    monitor = Monitor(state.folder, enabled=state.accelerator.is_main_process and settings.with_tensorboard)
    started, path = time.monotonic(), state.folder
    stop = Interrupt()
    with monitor, stop:
        for batch in batches(state):
            result = step(state, batch)
            state.iteration += 1
            if result is None:
                skip(state, batch)
                continue
            state.bad_batches = 0
            losses, norm = result
            monitor.step(state.iteration, settings.max_iters, losses, norm, state.schedule.rate(state.iteration), batch)
            out_of_time = settings.max_hours and time.monotonic() - started > settings.max_hours * 3600
            last = stop.requested or out_of_time or state.iteration == settings.max_iters
            if last or state.iteration % settings.iters_per_checkpoint == 0:
                path = validate_and_save(state, monitor)
                if last or state.schedule.is_exhausted:
                    break
    return path


def validate_and_save(state: State, monitor: Monitor) -> Path:
    """Measure, log, save; keep the best."""
    # Validation must not move the training's random numbers, or a resumed run would differ from an unbroken one.
    random_state = torch.get_rng_state()
    metrics = evaluate(
        state.voice, state.validation, state.tokenizer, state.speakers, state.iteration, state.config, monitor
    )
    torch.set_rng_state(random_state)
    # Losses of different stages do not compare.
    whole = state.iteration >= max([state.config.train.aligner_iters, *state.config.train.flow_start_iters])
    is_best = not whole or state.schedule.validated(metrics["validation/total"])
    path = state.folder
    if state.accelerator.is_main_process:
        path = save(state, metrics)
        best = state.folder / "best"
        if is_best:
            temporary = state.folder / "best.new"
            temporary.write_text(path.name)
            temporary.replace(best)
        forget_old(state, {state.folder / "checkpoints" / best.read_text()})
    state.accelerator.wait_for_everyone()
    return path


class Interrupt(contextlib.AbstractContextManager["Interrupt"]):
    """Turns the first SIGINT or SIGTERM into a request to save and stop."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Interrupt":
        self._previous = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _request(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("saving, then stopping; once more to stop at once", file=sys.stderr)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="flowtron.train", description="Train Flowtron from a JSON config.")
    parser.add_argument("-c", "--config", required=True, help="JSON config")
    parser.add_argument("-p", "--params", nargs="*", action="extend", default=[], metavar="section.key=value")
    options = parser.parse_args(arguments)
    try:
        path = train(load_config(options.config, options.params))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"saved {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
