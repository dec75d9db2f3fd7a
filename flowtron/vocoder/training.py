"""Training of vocoders: segments of recordings, one visible loop, resumption, averaged weights, several processes.

    flowtron train -c configs/waveglow.json

A segment is a function of seed, iteration and its number in the step and of nothing else, so a run that goes on sees
what it would have seen, and processes with parts of a batch see what one with all of it would. Letters: B batch, T_mel
frames, T_samples samples.
"""

import contextlib
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from accelerate.utils import set_seed
from torch import Tensor

from flowtron.audio import AudioSettings, load_wav, log_mel
from flowtron.cache import FeatureCache
from flowtron.checkpoint import VocoderFile, read_vocoder, save_vocoder
from flowtron.config import Config
from flowtron.data import Utterance, read_filelist, require_even
from flowtron.errors import InputError
from flowtron.monitor import Monitor
from flowtron.run import MAX_BAD_STEPS, Interrupt, Run, moving_parts, newest_state, start_processes, steps_kept
from flowtron.vocoder.loading import build_vocoder_model, from_file, load_weights_into, locate_vocoder
from flowtron.vocoder.objective import vocoder_objective
from flowtron.warmstart import take_weights

N_VALIDATION = 16  # segments
N_SPOKEN = 2  # recordings to hear in the log
SPOKEN_FRAMES = 172
BLUR_REACH = 7  # places to either side
MAX_BLUR_CHANNELS = 2.5  # standard deviation
MAX_SHARP_CHANNELS = 24


class Segments:
    """Random pieces of recordings with their mels: those of the recording, or predicted ones kept beside it."""

    def __init__(
        self,
        utterances: Sequence[Utterance],
        settings: AudioSettings,
        segment_frames: int,
        predicted: str = "",
        predicted_share: float = 1.0,
        cache: str = "",
    ) -> None:
        """Open recordings.

        Args:
            utterances: of the filelist.
            settings: of the mels.
            segment_frames: length of a piece.
            predicted: folder of predicted mels NAME.npy (n_mels, T_mel) for NAME.wav; empty takes the recording's.
            predicted_share: of the pieces that are drawn with a predicted mel, the others having the recording's.
            cache: folder of the recordings' mels, shared with the training of a voice; empty computes them as needed.

        Raises:
            InputError: a recording has another sample rate, none is long enough, or a predicted mel is missing.
        """
        self.settings, self.n_frames = settings, segment_frames
        self.predicted, self.predicted_share = Path(predicted) if predicted else None, predicted_share
        self.cache = FeatureCache(cache) if cache else None
        self.items: list[tuple[Path, int]] = []
        for utterance in utterances:
            information = soundfile.info(str(utterance.path))
            if information.samplerate != settings.sample_rate:
                raise InputError(
                    f"{utterance.path}: sample rate is {information.samplerate} Hz, expected {settings.sample_rate} "
                    "Hz; convert it."
                )
            if information.frames // settings.hop_length >= segment_frames:
                self.items.append((Path(utterance.path), information.frames // settings.hop_length))
            path = self._predicted_path(Path(utterance.path))
            if path is not None and not path.is_file():
                raise InputError(f"{path}: no such predicted mel; make it with `flowtron mels`.")
        if not self.items:
            raise InputError(
                f"no recording has {segment_frames} frames; lower vocoder_config.segment_length or add longer ones."
            )

    def _predicted_path(self, wav: Path) -> Path | None:
        return None if self.predicted is None else self.predicted / f"{wav.stem}.npy"

    def cut(self, number: int, start: int, predicted: bool = False) -> tuple[Tensor, Tensor]:
        """Return frames of a recording from `start` on: wav (segment_frames · hop,), mel (n_mels, segment_frames).

        Args:
            number, start: of the recording and its first frame.
            predicted: take the predicted mel, where there are such.

        Raises:
            InputError: the predicted mel is of another size.
        """
        path, _ = self.items[number]
        hop, n = self.settings.hop_length, self.n_frames
        # With real surroundings, so that the first and last frame are those of the whole recording.
        margin = -(-self.settings.n_fft // hop)
        before = min(start, margin)
        stop = (start + n + margin) * hop
        samples, _ = soundfile.read(path, start=(start - before) * hop, stop=stop, dtype="float32", always_2d=True)
        piece = torch.from_numpy(samples.mean(1))
        wav = piece[before * hop :][: n * hop]
        predicted_path = self._predicted_path(path)
        if predicted and predicted_path is not None:
            whole = np.load(predicted_path, mmap_mode="r")
            mel = torch.from_numpy(whole[:, start : start + n].copy()).float()
        elif self.cache is not None:
            mel = self.cache.mel(path, None, self.settings, lambda: log_mel(load_wav(path), self.settings))
            mel = mel[:, start : start + n].clone()
        else:
            mel = log_mel(piece, self.settings)[:, before : before + n]
        if mel.shape != (self.settings.n_mels, n):
            raise InputError(f"{path}: its mel has shape {tuple(mel.shape)} at frame {start}; make it anew.")
        return wav, mel

    def _choose(self, generator: random.Random) -> int:
        return generator.randrange(len(self.items))

    def drawn(self, generators: Sequence[random.Random]) -> list[Path]:
        """Return the recordings that `draw` would take with new generators."""
        return [self.items[self._choose(generator)][0] for generator in generators]

    def draw(self, generators: Sequence[random.Random]) -> tuple[Tensor, Tensor]:
        """Return a random piece of each generator: wav (B, T_samples) and mel (B, n_mels, T_mel)."""
        cuts = []
        for generator in generators:
            number = self._choose(generator)
            start = generator.randint(0, self.items[number][1] - self.n_frames)
            cuts.append(self.cut(number, start, generator.random() < self.predicted_share))
        wavs, mels = zip(*cuts)
        return torch.stack(wavs), torch.stack(mels)


@dataclass(kw_only=True)
class VocoderState(Run):
    """All that moves during training, and what it moves on."""

    training: Segments
    validation: Segments
    recordings: list[Path]

    def batch_numbers(self) -> list[int]:
        """Numbers of this process's batches of a step, counted over all processes.

        Raises:
            InputError: the processes cannot share them evenly.
        """
        n_processes = self.accelerator.num_processes
        n_batches = self.config.train.step_batches(n_processes)
        require_even(n_batches, n_processes)
        return list(range(self.accelerator.process_index, n_batches, n_processes))

    def generators(self, number: int) -> list[random.Random]:
        """Generators of the segments of a batch of this iteration."""
        size = self.config.train.batch_size
        return generators(self.config.train.seed, self.iteration, number * size, size)


def prepare(config: Config) -> VocoderState:
    """Build everything from a config, with the state of an earlier run of the same output directory.

    Raises:
        InputError: something that the config names is missing or does not fit.
    """
    train, vocoder = config.train, config.vocoder
    accelerator = start_processes(config)
    set_seed(train.seed)
    settings = config.audio_settings()
    segment_frames = max(1, vocoder.segment_length // settings.hop_length)
    training_files, validation_files = (
        read_filelist(f) for f in (config.data.training_files, config.data.validation_files)
    )
    model = build_vocoder_model(vocoder.kind, vocoder.architecture, settings)
    saved = newest_state(config)
    if train.warmstart_checkpoint_path and saved is None:
        folder = locate_vocoder(train.warmstart_checkpoint_path)
        weights = read_vocoder(folder).state
        if train.include_layers is None and not train.ignore_layers:
            load_weights_into(model, weights, folder)
        else:
            accelerator.print(take_weights(model, weights, str(folder), train.include_layers, train.ignore_layers))
    state = VocoderState(
        **moving_parts(config, accelerator, model, vocoder_objective(model, settings, train.sigma)),
        training=Segments(
            training_files,
            settings,
            segment_frames,
            vocoder.predicted_mels,
            vocoder.predicted_share,
            config.data.feature_cache_path,
        ),
        validation=Segments(validation_files, settings, segment_frames, cache=config.data.feature_cache_path),
        recordings=[Path(utterance.path) for utterance in validation_files[:N_SPOKEN]],
    )
    if saved is not None:
        state.resume(saved)
    return state


def generators(seed: int, iteration: int, first: int, count: int) -> list[random.Random]:
    """Return the generators of the segments of a step, from the first's number on."""
    return [random.Random(f"{seed} {iteration} {number}") for number in range(first, first + count)]


def roughened(mel: Tensor, draws: Sequence[random.Random], largest: float) -> Tensor:
    """Add noise to mels (B, n_mels, T_mel), of a random deviation up to the largest: synthesis is not as clean."""
    rough = []
    for each, draw in zip(mel, draws):
        generator = torch.Generator().manual_seed(draw.getrandbits(63))
        rough.append(each + torch.randn(each.shape, generator=generator) * draw.uniform(0, largest))
    return torch.stack(rough)


def gaussian_blur(mel: Tensor, std: float) -> Tensor:
    """Blur the last axis of (n_mels, T_mel) by a Gaussian of this many places."""
    places = torch.arange(-BLUR_REACH, BLUR_REACH + 1.0)
    weights = (-0.5 * (places / max(std, 1e-3)).square()).softmax(0)
    padded = torch.nn.functional.pad(mel[:, None], (BLUR_REACH, BLUR_REACH), mode="replicate")
    return torch.nn.functional.conv1d(padded, weights[None, None])[:, 0]


def blurred(mel: Tensor, draws: Sequence[random.Random], share: float) -> Tensor:
    """Blur a share of the mels (B, n_mels, T_mel) over channels and a little over time, for a random span.

    A voice that runs free loses harmonics, the higher the sooner, because its pitch is not certain where a sound
    begins. A vocoder that has only seen sharp mels then takes voice for noise. Channels below a random one stay sharp.
    """
    result = mel.clone()
    for each, draw in zip(result, draws):
        if draw.random() >= share:
            continue
        first, last = draw.randrange(MAX_SHARP_CHANNELS), sorted(draw.sample(range(mel.shape[2] + 1), 2))
        start, stop = last if draw.random() < 0.5 else (0, mel.shape[2])
        smooth = gaussian_blur(gaussian_blur(each.T, draw.uniform(0.5, MAX_BLUR_CHANNELS)).T, draw.random())
        span = each[first:, start:stop]
        span += draw.uniform(0.4, 1) * (smooth[first:, start:stop] - span)
    return result


def step(state: VocoderState) -> tuple[dict[str, Tensor], Tensor]:
    """Take one optimizer step, unless loss or gradient are not finite.

    Returns:
        The losses, means over all processes, and the gradient's norm.
    """
    config, accelerator = state.config, state.accelerator
    state.objective.train()
    state.schedule.apply(state.iteration)
    numbers = state.batch_numbers()
    sums: dict[str, Tensor] = {}
    for number in numbers:
        draws = state.generators(number)
        wav, mel = state.training.draw(draws)
        mel = roughened(blurred(mel, draws, config.vocoder.mel_blur), draws, config.vocoder.mel_noise)
        torch.manual_seed(draws[0].getrandbits(63))
        with contextlib.nullcontext() if number == numbers[-1] else accelerator.no_sync(state.objective):
            losses = state.objective(wav.to(accelerator.device), mel.to(accelerator.device))
            accelerator.backward(torch.stack(list(losses.values())).sum() / len(numbers))
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value.detach() / len(numbers)
    means = state.mean_over_processes(sums)
    norm = accelerator.clip_grad_norm_(state.objective.parameters(), config.train.grad_clip_val or torch.inf)
    finite = norm.isfinite() & torch.stack(list(means.values())).isfinite().all()
    state.update(finite)
    if finite:
        state.bad_steps = 0
    else:
        state.bad_steps += 1
        paths = [str(path) for number in numbers for path in state.training.drawn(state.generators(number))]
        state.tell_bad_step(paths)
    return means, norm


def as_file(state: VocoderState) -> VocoderFile:
    """Return the vocoder as its folder will hold it."""
    vocoder = state.config.vocoder
    weights = {name: value.detach().cpu().clone() for name, value in state.best_weights.state_dict().items()}
    # What the defaults are may change; what these weights are normalised by may not.
    architecture: dict[str, Any] = dict(vocoder.architecture)
    if any(name.endswith("weight_g") for name in weights):
        architecture["weight_norm"] = True
    return VocoderFile(vocoder.kind, architecture, weights, state.config.audio_settings(), state.iteration, [])


@torch.no_grad()
def evaluate(state: VocoderState, monitor: Monitor) -> dict[str, float]:
    """Mean losses over fixed segments of the validation recordings; copy synthesis to hear beside the recordings."""
    config = state.config
    objective = vocoder_objective(state.best_weights, config.audio_settings(), config.train.sigma).eval()
    torch.manual_seed(config.train.seed)
    wav, mel = state.validation.draw(generators(config.train.seed, 0, 0, N_VALIDATION))
    losses = objective(wav.to(state.accelerator.device), mel.to(state.accelerator.device))
    metrics = {f"validation/{name}": float(value) for name, value in losses.items()}
    metrics["validation/total"] = sum(metrics.values())
    monitor.scalars(metrics, state.iteration)
    if monitor.writer is not None:
        vocoder = from_file(as_file(state), state.folder, None)
        for path in state.recordings:
            recording = load_wav(path)[: SPOKEN_FRAMES * vocoder.settings.hop_length]
            sounds = {"recording": recording, "copy": vocoder(log_mel(recording, vocoder.settings)[None])[0]}
            for name, sound in sounds.items():
                monitor.writer.add_audio(
                    f"{path.stem}/{name}", sound[None], state.iteration, sample_rate=vocoder.settings.sample_rate
                )
    print("  ".join(f"{name} {value:.4f}" for name, value in metrics.items()), file=sys.stderr, flush=True)
    return metrics


def save(state: VocoderState, is_best: bool) -> None:
    """Write a checkpoint, the vocoder's folder beside the state to go on with."""
    file = as_file(state)
    state.save(
        lambda path: save_vocoder(path, file.kind, file.architecture, file.state, file.audio, step=file.step),
        is_best,
    )


def validate_and_save(state: VocoderState, monitor: Monitor) -> Path:
    """Measure, log, save the vocoder's folder and the state to go on with; keep the best."""
    return state.validate_and_save(lambda: evaluate(state, monitor), lambda _, is_best: save(state, is_best))


def train_vocoder(config: Config) -> Path:
    """Train the vocoder of a config and return the folder of its last checkpoint.

    Raises:
        InputError: the config or the data cannot be used, or the loss stays infinite.
    """
    state = prepare(config)
    settings, accelerator = config.train, state.accelerator
    monitor = Monitor(config, accelerator.is_main_process, accelerator.num_processes, state.iteration)
    path = state.checkpoint if state.iteration else state.folder
    n_frames = len(state.batch_numbers()) * settings.batch_size * state.training.n_frames
    with monitor, steps_kept(state, lambda: save(state, is_best=False)), Interrupt(settings.max_hours) as stop:
        if not state.is_measured:
            path = validate_and_save(state, monitor)
        while not state.is_over:
            losses, norm = step(state)
            rate = state.schedule.rate(state.iteration)
            state.iteration += 1
            if state.bad_steps >= MAX_BAD_STEPS:
                state.give_up()
            monitor.step(state.iteration, settings.max_iters, losses, norm, rate, n_frames, n_frames)
            last = state.should_stop(stop.requested) or state.iteration == settings.max_iters
            if last or state.iteration % settings.iters_per_checkpoint == 0:
                path = validate_and_save(state, monitor)
                if last or state.schedule.is_exhausted:
                    break
    if stop.by_keyboard:
        raise KeyboardInterrupt(f"saved {path}; the same command goes on")
    return path
