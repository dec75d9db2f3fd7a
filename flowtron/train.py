"""Training: one visible loop, its checkpoints and its log.

    python -m flowtron.train -c configs/demo.json -p train_config.learning_rate=1e-3
    torchrun --nproc-per-node 8 -m flowtron.train -c configs/ljspeech.json

Started again with the same output directory, it goes on where it stopped. docs/TRAINING.md tells more.
"""

import argparse
import contextlib
import hashlib
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from flowtron.checkpoint import load_training_state, locate, save_model
from flowtron.config import Config, load_config
from flowtron.data import Batch, Dataset, LengthBucketBatchSampler, SpeakerTable, make_loader, read_filelist
from flowtron.errors import InputError
from flowtron.model import AcousticModel, build_any
from flowtron.monitor import Monitor, evaluate
from flowtron.objective import Losses, build_objective, counts
from flowtron.run import (
    MAX_BAD_STEPS,
    Interrupt,
    Run,
    checkpoints,
    claimed,
    moving_parts,
    newest_state,
    start_processes,
    steps_kept,
)
from flowtron.shards import ShardSampler, make_shard_loader, read_index
from flowtron.text import SYMBOLS, Tokenizer
from flowtron.warmstart import different_scales, old_speakers, warm_start


class Step(NamedTuple):
    """What an optimizer step tells: losses by name, means over all processes; the gradient's norm; whether both are
    finite, as a tensor on the device; the batches of this process."""

    losses: dict[str, Tensor]
    norm: Tensor
    finite: Tensor
    batches: list[Batch]


@dataclass(kw_only=True)
class State(Run):
    """All that moves during training, and what it moves on."""

    speakers: SpeakerTable
    tokenizer: Tokenizer
    sampler: LengthBucketBatchSampler | ShardSampler
    loader: Any
    validation: Dataset
    unchecked: deque[tuple[int, Step]] = field(default_factory=deque)

    @property
    def model(self) -> AcousticModel:
        """The bare model with the weights being trained."""
        assert isinstance(self.trained, AcousticModel)
        return self.trained

    @property
    def voice(self) -> AcousticModel:
        """The model to synthesize with: the averaged weights where there are any."""
        assert isinstance(self.best_weights, AcousticModel)
        return self.best_weights

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on."""
        return super().state_dict() | {"sampler": self.sampler.state_dict(), "means": self._means()}

    def _means(self) -> dict[str, Any]:
        """What the numbers in and out of the model stand for."""
        model = self.config.model
        scale = {"mel_mean": model.mel_mean, "mel_std": model.mel_std}
        audio = {**self.config.audio_settings().fingerprint(), **scale}
        return {"speakers": self.speakers.names, "symbols": list(self.tokenizer.symbols), **audio}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take up what `state_dict` gave.

        Raises:
            ValueError: mels, symbols or rows of speakers are not what they were.
        """
        now = self._means()
        for name, then in saved.get("means", {}).items():
            here = now[name][: len(then)] if name == "speakers" else now[name]
            if here != then:
                shown = "" if isinstance(then, list) else f": {then} then, {here} now"
                raise ValueError(f"its {name} differs{shown}")
        super().load_state_dict(saved)
        self.sampler.load_state_dict(saved["sampler"])


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


def prepare_data(
    config: Config, tokenizer: Tokenizer, accelerator: Accelerator, known: Sequence[str] = (), keeps_known: bool = False
) -> tuple[SpeakerTable, LengthBucketBatchSampler | ShardSampler, Any, Dataset]:
    """Open the corpus: speakers, sampler, loader of training batches, validation data.

    Args:
        config, tokenizer, accelerator: of the training.
        known: speakers who have rows already; the corpus's are put after them.
        keeps_known: keep those rows even if the model's table has no room for all, which is an error then.

    Raises:
        InputError: a file is missing or wrong, or there are more speakers than the model's table has rows.
    """
    train, data = config.train, config.data
    is_sharded = data.training_files.endswith(".json")
    index = read_index(data.training_files, config.audio_settings()) if is_sharded else None
    utterances = [] if is_sharded else read_filelist(data.training_files)
    names = [u.speaker for u in utterances] if index is None else index.speakers
    speakers = SpeakerTable(names, known)
    if len(speakers) > config.model.n_speakers and not keeps_known:
        speakers = SpeakerTable(names)
    if len(speakers) > config.model.n_speakers:
        raise InputError(
            f"{data.training_files}: {len(speakers)} speakers, but model_config.n_speakers is "
            f"{config.model.n_speakers}; set it to at least {len(speakers)}."
        )

    def dataset(rows: list[Any]) -> Dataset:
        return Dataset(
            rows,
            tokenizer,
            config.audio_settings(),
            speakers,
            cache_dir=data.feature_cache_path or None,
            resample=data.resample,
            trim_db=data.trim_db,
            seed=train.seed,
        )

    rank, world_size = accelerator.process_index, accelerator.num_processes
    n_batches = train.step_batches(world_size)
    batch_size = None if data.frames_per_batch else train.batch_size
    # The aligner is always trained under the prior.
    prior = (data.use_attn_prior or config.model.aligner_dim > 0, data.betab_scaling_factor, data.attn_prior_threshold)
    validation = dataset(read_filelist(data.validation_files))
    if index is not None:
        shard_sampler = ShardSampler(
            index, batch_size, data.frames_per_batch or None, train.seed, rank, world_size, n_batches, data.n_workers
        )
        return speakers, shard_sampler, make_shard_loader(shard_sampler, tokenizer, speakers, *prior), validation
    training = dataset(utterances)
    sampler = LengthBucketBatchSampler(
        training.lengths(),
        batch_size=batch_size,
        frames_per_batch=data.frames_per_batch or None,
        seed=train.seed,
        rank=rank,
        world_size=world_size,
        n_batches=n_batches,
        n_epochs=train.epochs,
    )
    return speakers, sampler, make_loader(training, sampler, data.n_workers, *prior), validation


def prepare(config: Config) -> State:
    """Build everything from a config, with the state of an earlier run of the same output directory.

    Raises:
        InputError: something that the config names is missing or does not fit.
    """
    train, data = config.train, config.data
    accelerator = start_processes(config)
    set_seed(train.seed)
    tokenizer = prepare_tokenizer(config)
    for sentence in train.eval_sentences:
        tokenizer.encode(sentence, p_arpabet=1.0)  # rather refused now than at the first validation
    saved = newest_state(config)
    going_on = None if saved is None else load_training_state(saved)
    known: Sequence[str] = ()
    if going_on is not None:
        known = going_on.get("means", {}).get("speakers", ())
    elif train.warmstart_checkpoint_path:
        known = old_speakers(locate(train.warmstart_checkpoint_path), train.include_layers, train.ignore_layers)
    with accelerator.main_process_first():  # which fills the cache where lengths need the sound itself
        speakers, sampler, loader, validation = prepare_data(
            config, tokenizer, accelerator, known, keeps_known=going_on is not None
        )
    model = build_any(config.model)
    settled = config.settled_iteration
    if (train.lr_schedule == "plateau" or train.early_stop_patience) and settled:
        never = 0 < train.max_iters <= settled
        accelerator.print(
            f"plateau and early stop {'never begin' if never else 'begin'}: the loss stays the same function only from "
            f"iteration {settled} on, after all stages and the help of the prior."
        )
    if train.warmstart_checkpoint_path and saved is None:
        source = locate(train.warmstart_checkpoint_path)
        table = warm_start(
            model,
            source,
            train.include_layers,
            train.ignore_layers,
            speakers.names,
            tokenizer.symbols,
            train.finetune_layers,
        )
        accelerator.print(table)
        if differences := different_scales(source, config):
            warnings.warn(
                f"{source}: its mels are others, {'; '.join(differences)}: most of its "
                "weights fit only its own, set those in the config.",
                stacklevel=2,
            )
    state = State(
        **moving_parts(config, accelerator, model, build_objective(model, train, data)),
        speakers=speakers,
        tokenizer=tokenizer,
        sampler=sampler,
        loader=loader,
        validation=validation,
    )
    if saved is not None and going_on is not None:
        state.resume(saved, going_on)
    return state


def save(state: State, metrics: dict[str, float], is_best: bool) -> Path:
    """Write a checkpoint, the model to speak with beside the state to go on with."""

    def write(path: Path) -> None:
        save_model(
            path,
            state.voice,
            state.config,
            symbols=list(state.tokenizer.symbols),
            speakers=state.speakers.names,
            step=state.iteration,
            metrics=metrics,
        )

    return state.save(write, is_best)


def steps(state: State) -> Iterator[list[Batch]]:
    """This process's batches of every optimizer step, from where the sampler stands."""
    device, group = state.accelerator.device, []
    size = state.sampler.n_batches // state.accelerator.num_processes
    loading = iter(state.loader)
    try:
        for batch in loading:
            group.append(batch.to(device, non_blocking=True))
            if len(group) == size:
                yield group
                group = []
    except InputError as error:
        # From a loader worker it comes with that process's traceback before it.
        raise InputError(str(error).rstrip().splitlines()[-1].removeprefix("flowtron.errors.InputError: ")) from None
    finally:
        # After the death of a worker the rest of the loader would complain once more when it is collected.
        with contextlib.suppress(RuntimeError):
            getattr(loading, "_shutdown_workers", lambda: None)()


@contextlib.contextmanager
def worker_deaths() -> Iterator[None]:
    """Tell of a loader worker that was killed, wherever the news of it arrives.

    Raises:
        InputError: one was.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        why = (str(error).splitlines() or ["its connection ended"])[0].rstrip(". ")
        raise InputError(
            f"a loader worker ended unexpectedly ({why}); start again to go on from the last checkpoint, with fewer "
            "data_config.n_workers if memory is short."
        ) from None


def global_shares(state: State, batches: list[Batch]) -> Tensor | None:
    """Weights (batches, 3) of this process's mean losses, see `Objective.forward`; None when there is one batch.

    Gradients are averaged over processes, so a share is that of the mean of a process.
    """
    n_processes = state.accelerator.num_processes
    if len(batches) * n_processes == 1:
        return None
    mine = torch.tensor([counts(batch) for batch in batches], dtype=torch.float32)
    mine = mine.to(state.accelerator.device, non_blocking=True)
    return mine * n_processes / state.sum_over_processes(mine.sum(0))


def seed_noise(seed: int, iteration: int, number: int) -> None:
    """Make the random numbers of a batch a function of seed, iteration and its number in the step, and nothing else.

    So they are the same after a resumption, and whichever process takes the batch.
    """
    digest = hashlib.blake2b(f"{seed} {iteration} {number}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def step(state: State, batches: list[Batch]) -> Step:
    """Take one optimizer step, unless a loss or the gradient is not finite.

    Nothing here waits for a GPU, but for float16, whose steps have to know whether all is finite.
    """
    accelerator, train = state.accelerator, state.config.train
    state.objective.train()
    state.schedule.apply(state.iteration)
    shares = global_shares(state, batches)
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        seed_noise(train.seed, state.iteration, number * accelerator.num_processes + accelerator.process_index)
        is_last = number == len(batches) - 1
        with contextlib.nullcontext() if is_last else accelerator.no_sync(state.objective):
            losses: Losses = state.objective(batch, state.iteration, None if shares is None else shares[number])
            if not losses.total.requires_grad:
                raise InputError(
                    f"iteration {state.iteration}: train_config.finetune_layers lets no weight of this stage be "
                    "trained; add some, or leave out the stage (aligner_iters=0, flow_start_iters=[])."
                )
            accelerator.backward(losses.total)
        for name, value in {**losses.named, "total": losses.total.detach()}.items():
            sums[name] = sums[name] + value if name in sums else value
    sums = state.mean_over_processes(sums)
    norm = accelerator.clip_grad_norm_(state.objective.parameters(), train.grad_clip_val or torch.inf)
    finite = norm.isfinite() & sums["total"].isfinite()
    state.update(finite)
    return Step(sums, norm, finite, batches)


def report_bad_steps(state: State, everything: bool = False) -> None:
    """Report steps that were left out because a loss or gradient was not finite; give up after several in a row.

    On a GPU the last step stays unchecked, so that its result need not be waited for.
    """
    on_gpu = state.accelerator.device.type != "cpu"
    while len(state.unchecked) > (on_gpu and not everything):
        iteration, done = state.unchecked.popleft()
        if bool(done.finite):
            state.bad_steps = 0
            continue
        state.bad_steps += 1
        state.tell_bad_step([path for batch in done.batches for path in batch.paths], iteration)
        if state.bad_steps >= MAX_BAD_STEPS:
            state.give_up()


def train(config: Config) -> Path:
    """Train as configured and return the folder of the last checkpoint.

    Raises:
        InputError: the config or the data cannot be used, or the loss stays infinite.
        KeyboardInterrupt: Ctrl-C; the state is saved by then.
    """
    if config.vocoder.kind:
        from flowtron.vocoder.training import train_vocoder as train_kind
    else:
        train_kind = train_voice
    with claimed(Path(config.train.output_directory)):
        return train_kind(config)


def train_voice(config: Config) -> Path:
    """Train a voice as configured, see `train`."""
    state = prepare(config)
    settings = config.train
    accelerator = state.accelerator
    monitor = Monitor(config, accelerator.is_main_process, accelerator.num_processes, state.iteration)
    path = next(reversed(checkpoints(state.folder)), state.folder)
    saved_at = state.iteration
    keep = steps_kept(state, lambda: save(state, {}, is_best=False))
    # A killed worker may interrupt a step, whose weights are not saved.
    with monitor, worker_deaths(), keep, Interrupt(settings.max_hours) as stop:
        if not state.is_measured:
            path = validate_and_save(state, monitor)
        if state.is_over:
            return path
        for batches in steps(state):
            done = step(state, batches)
            state.sampler.advance()
            state.unchecked.append((state.iteration, done))
            rate = state.schedule.rate(state.iteration)
            state.iteration += 1
            report_bad_steps(state)
            n_places = sum(batch.mel.shape[0] * batch.mel.shape[2] for batch in batches)
            n_frames = sum(sum(batch.n_frames) for batch in batches)
            monitor.step(state.iteration, settings.max_iters, done.losses, done.norm, rate, n_frames, n_places)
            last = state.should_stop(stop.requested) or state.iteration == settings.max_iters
            if last or state.iteration % settings.iters_per_checkpoint == 0:
                path, saved_at = validate_and_save(state, monitor), state.iteration
                if last or state.schedule.is_exhausted:
                    break
        if state.iteration != saved_at:  # the last epoch ended in between
            path = validate_and_save(state, monitor)
    state.accelerator.wait_for_everyone()
    if stop.by_keyboard:
        raise KeyboardInterrupt(f"saved {path}; the same command goes on")
    return path


def validate_and_save(state: State, monitor: Monitor) -> Path:
    """Measure, log, save; keep the best."""
    report_bad_steps(state, everything=True)
    return state.validate_and_save(
        lambda: evaluate(
            state.voice, state.validation, state.tokenizer, state.speakers, state.iteration, state.config, monitor
        ),
        lambda metrics, is_best: save(state, metrics, is_best),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="flowtron.train", description="Train Flowtron from a JSON config.")
    parser.add_argument("-c", "--config", required=True, help="JSON config")
    parser.add_argument("-p", "--params", nargs="*", action="extend", default=[], metavar="section.key=value")
    options = parser.parse_args(arguments)
    try:
        path = train(load_config(options.config, options.params))
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"interrupted. {stop}".strip(), file=sys.stderr)
        return 130
    print(f"saved {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
