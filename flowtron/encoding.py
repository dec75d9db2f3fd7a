"""Recordings with their transcripts in latent space, and back: z, the attention, durations, exact likelihood.

Letters: B batch, T_mel frames, T_text tokens, D mel channels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowtron.audio import load_wav, log_mel
from flowtron.data import Utterance
from flowtron.errors import InputError
from flowtron.inference import SamplingOptions, pad_mels, pad_tokens, synthesize_mels
from flowtron.inference import Utterance as Spoken
from flowtron.loss import HALF_LOG_TAU
from flowtron.model import Flowtron, FlowtronOutput
from flowtron.model.aligner import monotonic_durations, path_prior
from flowtron.model.prior import Mixture
from flowtron.objective import beta_binomial_priors
from flowtron.speech import Speech
from flowtron.synthesizer import Synthesizer

ENCODE_BATCH = 8
SHORTEST_FRAMES = 4


@dataclass(frozen=True)
class Encoding:
    """A recording in latent space.

    utterance: the recording and its transcript. speaker: as whom it was encoded. tokens: of the transcript. mel, z:
    (D, T_mel). attention: (n_flows, T_mel, T_text). durations: (T_text,) frames of every token; of the aligner's path,
    or of the attention where there is no aligner. nats: (T_mel,) −log p of each frame, per channel, given its
    transcript and speaker. mixture: of this utterance, or None for the prior N(0, 1).
    """

    utterance: Utterance
    speaker: str
    tokens: list[int]
    mel: Tensor
    z: Tensor
    attention: Tensor
    durations: Tensor
    nats: Tensor
    mixture: Mixture | None


@torch.inference_mode()
def encode(
    voice: Synthesizer,
    utterances: Sequence[Utterance],
    speaker: str | int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Encoding]:
    """Encode recordings, with their transcripts, to z.

    A model with an aligner encodes under the prior around its path, as it was trained.

    Args:
        voice: with the model.
        utterances: recordings.
        speaker: as whom to encode all of them; for a transfer of style, the one who will speak. None takes each
            recording's own, or the first where it has none.
        progress: called with the number of recordings done.

    Raises:
        InputError: a recording cannot be read or is too short for its transcript, has nothing to say, or its speaker is
            unknown.
    """
    results: list[Encoding] = []
    for start in range(0, len(utterances), ENCODE_BATCH):
        chosen = utterances[start : start + ENCODE_BATCH]
        ids = [speaker_of(voice, each, speaker) for each in chosen]
        mels = [recorded_mel(voice, each) for each in chosen]
        texts = [voice.tokenizer.encode(each.text).tokens for each in chosen]
        for each, mel, tokens in zip(chosen, mels, texts):
            if len(tokens) > mel.shape[1]:
                raise InputError(
                    f"{each.path}: {len(tokens)} tokens of transcript are more than its {mel.shape[1]} frames; correct "
                    "the transcript or leave the recording out."
                )
        results += encode_batch(voice, chosen, mels, texts, ids)
        progress(len(results))
    return results


def speaker_of(voice: Synthesizer, utterance: Utterance, speaker: str | int | None = None) -> int:
    """Index as whom to encode a recording: the speaker given, else its own, or the first where it has none or the
    model does not listen to speakers.

    Raises:
        InputError: there is no such speaker.
    """
    if speaker is not None:
        return voice.speaker_id(speaker)
    if voice.flowtron.dummy_speaker:
        return 0
    try:
        return voice.speaker_id(utterance.speaker or None)
    except InputError as error:
        raise InputError(f"{utterance.path}: {error}") from None


def recorded_mel(voice: Synthesizer, utterance: Utterance) -> Tensor:
    """Mel (D, T_mel) of a recording.

    Raises:
        InputError: it cannot be read or is too short.
    """
    wav = load_wav(utterance.path, voice.settings.sample_rate, resample=True)
    mel = log_mel(wav, voice.settings)
    if mel.shape[1] < SHORTEST_FRAMES:
        raise InputError(
            f"{utterance.path}: it has {mel.shape[1]} frames, fewer than {SHORTEST_FRAMES}; leave the recording out."
        )
    return mel


@torch.inference_mode()
def encode_batch(
    voice: Synthesizer,
    utterances: Sequence[Utterance],
    mels: Sequence[Tensor],
    texts: Sequence[list[int]],
    speaker_ids: Sequence[int],
) -> list[Encoding]:
    """Encode mels (D, T_mel) with tokens as speakers; see `encode`."""
    model = voice.flowtron
    weight = next(model.parameters())
    device = weight.device
    tokens, token_lengths = pad_tokens(texts, device)
    mel, mel_lengths = pad_mels(mels, weight)
    speaker_id = torch.tensor(speaker_ids, device=device)
    batch = (mel, mel_lengths, tokens, token_lengths, speaker_id)
    durations, prior = None, None
    if model.aligner is not None:
        diagonal = beta_binomial_priors(mel_lengths.tolist(), token_lengths.tolist(), 1.0, device)
        durations = monotonic_durations(model.aligner(*batch, diagonal), mel_lengths, token_lengths)
        prior = path_prior(durations, mel.shape[2], voice.path_width).to(weight.dtype)
    output = model(*batch, attention_prior=prior)
    if durations is None:
        mean = torch.stack(output.attention).mean(0).clamp(min=1e-8).log()
        durations = monotonic_durations(mean, mel_lengths, token_lengths)
    nats = frame_nats(output, model)
    results = []
    for b, (T, N) in enumerate(zip(mel_lengths.tolist(), token_lengths.tolist())):
        row = speaker_ids[b]
        results.append(
            Encoding(
                utterances[b],
                voice.speakers[row] if row < len(voice.speakers) else str(row),
                list(texts[b]),
                mels[b],
                output.z[b, :, :T].cpu(),
                torch.stack([matrix[b, :T, :N] for matrix in output.attention]).cpu(),
                durations[b, :N].cpu(),
                nats[b, :T].cpu(),
                None if output.mixture is None else single(output.mixture, b),
            )
        )
    return results


def frame_nats(output: FlowtronOutput, model: Flowtron) -> Tensor:
    """−log p of each frame per channel (B, T_mel), with its constant, given transcript, speaker, the recording's
    own alignment where an aligner gives one, and its own mixture where that is predicted. Its mean is `nats_per_dim`.

    −log p(x_t) = −log p(z_t) − Σ_steps Σ_d log_scale_{t,d} + D log mel_std.
    """
    energy = 0.5 * output.z.square() if output.mixture is None else output.mixture.energy(output.z)
    scales = torch.stack([step.log_scale.mean(2) for step in output.steps if step.log_scale is not None]).sum(0)
    return energy.mean(1) + HALF_LOG_TAU - scales + math.log(model.mel_std)


def single(mixture: Mixture, b: int) -> Mixture:
    """Item b of the mixtures of a batch, on the CPU."""
    mean, log_var, prob = (part[b : b + 1] if len(part) > 1 else part for part in mixture)
    return Mixture(mean.cpu(), log_var.cpu(), prob.cpu())


def reconstruct(voice: Synthesizer, encoding: Encoding, speaker: str | int | None = None) -> Speech:
    """Decode an encoding: as its own speaker, the recording itself; as another, that one with its rhythm."""
    guided = voice.flowtron.aligner is not None
    return voice.render(
        encoding.utterance.text,
        encoding.speaker if speaker is None else speaker,
        z=encoding.z,
        durations=encoding.durations if guided else None,
        guided=guided,
    )


def predict_along(voice: Synthesizer, encoding: Encoding, sigma: float) -> Tensor:
    """Predict the mel (D, T_mel) of a recording, frame by frame in step with it, as the voice would speak it.

    Its z is the recording's, scaled by sigma, so that it has the size of what synthesis draws: at 1 the mel is the
    recording's own, at 0 the voice's most likely one. Its durations are the recording's. A vocoder trained on such
    mels and the recorded sound learns to make up for what the voice leaves out.

    Args:
        voice: that speaks.
        encoding: of the recording by the same voice.
        sigma: standard deviation of z in synthesis.
    """
    guided = voice.flowtron.aligner is not None
    device = next(voice.flowtron.parameters()).device
    (result,) = synthesize_mels(
        voice.flowtron,
        [Spoken(encoding.tokens, voice.speaker_id(encoding.speaker), 0)],
        SamplingOptions(path_width=voice.path_width),
        z=[sigma * encoding.z],
        attention=None if guided else [matrix[None].to(device) for matrix in encoding.attention],
        durations=[encoding.durations] if guided else None,
        weights=voice.weights,
    )
    return result.mel
