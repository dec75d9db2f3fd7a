"""Synthesis: tokens → durations → z → mel, for a batch; and the original's command line.

    python -m flowtron.inference -f MODEL -t "Hello." -i 0 -s 0.5 -o results/

Letters: B batch, T_mel frames, T_text tokens, D mel channels.
"""

import argparse
import hashlib
import math
import numbers
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flowtron.alignment import AlignmentReport, alignment_report
from flowtron.errors import InputError, exit_code_of
from flowtron.kernels.step import is_available
from flowtron.kernels.step_weights import LANES, StepWeights
from flowtron.loss import alignment_nats
from flowtron.model import AcousticModel, Flowtron, FlowtronSample, Tacotron2
from flowtron.model.aligner import monotonic_durations, path_prior
from flowtron.model.attention import AttentionWindow
from flowtron.model.flow import AffineFlow, TimeReversed, reverse_frames
from flowtron.model.prior import Mixture, sample_mixture
from flowtron.model.tacotron2 import PRENET_DROPOUT

NOISE_BLOCK_FRAMES = 64
WINDOW = AttentionWindow()
# Durations are drawn one by one, and rhythm falls apart long before the voice does: see docs/VOICE.md.
DURATION_SHARE = 0.2
LEAST_RATE, MOST_RATE = 0.1, 10.0
DEFAULT_SIGMA = 0.1  # chosen by word error rate: docs/VOICE.md
# Of the softness of the path that a model was trained along: a firmer one loses fewer words (docs/VOICE.md).
PATH_SHARE = 2 / 3
# A latent (D, T_mel) in natural order of time, or what gives one for a number of frames.
Latent = Tensor | Callable[[int], Tensor]


class Utterance(NamedTuple):
    """What to speak: tokens, the speaker's index, and the seed of its draw."""

    tokens: list[int]
    speaker_id: int
    seed: int


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample.

    sigma: standard deviation of z. duration_sigma: of durations, in their own standard deviations; None is a fifth of
    sigma. rate: speaking rate when guided, 2 is twice as fast. temperature: of attention. gate_threshold: probability
    that ends an utterance. guided: keep the attention near the path of predicted durations or, for a model that has
    none, in a monotonic window; False is the original's behaviour. max_frames: limit where durations do not set the
    length; None estimates it from the text. path_width: softness of the path in frames; a `Synthesizer`
    takes two thirds of what its model was trained along. window: of models without durations. prenet_dropout: of a
    Tacotron 2, in place of sigma, which it has not. draws: of which the one with the fewest faults of attention is
    kept, and among those alike the one whose text the model's own aligner reads best; with z or attention given there
    is one.
    """

    sigma: float = DEFAULT_SIGMA
    duration_sigma: float | None = None
    rate: float = 1.0
    temperature: float = 1.0
    gate_threshold: float = 0.5
    guided: bool = True
    max_frames: int | None = None
    path_width: float = 2.0
    window: AttentionWindow = WINDOW
    prenet_dropout: float = PRENET_DROPOUT
    draws: int = 1

    def __post_init__(self) -> None:
        """Refuse values that no speech comes of.

        Raises:
            InputError: naming the first of them.
        """
        for name in ("sigma", "duration_sigma", "rate", "temperature", "gate_threshold", "path_width"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real) and not (value is None and name == "duration_sigma"):
                raise InputError(f"{name} is {value!r}, but it is a number; give one.")
        if not 0 <= self.sigma < math.inf:
            raise InputError(
                f"sigma is {self.sigma}, but it is a standard deviation; give 0 or more, for example {DEFAULT_SIGMA}."
            )
        if self.duration_sigma is not None and not 0 <= self.duration_sigma < math.inf:
            raise InputError(
                f"duration_sigma is {self.duration_sigma}, but it is a standard deviation; give 0 or more."
            )
        for name in ("rate", "temperature", "path_width"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise InputError(f"{name} is {value}, but speech needs a positive one; give for example 1.2.")
        if not LEAST_RATE <= self.rate <= MOST_RATE:
            raise InputError(f"rate is {self.rate:g}, expected {LEAST_RATE:g} to {MOST_RATE:g}; give for example 1.2.")
        if not 0 <= self.gate_threshold <= 1:
            raise InputError(f"gate_threshold is {self.gate_threshold}, but it is a probability; give 0.5 or the like.")
        if self.max_frames is not None and self.max_frames < 1:
            raise InputError(f"max_frames is {self.max_frames}, but speech has at least one frame; give more.")
        if self.draws < 1:
            raise InputError(f"draws is {self.draws}, but speech takes at least one; give 1 or more, for example 4.")


class Synthesized(NamedTuple):
    """One utterance of a batch: mel (D, T_mel), attention (n_flows, T_mel, T_text), durations (T_text,) in frames,
    z (D, T_mel), and the score of its attention."""

    mel: Tensor
    attention: Tensor
    durations: Tensor
    z: Tensor
    alignment: AlignmentReport


# Between the seeds of an utterance's draws, far from those of its attempts.
DRAW_STRIDE = 7919

# A generous estimate, for models without durations: frames that a token may take at 22.05 kHz and hop 256.
FRAMES_PER_TOKEN = 12
FRAMES_AT_LEAST = 120

ENGINES = ("auto", "kernel", "torch")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


def pack_weights(model: AcousticModel, engine: str = "auto", dtype: str = "float32") -> list[StepWeights] | None:
    """Choose what computes the frames, once per model.

    Args:
        model: whose frames.
        engine: 'kernel' is the compiled loop, 'torch' the loop in torch, 'auto' the kernel where it runs: on a CPU, for
            float32 models without location-sensitive attention.
        dtype: of the weights that a frame reads: float32, bfloat16 or int8, the latter two in the kernel alone.

    Returns:
        Packed weights for the kernel, or None for torch.

    Raises:
        InputError: there is no such engine or dtype, or it cannot be had for this model on this machine.
    """
    if engine not in ENGINES:
        raise InputError(f"there is no engine {engine!r}; use one of {', '.join(ENGINES)}.")
    if dtype not in DTYPES:
        raise InputError(f"weights of dtype {dtype!r} are not supported; use one of {', '.join(DTYPES)}.")
    reason = _why_no_kernel(model)
    if engine == "torch" or (engine == "auto" and dtype == "float32" and reason):
        if dtype != "float32":
            raise InputError(f"the torch engine computes in float32, not {dtype}; use the engine 'kernel' for it.")
        return None
    if reason or isinstance(model, Tacotron2):
        raise InputError(f"the compiled kernel cannot run this model, because {reason}; use the engine 'torch'.")
    return model.pack(DTYPES[dtype])


def _why_no_kernel(model: AcousticModel) -> str | None:
    if isinstance(model, Tacotron2):
        return "it is a Tacotron 2"
    first = next(model.parameters())
    flow = model.flows[0]
    assert isinstance(flow, AffineFlow | TimeReversed)
    conditioner = flow.conditioner
    if first.device.type != "cpu":
        return f"it is on {first.device}"
    if first.dtype != torch.float32:
        return f"its parameters are {first.dtype}"
    if conditioner.location is not None:
        return "its attention is location-sensitive"
    if conditioner.attention_lstm.hidden_size % LANES:
        return f"its {conditioner.attention_lstm.hidden_size} hidden channels are no multiple of {LANES}"
    return None if is_available(first.device) else "there is no C++ compiler"


def draw_noise(n_frames: int, n_mels: int, seed: int) -> Tensor:
    """Draw N(0, 1) of shape (n_frames, D) in order of processing.

    It comes in blocks, so that more frames with the same seed begin with the same numbers.
    """
    if not -(1 << 63) <= seed < 1 << 63:
        raise InputError(f"seed is {seed}, beyond 64 bits; give a smaller whole number.")
    generator = torch.Generator().manual_seed(seed)
    n_blocks = -(-n_frames // NOISE_BLOCK_FRAMES)
    blocks = [torch.randn(NOISE_BLOCK_FRAMES, n_mels, generator=generator) for _ in range(max(1, n_blocks))]
    return torch.cat(blocks)[:n_frames]


def _other_seed(name: str, seed: int) -> int:
    # Of a stream of its own, so that what is drawn from it does not depend on how many frames were drawn.
    return int.from_bytes(hashlib.blake2b(f"{name} {seed}".encode(), digest_size=7).digest(), "big")


def _duration_noise(n_tokens: int, seed: int) -> Tensor:
    return draw_noise(n_tokens, 1, _other_seed("durations", seed))[:, 0]


def draw_latent(
    n_frames: int,
    n_mels: int,
    seed: int,
    sigma: float | Tensor = 1.0,
    mixture: Mixture | None = None,
    component: int | None = None,
) -> Tensor:
    """Draw from the prior, (n_frames, D) in order of processing: N(0, sigma²), or a mixture.

    Args:
        n_frames, n_mels, seed: as in `draw_noise`.
        sigma: standard deviation, or one for each frame (n_frames, 1); of a mixture, a factor on its own.
        mixture: of one utterance.
        component: of the mixture, for all of it; None draws by the mixture's probabilities.
    """
    noise = draw_noise(n_frames, n_mels, seed)
    if mixture is None:
        return sigma * noise
    uniform = torch.special.ndtr(draw_noise(n_frames, n_mels, _other_seed("components", seed)))
    mean, log_var, prob = (part.detach().float().cpu() for part in mixture)
    return sample_mixture(Mixture(mean, log_var, prob), noise, uniform, sigma, component)


def pad_tokens(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Stack token lists to (B, T_text), 0 at padding, and lengths (B,)."""
    lengths = torch.tensor([len(tokens) for tokens in texts], device=device)
    padded = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long, device=device)
    for row, tokens in zip(padded, texts):
        row[: len(tokens)] = torch.tensor(tokens, device=device)
    return padded, lengths


def pad_mels(mels: Sequence[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """Stack mels (D, T_mel) to (B, D, T_mel), 0 at padding, of the device and dtype of `like`, and lengths (B,)."""
    lengths = torch.tensor([mel.shape[1] for mel in mels], device=like.device)
    padded = [F.pad(mel, (0, int(lengths.max()) - mel.shape[1])) for mel in mels]
    return torch.stack(padded).to(like), lengths


def predict_durations(
    model: Flowtron, utterances: Sequence[Utterance], options: SamplingOptions, size: int, device: torch.device
) -> Tensor:
    """Draw the durations (B, size) in frames of a batch, one utterance at a time: rounding must not tell them apart."""
    assert model.duration_predictor is not None
    sigma = DURATION_SHARE * options.sigma if options.duration_sigma is None else options.duration_sigma
    durations = torch.zeros(len(utterances), size, dtype=torch.long, device=device)
    for row, utterance in zip(durations, utterances):
        tokens, length = pad_tokens([utterance.tokens], device)
        noise = None
        if sigma > 0:
            noise = _duration_noise(len(utterance.tokens), utterance.seed)[None].to(device)
        speaker_id = torch.tensor([utterance.speaker_id], device=device)
        sample = model.duration_predictor.sample(tokens, length, speaker_id, noise, sigma, options.rate)
        row[: tokens.shape[1]] = sample[0]
    return durations


def rescale_durations(durations: Tensor, rate: float) -> Tensor:
    """Divide durations (B, T_text) in frames by a speaking rate; tokens keep at least a frame, padding none."""
    exact = (durations / rate).clamp(min=1.0) * (durations > 0)
    ends = exact.cumsum(1).round()
    return torch.diff(ends, prepend=ends.new_zeros(ends.shape[0], 1)).long()


@torch.inference_mode()
def synthesize_mels(
    model: AcousticModel,
    utterances: Sequence[Utterance],
    options: SamplingOptions = SamplingOptions(),
    z: Sequence[Latent] | None = None,
    attention: Sequence[Tensor] | None = None,
    weights: Sequence[StepWeights] | None = None,
    durations: Sequence[Tensor] | None = None,
) -> list[Synthesized]:
    """Synthesise the mels of a batch; each comes out as it would alone.

    Args:
        model: in evaluation mode.
        utterances: what to speak.
        options: how to sample.
        z: latents (D, T_mel) in natural order of time to use in place of drawn ones, one per utterance, or functions
            that give one for a number of frames. Where durations do not set the length, a latent does, and the gate
            ends what comes from a function.
        attention: one (B, T_mel, T_text) per step of flow to use in place of computed ones.
        weights: from `pack_weights`, for the compiled kernel; None computes in torch.
        durations: (T_text,) in frames to use in place of predicted ones, one per utterance.

    Raises:
        InputError: a Tacotron 2 is given what only a Flowtron takes.
    """
    if options.draws > 1 and z is None and attention is None:
        return _best_of_draws(model, utterances, options, weights, durations)
    if isinstance(model, Tacotron2):
        if z is not None or attention is not None or durations is not None or options.rate != 1.0:
            raise InputError("a Tacotron 2 takes no z, attention, durations or rate; name a Flowtron's checkpoint.")
        return _speak_with_tacotron2(model, utterances, options)
    device = next(model.parameters()).device
    tokens, token_lengths = pad_tokens([u.tokens for u in utterances], device)
    path = None
    if durations is not None:
        path = torch.zeros_like(tokens)
        for row, given in zip(path, durations):
            row[: len(given)] = given.to(device)
    elif options.guided and attention is None:
        if model.duration_predictor is not None:
            path = predict_durations(model, utterances, options, tokens.shape[1], device)
        elif options.rate != 1.0:
            # What the speaker does at the usual rate, played faster or slower.
            usual = synthesize_mels(model, utterances, replace(options, rate=1.0), z, None, weights)
            path = torch.zeros_like(tokens)
            for row, result in zip(path, usual):
                row[: len(result.durations)] = result.durations.to(device)
            path = rescale_durations(path, options.rate)
    fixed = [latent.shape[1] for latent in z or [] if isinstance(latent, Tensor)]
    if path is not None:
        lengths = path.sum(1)
    elif len(fixed) == len(utterances):
        lengths = torch.tensor(fixed, device=device)
    elif options.max_frames is not None:
        lengths = torch.full_like(token_lengths, options.max_frames)
    else:
        lengths = FRAMES_AT_LEAST + FRAMES_PER_TOKEN * token_lengths
    windowed = options.guided and attention is None and path is None
    while True:
        latent = _latent(model, utterances, lengths, options.sigma, z)
        sample = model.inverse(
            latent.transpose(1, 2).to(next(model.parameters()).dtype),
            lengths,
            tokens,
            token_lengths,
            torch.tensor([u.speaker_id for u in utterances], device=device),
            attention_prior=None if path is None else path_prior(path, latent.shape[1], options.path_width),
            attention=attention,
            temperature=options.temperature,
            gate_threshold=options.gate_threshold if path is None and not fixed else None,
            window=options.window if windowed else None,
            weights=weights,
        )
        # The window moves on by itself, so that there is a length at which every text has ended.
        bound = token_lengths * options.window.patience_frames + options.window.tail_frames
        cut = (sample.mel_lengths == lengths) & (lengths < bound)
        if not windowed or fixed or options.max_frames is not None or not cut.any():
            break
        lengths = torch.where(cut, torch.minimum(2 * lengths, bound), lengths)
    if path is None:
        mean = torch.stack(sample.attention).mean(0).clamp(min=1e-8).log()
        path = monotonic_durations(mean, sample.mel_lengths, token_lengths)
    return _split(model, sample, token_lengths, path, latent, lengths)


def _speak_with_tacotron2(
    model: Tacotron2, utterances: Sequence[Utterance], options: SamplingOptions
) -> list[Synthesized]:
    device = next(model.parameters()).device
    tokens, token_lengths = pad_tokens([u.tokens for u in utterances], device)
    window = options.window
    patience, tail = (-(-n // model.frames_per_step) for n in (window.patience_frames, window.tail_frames))
    output = model.infer(
        tokens,
        token_lengths,
        torch.tensor([u.speaker_id for u in utterances], device=device),
        [u.seed for u in utterances],
        options.max_frames or FRAMES_AT_LEAST + FRAMES_PER_TOKEN * int(token_lengths.max()),
        options.gate_threshold,
        options.prenet_dropout,
        window._replace(patience_frames=patience, tail_frames=tail) if options.guided else None,
    )
    (attention,) = output.attention
    path = monotonic_durations(attention.clamp(min=1e-8).log(), output.mel_lengths, token_lengths)
    results = []
    for b, (T, N) in enumerate(zip(output.mel_lengths.tolist(), token_lengths.tolist())):
        each = attention[b, :T, :N].cpu()
        no_z = each.new_zeros(0, T)
        results.append(
            Synthesized(output.mel[b, :, :T].cpu(), each[None], path[b, :N].cpu(), no_z, alignment_report(each))
        )
    return results


def _latent(
    model: Flowtron, utterances: Sequence[Utterance], lengths: Tensor, sigma: float, z: Sequence[Latent] | None
) -> Tensor:
    """Latents (B, T_mel, D) of the given lengths in natural order of time, drawn from the prior or given."""
    latent = torch.zeros(len(utterances), int(lengths.max()), model.n_mels, device=lengths.device)
    mixture = None if model.mixture is None else model.mixture.unconditional()
    for b, n_frames in enumerate(lengths.tolist()):
        if z is None:
            latent[b, :n_frames] = draw_latent(n_frames, model.n_mels, utterances[b].seed, sigma, mixture).to(latent)
        else:
            source = z[b]
            given = source if isinstance(source, Tensor) else source(n_frames)
            latent[b, :n_frames] = fitted(given, n_frames).T.to(latent)
    return reverse_frames(latent, lengths) if z is None and model.reads_backward_first else latent


def fitted(z: Tensor, n_frames: int) -> Tensor:
    """Cut z (D, T_mel) to a number of frames, or repeat it, as the paper does with evidence of a style."""
    return z.repeat(1, -(-n_frames // z.shape[1]))[:, :n_frames]


def _best_of_draws(
    model: AcousticModel,
    utterances: Sequence[Utterance],
    options: SamplingOptions,
    weights: Sequence[StepWeights] | None,
    durations: Sequence[Tensor] | None,
) -> list[Synthesized]:
    many = [u._replace(seed=u.seed + k * DRAW_STRIDE) for u in utterances for k in range(options.draws)]
    given = None if durations is None else [each for each in durations for _ in range(options.draws)]
    results = synthesize_mels(model, many, replace(options, draws=1), weights=weights, durations=given)
    costs = [0.0] * len(many)
    if isinstance(model, Flowtron) and model.aligner is not None:
        mels, texts, ids = [r.mel for r in results], [u.tokens for u in many], [u.speaker_id for u in many]
        costs = reading_costs(model, mels, texts, ids).tolist()
    groups = [range(start, start + options.draws) for start in range(0, len(many), options.draws)]
    return [results[min(group, key=lambda n: (results[n].alignment.faults, costs[n]))] for group in groups]


@torch.inference_mode()
def reading_costs(model: Flowtron, mels: Sequence[Tensor], texts: Sequence[list[int]], ids: Sequence[int]) -> Tensor:
    """Nats per token (B,) that the aligner needs to walk through each text along its mel, over all paths.

    Args:
        model: with an aligner.
        mels: (D, T_mel) each.
        texts: their tokens.
        ids: their speakers.
    """
    # Of training, and slow to import: most speech does without.
    from flowtron.objective import beta_binomial_priors

    assert model.aligner is not None
    weight = next(model.parameters())
    tokens, token_lengths = pad_tokens(texts, weight.device)
    mel, mel_lengths = pad_mels(mels, weight)
    prior = beta_binomial_priors(mel_lengths.tolist(), token_lengths.tolist(), 1.0, weight.device)
    speaker_id = torch.tensor(ids, device=weight.device)
    logprob = model.aligner(mel, mel_lengths, tokens, token_lengths, speaker_id, prior)
    # The blank of the aligner's training.
    return (alignment_nats(logprob, mel_lengths, token_lengths, blank_logprob=-1.0) / token_lengths).cpu()


def badness(report: AlignmentReport) -> tuple[int, float]:
    """How far attention is from a complete walk through the text, to compare by."""
    return report.faults, -report.coverage


def _split(
    model: Flowtron, sample: FlowtronSample, token_lengths: Tensor, durations: Tensor, latent: Tensor, limits: Tensor
) -> list[Synthesized]:
    results = []
    attention = torch.stack(sample.attention, 1).cpu()
    for b, (T, N) in enumerate(zip(sample.mel_lengths.tolist(), token_lengths.tolist())):
        # A stop of a reversed step keeps the last frames of z, of a forward one the first.
        start = int(limits[b]) - T if model.reads_backward_first else 0
        each = attention[b, :, :T, :N]
        results.append(
            Synthesized(
                sample.mel[b, :, :T].cpu(),
                each,
                durations[b, :N].cpu(),
                latent[b, start : start + T].T.cpu(),
                max((alignment_report(matrix) for matrix in each), key=badness),
            )
        )
    return results


def speak_to_folder(options: argparse.Namespace) -> list[Path]:
    """Do what the original's inference script does; return the files written."""
    from flowtron.convert import convert
    from flowtron.plots import attention_figure, mel_figure
    from flowtron.synthesizer import Synthesizer

    path = Path(options.flowtron_path)
    with tempfile.TemporaryDirectory() as folder:
        if path.is_file() and path.suffix not in {".json", ".safetensors"}:
            converted = Path(folder) / "model"
            convert(path, converted, options.config)
            path = converted
        voice = Synthesizer.load(path, options.waveglow_path or "griffin_lim")
    speech = voice(
        options.text,
        speaker=options.id,
        sigma=options.sigma,
        seed=options.seed,
        max_frames=options.n_frames,
        gate_threshold=options.gate,
    )
    output = Path(options.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    stem = f"sid{options.id}_sigma{options.sigma}"
    written = [speech.save(output / f"{stem}.wav")]
    for k, attention in enumerate(speech.attention):
        written.append(output / f"{stem}_attnlayer{k}.png")
        attention_figure([attention], [f"attention of step {k}"]).savefig(written[-1])
    written.append(output / f"{stem}_mel.png")
    mel_figure([speech.mel], [options.text]).savefig(written[-1])
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="flowtron.inference", description="Speak with the original's flags.")
    parser.add_argument("-c", "--config", default=None, help="JSON config of a checkpoint of the original")
    parser.add_argument("-f", "--flowtron_path", required=True, help="checkpoint, ours or the original's")
    parser.add_argument("-w", "--waveglow_path", default=None, help="vocoder folder; Griffin-Lim when absent")
    parser.add_argument("-t", "--text", required=True)
    parser.add_argument("-i", "--id", default="0", help="speaker by name or number")
    parser.add_argument("-n", "--n_frames", type=int, default=None, help="limit of mel frames; by the text when absent")
    parser.add_argument("-o", "--output_dir", default="results/")
    parser.add_argument("-s", "--sigma", type=float, default=0.5, help="standard deviation of z")
    parser.add_argument("-g", "--gate", type=float, default=0.5, help="gate probability that ends the utterance")
    parser.add_argument("--seed", type=int, default=1234)
    options = parser.parse_args(arguments)
    return exit_code_of(lambda: print(*speak_to_folder(options), sep="\n"))


if __name__ == "__main__":
    sys.exit(main())
