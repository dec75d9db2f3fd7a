"""Watching a training: TensorBoard, one line on the terminal, and what is measured at every validation."""

import math
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from flowtron.alignment import AlignmentReport, alignment_report
from flowtron.audio import AudioSettings
from flowtron.config import Config
from flowtron.data import Batch, Dataset, SpeakerTable, collate_batch
from flowtron.errors import InputError
from flowtron.inference import PATH_SHARE, SamplingOptions, Synthesized, Utterance, synthesize_mels
from flowtron.loss import nats_per_dim
from flowtron.model import AcousticModel, FlowtronOutput, Tacotron2Output
from flowtron.objective import Losses, build_objective
from flowtron.plots import attention_figure, gate_figure, mel_figure
from flowtron.text import Tokenizer
from flowtron.vocoder import load_vocoder

LOG_EVERY = 10
PLAIN_LINE_EVERY = 100
# Below this share of aligned sentences, this long after the last stage began, something is wrong.
ALIGNED_SHARE = 0.5
PATIENCE_ITERS = 2000


class Monitor:
    """TensorBoard writer and terminal line; a context manager that closes both."""

    def __init__(self, config: Config, is_main: bool = True, n_processes: int = 1, iteration: int = 0) -> None:
        """Open the log.

        Args:
            config: of the run; its output directory gets the log.
            is_main: only the first of several processes writes and shows anything.
            n_processes: how many there are.
            iteration: where the run goes on; what an interrupted run logged beyond it is dropped.
        """
        self.config, self.is_main, self.n_processes = config, is_main, n_processes
        folder = Path(config.train.output_directory) / "logs"
        wanted = is_main and config.train.with_tensorboard
        self.writer = SummaryWriter(str(folder), purge_step=iteration + 1) if wanted else None
        self.live = is_main and sys.stderr.isatty()
        self._mark = time.monotonic()
        self._deadline = self._mark + config.train.max_hours * 3600 if config.train.max_hours > 0 else math.inf
        self._frames = self._places = self._steps = 0

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

    def nats(self, nll: float) -> float:
        """Nats per frame and mel channel of a likelihood as the loss has it, its constant left out."""
        config = self.config
        return float(nats_per_dim(torch.tensor(nll), config.train.sigma, config.model.is_mixture))

    def step(
        self,
        iteration: int,
        max_iters: int,
        losses: dict[str, Tensor],
        norm: Tensor,
        learning_rate: float,
        n_frames: int,
        n_places: int,
    ) -> None:
        """Note a training step; every few of them, log and show where the training stands.

        Args:
            iteration, max_iters: where it stands; 0 for no end.
            losses, norm, learning_rate: of the step.
            n_frames: mel frames of this process's batches.
            n_places: the same with padding.
        """
        self._frames += n_frames
        self._places += n_places
        self._steps += 1
        if iteration % LOG_EVERY or not self.is_main:
            return
        now = time.monotonic()
        speed, pace = (n / max(1e-9, now - self._mark) for n in (self._frames * self.n_processes, self._steps))
        padding = 1 - self._frames / self._places
        self._mark, self._frames, self._places, self._steps = now, 0, 0, 0
        named = {name: float(value) for name, value in losses.items()}
        scalars = {f"training/{name}": value for name, value in named.items()} | {
            "training/gradient_norm": float(norm),
            "training/learning_rate": learning_rate,
            "training/frames_per_second": speed,
            "training/padding_share": padding,
        }
        if "nll" in named and not self.config.vocoder.kind:
            scalars["training/nats_per_dim"] = self.nats(named["nll"])
        self.scalars(scalars, iteration)
        if self.live or iteration % PLAIN_LINE_EVERY == 0:
            seconds = min((max_iters - iteration) / pace if max_iters else math.inf, self._deadline - now)
            left = f", {max(0.0, seconds) / 3600:.2f} h left" if seconds < math.inf else ""
            parts = "  ".join(f"{name} {value:.3f}" for name, value in named.items())
            of = f"/{max_iters} ({iteration / max_iters:.0%})" if max_iters else ""
            line = f"{iteration}{of}  {parts}  |g| {float(norm):.2f}  {speed:.0f} frames/s{left}"
            print(f"\r\033[K{line}" if self.live else line, end="" if self.live else "\n", file=sys.stderr, flush=True)


def _validation_batches(dataset: Dataset, batch_size: int) -> list[Batch]:
    order = sorted(range(len(dataset)), key=lambda i: int(dataset.lengths()[i]))
    return [
        collate_batch([dataset[i] for i in order[start : start + batch_size]])
        for start in range(0, len(order), batch_size)
    ]


@torch.no_grad()
def validation_losses(
    objective: nn.Module, dataset: Dataset, iteration: int, batch_size: int, device: torch.device
) -> tuple[dict[str, float], tuple[Batch, Losses]]:
    """Mean losses over the validation data, and the last batch with its losses, to draw."""
    totals: dict[str, float] = {}
    frames = 0
    for batch in _validation_batches(dataset, batch_size):
        batch = batch.to(device)
        losses: Losses = objective(batch, iteration)
        n = sum(batch.n_frames)
        for name, value in {**losses.named, "total": losses.total}.items():
            totals[name] = totals.get(name, 0.0) + float(value) * n
        frames += n
    return {f"validation/{name}": value / frames for name, value in totals.items()}, (batch, losses)


def speak_sentences(
    model: AcousticModel, tokenizer: Tokenizer, sentences: list[str], n_speakers: int, path_width: float
) -> list[tuple[str, int, Synthesized]]:
    """Synthesise fixed sentences with every speaker (at most four), with fixed seeds."""
    asked = [(sentence, speaker) for speaker in range(min(4, n_speakers)) for sentence in sentences]
    utterances = [
        Utterance(tokenizer.encode(sentence, p_arpabet=1.0).tokens, speaker, seed=k)
        for k, (sentence, speaker) in enumerate(asked)
    ]
    results = synthesize_mels(model, utterances, SamplingOptions(path_width=path_width))
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


def alignment_warning(metrics: dict[str, float], iteration: int, config: Config) -> str | None:
    """What to try when attention does not align long after the last stage began, or None when all is well."""
    train, model = config.train, config.model
    if iteration < config.last_stage_iteration + PATIENCE_ITERS:
        return None
    shares = {kind: metrics.get(f"{kind}/aligned_share", 1.0) for kind in ("teacher_forced", "free_running")}
    if min(shares.values()) >= ALIGNED_SHARE:
        return None
    remedies = []
    if not model.aligner_dim:
        if model.kind == "flowtron":
            remedies.append("an aligner (model_config.aligner_dim=96, train_config.aligner_iters=800)")
        if config.data.use_attn_prior and train.attn_prior_full_iters:
            remedies.append("a longer prior (train_config.attn_prior_full_iters)")
        elif not config.data.use_attn_prior:
            remedies.append("the prior (data_config.use_attn_prior=true)")
        if not train.use_ctc_loss and model.kind == "flowtron":
            remedies.append("the CTC loss (train_config.use_ctc_loss=true)")
    if model.kind == "flowtron" and model.n_flows > 1 and not train.flow_start_iters:
        remedies.append("one step of flow after the other (train_config.flow_start_iters)")
    if model.kind == "flowtron" and (shares["teacher_forced"] >= ALIGNED_SHARE or not remedies):
        remedies.append("noise on the frames that the model sees (train_config.input_noise=0.1 or input_dropout=0.1)")
    remedies.append("sound trimmed of silence (data_config.trim_db=40)")
    return (
        f"iteration {iteration}: attention is not aligning, {shares['teacher_forced']:.0%} of the sentences do "
        f"teacher-forced and {shares['free_running']:.0%} free-running; try {', or '.join(remedies)}."
    )


def largest_log_scale(output: FlowtronOutput) -> float:
    """Largest |log_scale| over steps of flow, frames and channels; beyond about 80 its exponential overflows."""
    return max(float(step.log_scale.abs().max()) for step in output.steps if step.log_scale is not None)


def _draw_batch(
    monitor: Monitor, batch: Batch, output: FlowtronOutput | Tacotron2Output, iteration: int
) -> list[AlignmentReport]:
    attention = output.attention
    reports = [
        alignment_report(matrix[b, :T, :N].float())
        for matrix in attention
        for b, (T, N) in enumerate(zip(batch.n_frames, batch.n_tokens))
    ]
    if (writer := monitor.writer) is not None:
        T, N = batch.n_frames[0], batch.n_tokens[0]
        titles = [f"step {k}, teacher-forced" for k in range(len(attention))]
        figure = attention_figure([matrix[0, :T, :N] for matrix in attention], titles)
        writer.add_figure("validation/attention", figure, iteration)
        if isinstance(output, FlowtronOutput):
            writer.add_figure("validation/z", mel_figure([output.z[0, :, :T]], ["z"]), iteration)
        if output.gate_logits is not None:
            writer.add_figure("validation/gate", gate_figure(output.gate_logits[0, :T]), iteration)
    return reports


def sounds(spoken: list[tuple[str, int, Synthesized]], settings: AudioSettings) -> list[np.ndarray]:
    """Griffin-Lim's wavs (T_samples,) of spoken sentences; what overflowed is silence, since nothing is heard in it."""
    vocoder = load_vocoder("griffin_lim", settings)
    wavs = [vocoder(result.mel[None].float().cpu())[0].numpy() for _, _, result in spoken]
    return [np.nan_to_num(wav, posinf=0.0, neginf=0.0) for wav in wavs]


def word_error_rate(sentences: list[str], wavs: list[np.ndarray], sample_rate: int) -> float | None:
    """Word error rate in percent of what a recogniser hears in the wavs; None without the extra `eval`."""
    try:
        from flowtron.evaluate import listen, packaged_whisper

        packaged_whisper()
    except InputError:
        return None
    heard = [listen(text, wav, sample_rate) for text, wav in zip(sentences, wavs)]
    return 100 * sum(h.word_errors for h in heard) / max(1, sum(h.words for h in heard))


@torch.no_grad()
def evaluate(
    voice: AcousticModel,
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
    train = config.train
    objective = build_objective(voice, train, config.data)
    metrics, (batch, losses) = validation_losses(objective.eval(), dataset, iteration, train.batch_size, device)
    if isinstance(losses.output, FlowtronOutput):
        metrics["validation/nats_per_dim"] = monitor.nats(metrics["validation/nll"])
        metrics["validation/log_scale_largest"] = largest_log_scale(losses.output)
    if losses.output is not None:
        metrics |= alignment_scalars(_draw_batch(monitor, batch, losses.output, iteration), "teacher_forced")
    if train.eval_sentences and iteration >= config.last_stage_iteration:
        path_width = PATH_SHARE * train.path_width
        spoken = speak_sentences(voice, tokenizer, train.eval_sentences, len(speakers), path_width)
        metrics |= alignment_scalars([s.alignment for _, _, s in spoken], "free_running")
        if train.eval_wer or monitor.writer is not None:
            wavs = sounds(spoken, config.audio_settings())
            _log_speech(monitor, spoken, wavs, speakers, config.data.sampling_rate, iteration)
            if train.eval_wer:
                sentences = [sentence for sentence, _, _ in spoken]
                if (errors := word_error_rate(sentences, wavs, config.data.sampling_rate)) is not None:
                    metrics["free_running/word_error_rate"] = errors
        _log_prediction(monitor, voice, batch, iteration, path_width)
    monitor.scalars(metrics, iteration)
    print("\n" * monitor.live + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()), file=sys.stderr)
    if (warning := alignment_warning(metrics, iteration, config)) is not None:
        warnings.warn(warning, stacklevel=2)
    voice.train(was_training)
    return metrics


def _log_prediction(monitor: Monitor, voice: AcousticModel, batch: Batch, iteration: int, path_width: float) -> None:
    """Draw a validation utterance beside what the model makes of its text."""
    if monitor.writer is None:
        return
    tokens = batch.tokens[0, : batch.n_tokens[0]].tolist()
    utterance = Utterance(tokens, int(batch.speaker_id[0]), seed=0)
    (result,) = synthesize_mels(voice, [utterance], SamplingOptions(path_width=path_width))
    mels = [batch.mel[0, :, : batch.n_frames[0]], result.mel]
    monitor.writer.add_figure("validation/mel", mel_figure(mels, ["recorded", "synthesized"]), iteration)


def _log_speech(
    monitor: Monitor,
    spoken: list[tuple[str, int, Synthesized]],
    wavs: list[np.ndarray],
    speakers: SpeakerTable,
    sample_rate: int,
    iteration: int,
) -> None:
    writer = monitor.writer
    if writer is None:
        return
    for number, ((sentence, speaker, result), wav) in enumerate(zip(spoken, wavs)):
        name = f"speech/{speakers.names[speaker]}_{number}"
        writer.add_audio(name, wav[None], iteration, sample_rate=sample_rate)
        titles = [f"step {k}, free-running" for k in range(len(result.attention))]
        writer.add_figure(f"{name}/attention", attention_figure(list(result.attention), titles), iteration)
        writer.add_figure(f"{name}/mel", mel_figure([result.mel], [sentence]), iteration)
