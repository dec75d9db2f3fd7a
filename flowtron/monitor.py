"""Watching a training: TensorBoard, one line on the terminal, and what is measured at every validation."""

import sys
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from flowtron.alignment import AlignmentReport, alignment_report
from flowtron.config import Config
from flowtron.data import Batch, Dataset, SpeakerTable, collate_batch
from flowtron.inference import SamplingOptions, Synthesized, Utterance, synthesize_mels
from flowtron.loss import nats_per_dim
from flowtron.model import Flowtron
from flowtron.objective import Losses, Objective
from flowtron.plots import attention_figure, gate_figure, mel_figure
from flowtron.text import Tokenizer
from flowtron.vocoder import load_vocoder

LOG_EVERY = 10
PLAIN_LINE_EVERY = 100
# Below this share of aligned sentences, after the flows have had this many iterations, something is wrong.
ALIGNED_SHARE = 0.5
PATIENCE_ITERS = 5000


class Monitor:
    """TensorBoard writer and terminal line; a context manager that closes both."""

    def __init__(self, folder: Path, enabled: bool) -> None:
        self.writer = SummaryWriter(str(folder / "logs")) if enabled else None
        self.live = sys.stderr.isatty()
        self._mark = time.monotonic()
        self._frames = 0
        self._steps = 0

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.writer is not None:
            self.writer.close()
        if self.live:
            print(file=sys.stderr)

    def scalars(self, values: dict[str, float], iteration: int) -> None:
        """Log scalars by name."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, iteration)

    def step(
        self, iteration: int, max_iters: int, losses: Losses, norm: float, learning_rate: float, batch: Batch
    ) -> None:
        """Note a training step; every few of them, log and show where the training stands."""
        self._frames += int(batch.mel_lengths.sum())
        self._steps += 1
        if iteration % LOG_EVERY:
            return
        now = time.monotonic()
        speed, pace = self._frames / (now - self._mark), self._steps / (now - self._mark)
        self._mark, self._frames, self._steps = now, 0, 0
        named = {name: float(value) for name, value in losses.named.items()}
        padding = 1 - float(batch.mel_lengths.sum()) / (batch.mel.shape[0] * batch.mel.shape[2])
        scalars = {f"training/{name}": value for name, value in named.items()}
        scalars |= {
            "training/gradient_norm": norm,
            "training/learning_rate": learning_rate,
            "training/frames_per_second": speed,
            "training/padding_share": padding,
        }
        if losses.output is not None:
            nats = nats_per_dim(losses.named["nll"], is_mixture=losses.output.mixture is not None)
            scalars["training/nats_per_dim"] = float(nats)
        self.scalars(scalars, iteration)
        if self.live or iteration % PLAIN_LINE_EVERY == 0:
            left = f", {(max_iters - iteration) / pace / 3600:.2f} h left" if max_iters else ""
            parts = "  ".join(f"{name} {value:.3f}" for name, value in named.items())
            of = f"/{max_iters}" if max_iters else ""
            line = f"{iteration}{of}  {parts}  |g| {norm:.2f}  {speed:.0f} frames/s{left}"
            print(f"\r\033[K{line}" if self.live else line, end="" if self.live else "\n", file=sys.stderr, flush=True)


def _validation_batches(dataset: Dataset, batch_size: int) -> list[Batch]:
    order = sorted(range(len(dataset)), key=lambda i: int(dataset.lengths()[i]))
    return [
        collate_batch([dataset[i] for i in order[start : start + batch_size]])
        for start in range(0, len(order), batch_size)
    ]


@torch.no_grad()
def validation_losses(
    objective: Objective, dataset: Dataset, iteration: int, batch_size: int, device: torch.device
) -> tuple[dict[str, float], tuple[Batch, Losses]]:
    """Mean losses over the validation data, and the last batch with its losses, to draw."""
    totals: dict[str, float] = {}
    frames = 0
    for batch in _validation_batches(dataset, batch_size):
        batch = batch.to(device)
        losses: Losses = objective(batch, iteration)
        n = int(batch.mel_lengths.sum())
        for name, value in {**losses.named, "total": losses.total}.items():
            totals[name] = totals.get(name, 0.0) + float(value) * n
        frames += n
    return {f"validation/{name}": value / frames for name, value in totals.items()}, (batch, losses)


def speak_sentences(
    model: Flowtron, tokenizer: Tokenizer, sentences: list[str], n_speakers: int
) -> list[tuple[str, int, Synthesized]]:
    """Synthesise fixed sentences with every speaker (at most four), with fixed seeds."""
    asked = [(sentence, speaker) for speaker in range(min(4, n_speakers)) for sentence in sentences]
    utterances = [
        Utterance(tokenizer.encode(sentence, p_arpabet=1.0).tokens, speaker, seed=k)
        for k, (sentence, speaker) in enumerate(asked)
    ]
    results = synthesize_mels(model, utterances, SamplingOptions())
    return [(sentence, speaker, result) for (sentence, speaker), result in zip(asked, results)]


def alignment_scalars(reports: list[AlignmentReport], prefix: str) -> dict[str, float]:
    """Mean diagonality, coverage and sharpness, and the share of monotonic and complete alignments."""
    n = len(reports)
    return {
        f"{prefix}/diagonality": sum(r.diagonality for r in reports) / n,
        f"{prefix}/coverage": sum(r.coverage for r in reports) / n,
        f"{prefix}/sharpness": sum(r.sharpness for r in reports) / n,
        f"{prefix}/aligned_share": sum(r.is_complete for r in reports) / n,
    }


def _draw_batch(monitor: Monitor, batch: Batch, losses: Losses, iteration: int) -> list[AlignmentReport]:
    output, writer = losses.output, monitor.writer
    if output is None:
        return []
    reports = [
        alignment_report(step.attention[b, :T, :N].float())
        for step in output.steps
        for b, (T, N) in enumerate(zip(batch.mel_lengths.tolist(), batch.token_lengths.tolist()))
    ]
    if writer is not None:
        T, N = int(batch.mel_lengths[0]), int(batch.token_lengths[0])
        titles = [f"step {k}, teacher-forced" for k in range(len(output.steps))]
        figure = attention_figure([step.attention[0, :T, :N] for step in output.steps], titles)
        writer.add_figure("validation/attention", figure, iteration)
        writer.add_figure("validation/mel_and_z", mel_figure([batch.mel[0, :, :T], output.z[0, :, :T]], ["mel", "z"]))
        if output.gate_logits is not None:
            writer.add_figure("validation/gate", gate_figure(output.gate_logits[0, :T]), iteration)
    return reports


@torch.no_grad()
def evaluate(
    voice: Flowtron,
    dataset: Dataset,
    tokenizer: Tokenizer,
    speakers: SpeakerTable,
    iteration: int,
    config: Config,
    monitor: Monitor,
) -> dict[str, float]:
    """Measure the validation losses, the alignment when teacher-forced, and that of free-running synthesis.

    The last is what tells whether the model speaks: losses and teacher-forced pictures do not.
    """
    was_training = voice.training
    voice.eval()
    device = next(voice.parameters()).device
    objective = Objective(voice, config.train, config.data.betab_scaling_factor, config.data.use_attn_prior).eval()
    metrics, (batch, losses) = validation_losses(objective, dataset, iteration, config.train.batch_size, device)
    teacher_forced = _draw_batch(monitor, batch, losses, iteration)
    if teacher_forced:
        metrics |= alignment_scalars(teacher_forced, "teacher_forced")
    if iteration >= max([config.train.aligner_iters, *config.train.flow_start_iters]):
        spoken = speak_sentences(voice, tokenizer, config.train.eval_sentences, len(speakers))
        metrics |= alignment_scalars([s.alignment for _, _, s in spoken], "free_running")
        _log_speech(monitor, spoken, speakers, config, iteration)
        if metrics["free_running/aligned_share"] < ALIGNED_SHARE and iteration > PATIENCE_ITERS:
            warnings.warn(
                f"iteration {iteration}: only {metrics['free_running/aligned_share']:.0%} of the evaluation sentences "
                "align when free-running; try an aligner (model_config.aligner_dim), a longer prior "
                "(train_config.attn_prior_full_iters), or train_config.input_dropout.",
                stacklevel=2,
            )
    monitor.scalars(metrics, iteration)
    print("  ".join(f"{name} {value:.3f}" for name, value in metrics.items()), file=sys.stderr, flush=True)
    voice.train(was_training)
    return metrics


def _log_speech(
    monitor: Monitor,
    spoken: list[tuple[str, int, Synthesized]],
    speakers: SpeakerTable,
    config: Config,
    iteration: int,
) -> None:
    writer = monitor.writer
    if writer is None:
        return
    vocoder = load_vocoder("griffin_lim")
    for number, (sentence, speaker, result) in enumerate(spoken):
        name = f"speech/{speakers.names[speaker]}_{number}"
        wav: Tensor = vocoder(result.mel[None].float())[0]
        writer.add_audio(name, wav[None], iteration, sample_rate=config.data.sampling_rate)
        titles = [f"step {k}, free-running" for k in range(len(result.attention))]
        writer.add_figure(f"{name}/attention", attention_figure(list(result.attention), titles), iteration)
        writer.add_figure(f"{name}/mel", mel_figure([result.mel], [sentence]), iteration)
