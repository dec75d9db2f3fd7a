"""Synthesis: tokens → durations → z → mel, for a batch; and the original's command line.

    python -m flowtron.inference -f MODEL -t "Hello." -i 0 -s 0.5 -o results/

Letters: B batch, T_mel frames, T_text tokens, D mel channels.
"""

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flowtron.alignment import AlignmentReport, alignment_report
from flowtron.errors import InputError
from flowtron.model import Flowtron, FlowtronSample
from flowtron.model.aligner import monotonic_durations, path_prior
from flowtron.model.flow import reverse_frames

NOISE_BLOCK_FRAMES = 64


class Utterance(NamedTuple):
    """What to speak: tokens, the speaker's index, and the seed of its draw."""

    tokens: list[int]
    speaker_id: int
    seed: int


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample.

    sigma: standard deviation of z. duration_sigma: of durations, in their own standard deviations; None follows
    sigma. rate: speaking rate, 2 is twice as fast. temperature: of attention. gate_threshold: probability that ends
    an utterance. guided: keep the attention near the path of predicted durations (needs a model that has them; False
    is the original's behaviour). max_frames: limit without guidance; None estimates it from the text. path_width:
    softness of the guide in frames.
    """

    sigma: float = 0.667
    duration_sigma: float | None = None
    rate: float = 1.0
    temperature: float = 1.0
    gate_threshold: float = 0.5
    guided: bool = True
    max_frames: int | None = None
    path_width: float = 3.0


class Synthesized(NamedTuple):
    """One utterance of a batch: mel (D, T_mel), attention (n_flows, T_mel, T_text), durations (T_text,) in frames,
    z (D, T_mel), and the score of its attention."""

    mel: Tensor
    attention: Tensor
    durations: Tensor
    z: Tensor
    alignment: AlignmentReport


# A generous estimate, for models without durations: frames that a token may take at 22.05 kHz and hop 256.
FRAMES_PER_TOKEN = 12
FRAMES_AT_LEAST = 120


def draw_noise(n_frames: int, n_mels: int, seed: int) -> Tensor:
    """Draw N(0, 1) of shape (n_frames, D) in order of processing.

    It comes in blocks, so that more frames with the same seed begin with the same numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    n_blocks = -(-n_frames // NOISE_BLOCK_FRAMES)
    blocks = [torch.randn(NOISE_BLOCK_FRAMES, n_mels, generator=generator) for _ in range(max(1, n_blocks))]
    return torch.cat(blocks)[:n_frames]


def _duration_noise(n_tokens: int, seed: int) -> Tensor:
    # Of its own stream, so that durations do not depend on how many frames were drawn.
    digest = hashlib.blake2b(f"durations {seed}".encode(), digest_size=7).digest()
    return draw_noise(n_tokens, 1, int.from_bytes(digest, "big"))[:, 0]


def pad_tokens(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Stack token lists to (B, T_text), 0 at padding, and lengths (B,)."""
    lengths = torch.tensor([len(tokens) for tokens in texts], device=device)
    padded = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long, device=device)
    for row, tokens in zip(padded, texts):
        row[: len(tokens)] = torch.tensor(tokens, device=device)
    return padded, lengths


def predict_durations(
    model: Flowtron,
    tokens: Tensor,
    token_lengths: Tensor,
    speaker_id: Tensor,
    seeds: Sequence[int],
    options: SamplingOptions,
) -> Tensor:
    """Draw the durations (B, T_text) in frames of a batch."""
    assert model.duration_predictor is not None
    sigma = options.sigma if options.duration_sigma is None else options.duration_sigma
    noise = None
    if sigma > 0:
        noise = torch.zeros(tokens.shape)
        for row, length, seed in zip(noise, token_lengths.tolist(), seeds):
            row[:length] = sigma * _duration_noise(length, seed)
        noise = noise.to(tokens.device)
    return model.duration_predictor.sample(tokens, token_lengths, speaker_id, noise, options.rate)


@torch.inference_mode()
def synthesize_mels(
    model: Flowtron,
    utterances: Sequence[Utterance],
    options: SamplingOptions = SamplingOptions(),
    z: Sequence[Tensor] | None = None,
    attention: Sequence[Tensor] | None = None,
) -> list[Synthesized]:
    """Synthesise the mels of a batch; each comes out as it would alone.

    Args:
        model: in evaluation mode.
        utterances: what to speak.
        options: how to sample.
        z: latents (D, T_mel) in natural order of time to use in place of drawn ones, one per utterance.
        attention: one (B, T_mel, T_text) per step of flow to use in place of computed ones.
    """
    device = next(model.parameters()).device
    tokens, token_lengths = pad_tokens([u.tokens for u in utterances], device)
    speaker_id = torch.tensor([u.speaker_id for u in utterances], device=device)
    seeds = [u.seed for u in utterances]
    prior = None
    guided = options.guided and model.duration_predictor is not None and attention is None
    if guided:
        durations = predict_durations(model, tokens, token_lengths, speaker_id, seeds, options)
        lengths = durations.sum(1)
        prior = path_prior(durations, int(lengths.max()), options.path_width)
    elif z is not None:
        lengths = torch.tensor([latent.shape[1] for latent in z], device=device)
    elif options.max_frames is not None:
        lengths = torch.full_like(token_lengths, options.max_frames)
    else:
        lengths = (FRAMES_AT_LEAST + FRAMES_PER_TOKEN * token_lengths / options.rate).long()
    latent = torch.zeros(len(utterances), int(lengths.max()), model.n_mels, device=device)
    for b, n_frames in enumerate(lengths.tolist()):
        if z is not None:
            given = z[b].T[:n_frames].to(device)
            # Evidence shorter than the utterance is repeated, as in the paper's transfer of style.
            given = given.repeat(-(-n_frames // len(given)), 1)[:n_frames]
            latent[b, :n_frames] = given
        else:
            latent[b, :n_frames] = options.sigma * draw_noise(n_frames, model.n_mels, seeds[b]).to(device)
    if z is None and model.reads_backward_first:
        latent = reverse_frames(latent, lengths)
    sample = model.inverse(
        latent.transpose(1, 2).to(next(model.parameters()).dtype),
        lengths,
        tokens,
        token_lengths,
        speaker_id,
        attention_prior=prior,
        attention=attention,
        temperature=options.temperature,
        gate_threshold=None if guided or z is not None else options.gate_threshold,
    )
    if not guided:
        mean = torch.stack(sample.attention).mean(0).clamp(min=1e-8).log()
        durations = monotonic_durations(mean, sample.mel_lengths, token_lengths)
    return _split(model, sample, token_lengths, durations, latent, lengths)


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
                min((alignment_report(matrix) for matrix in each), key=lambda report: report.is_complete),
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
    try:
        for path in speak_to_folder(parser.parse_args(arguments)):
            print(path)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
