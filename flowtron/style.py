"""What can be done in latent space: draw from a posterior, interpolate, blend speakers, translate mixtures.

    evidence = encode(voice, read_filelist("surprised.txt"), speaker="heart")
    posterior = Posterior.of([each.z for each in evidence], strength=0.1)
    voice.render("Humans are walking on the streets?", "heart", z=posterior.source(seed=1))

Letters: T_mel frames, T_text tokens, D mel channels, K mixture components, S speakers.
"""

import copy
import hashlib
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Users look for these here, beside what is done with them.
from flowtron.encoding import Encoding as Encoding
from flowtron.encoding import encode as encode
from flowtron.encoding import reconstruct as reconstruct
from flowtron.errors import InputError
from flowtron.inference import Latent, draw_latent, draw_noise, fitted, pad_tokens
from flowtron.model.prior import Mixture
from flowtron.speech import Speech
from flowtron.synthesizer import Synthesizer
from flowtron.tensorfile import replaced_file

Aggregation = Literal["batch", "time_and_batch"]
# Of z: one for an utterance, or points of a `curve` over it.
Deviation = float | Sequence[tuple[float, float]]
USUAL_TEMPO = 0.5, 2.0  # of recordings over the voice's own; beyond, a transcript is likely another recording's
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Posterior:
    """N(mean, variance · I) of z, given pieces of evidence.

    Evidence ζ_i is taken as z with noise of variance `strength` (λ): with r = m / λ for m pieces,
    mean = r / (r + 1) · ζ̄ and variance = 1 / (r + 1). Large λ gives the prior, small λ the evidence.
    Source: Valle et al. 2020, section 2.5; Gambardella et al. 2019 (arXiv 1911.13270).

    mean: (D, T_mel), repeated where more frames are asked for. variance: of every component.
    """

    mean: Tensor
    variance: float

    @classmethod
    def of(
        cls,
        evidence: Sequence[Tensor],
        strength: float = 1e-4,
        aggregation: Aggregation = "batch",
        n_frames: int = 300,
    ) -> "Posterior":
        """Compute the posterior of latents.

        Args:
            evidence: (D, T_mel) each, of any lengths.
            strength: λ, the variance of the evidence around z.
            aggregation: 'batch' averages over the evidence, frame by frame, each repeated or cut to n_frames;
                'time_and_batch' averages over frames too, which keeps what is constant in time.
            n_frames: of the mean, for 'batch'.

        Raises:
            InputError: there is no evidence, or an argument is out of its range.
        """
        if not evidence:
            raise InputError("there is no evidence; give at least one recording of the style.")
        if not strength > 0:
            raise InputError(f"lambda is {strength}, but it is a variance; give a positive one, for example 1e-4.")
        if n_frames < 1:
            raise InputError(f"n_frames is {n_frames}; give at least 1, for example 300.")
        if aggregation == "batch":
            mean = torch.stack([fitted(z, n_frames) for z in evidence]).mean(0)
        elif aggregation == "time_and_batch":
            mean = torch.stack([z.mean(1, keepdim=True) for z in evidence]).mean(0)
        else:
            raise InputError(f"aggregation is {aggregation!r}, expected 'batch' or 'time_and_batch'; choose one.")
        ratio = evidence_ratio(len(evidence), strength)
        # In this form λ → ∞ and λ → 0 are reached without overflow.
        return cls(mean / (1 + 1 / ratio) if ratio else torch.zeros_like(mean), 1 / (ratio + 1))

    @property
    def weight(self) -> float:
        """Weight of the evidence in the mean, r / (r + 1): 0 leaves the prior."""
        return 1 - self.variance

    def rate(self, tempo: float) -> float:
        """Speaking rate that follows the evidence's `tempo`, which durations keep out of z, as far as z follows."""
        return tempo**self.weight

    def sample(
        self, n_frames: int, seed: int, sigma: Deviation | None = None, voice: Synthesizer | None = None
    ) -> Tensor:
        """Draw (D, n_frames).

        Args:
            n_frames, seed: of the draw.
            sigma: standard deviation around the mean, or points of a `curve` over the utterance; None takes the
                posterior's own.
            voice: in whose order of processing to draw, so that the noise is that of a `prior_source` with this seed;
                None draws in order of time.
        """
        deviation = math.sqrt(self.variance) if sigma is None else deviation_over_time(sigma, n_frames)
        noise = draw_noise(n_frames, len(self.mean), seed)
        if voice is not None:
            noise = _turned(noise, voice)
        return fitted(self.mean, n_frames) + deviation * noise.T.to(self.mean)

    def source(self, seed: int, sigma: Deviation | None = None, voice: Synthesizer | None = None) -> Latent:
        """Return the draw as a function of the number of frames, for `Synthesizer.render`; see `sample`."""
        return lambda n_frames: self.sample(n_frames, seed, sigma, voice)


def _turned(frames: Tensor, voice: Synthesizer) -> Tensor:
    """Frames (T_mel, ...) from order of time to the model's order of processing, or back."""
    return frames.flip(0) if voice.flowtron.reads_backward_first else frames


@torch.inference_mode()
def tempo(voice: Synthesizer, encodings: Sequence[Encoding]) -> float:
    """How many times faster recordings are than the voice itself would speak them: a `rate` to speak at.

    Where a model predicts durations, they are no part of z, and this is their evidence: the frames predicted for the
    recordings' tokens over the frames recorded. 1 for a model without durations, whose rhythm comes from z.
    """
    predictor = voice.flowtron.duration_predictor
    if predictor is None or not encodings:
        return 1.0
    device = next(voice.flowtron.parameters()).device
    predicted = 0
    for encoding in encodings:
        tokens, lengths = pad_tokens([encoding.tokens], device)
        speaker_id = torch.tensor([voice.speaker_id(encoding.speaker)], device=device)
        predicted += int(predictor.sample(tokens, lengths, speaker_id).sum())
    return predicted / sum(encoding.mel.shape[1] for encoding in encodings)


def odd_tempo(name: str, tempo: float) -> list[str]:
    """A note where the `tempo` of the recording of this name is so unusual that its transcript may be another's."""
    if USUAL_TEMPO[0] <= tempo <= USUAL_TEMPO[1]:
        return []
    return [f"{name}: its tempo is {tempo:.2f} times the voice's own; check that its transcript is what is said in it"]


def fingerprint(voice: Synthesizer) -> str:
    """Hash of the model's weights, which tells whether evidence is in its latent space."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in voice.flowtron.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.float().cpu().numpy().tobytes())
    return digest.hexdigest()


class Evidence(NamedTuple):
    """Recordings of a style, encoded: z (D, T_mel) each, their `tempo`, as whom they were encoded, and the
    `fingerprint` of the model, empty where that is not known."""

    z: list[Tensor]
    tempo: float
    speaker: str
    model: str = ""

    @classmethod
    def of(cls, voice: Synthesizer, encodings: Sequence[Encoding]) -> "Evidence":
        """Take what encodings tell."""
        zs = [each.z for each in encodings]
        return cls(zs, tempo(voice, encodings), encodings[0].speaker, fingerprint(voice))

    def save(self, path: str | Path) -> Path:
        """Write an .npz: z_0, z_1, ... as float32, tempo, speaker, model, and the mean and deviation of z (D,) to look
        at."""
        joined = torch.cat(self.z, 1)
        arrays: dict[str, Any] = {f"z_{k}": z.numpy() for k, z in enumerate(self.z)}
        arrays |= {"tempo": np.array(self.tempo), "speaker": np.array(self.speaker), "model": np.array(self.model)}
        arrays |= {"mean": joined.mean(1).numpy(), "deviation": joined.std(1).numpy()}
        with replaced_file(Path(path)) as file:
            np.savez(file, **arrays)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Evidence":
        """Read what `save` wrote.

        Raises:
            InputError: it is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                n = sum(name.startswith("z_") for name in arrays.files)
                z = [torch.from_numpy(arrays[f"z_{k}"]).float() for k in range(n)]
                model = str(arrays["model"]) if "model" in arrays.files else ""
                found = cls(z, float(arrays["tempo"]), str(arrays["speaker"]), model)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise InputError(f"{path}: not evidence of a style; write it with flowtron style encode.") from None
        if not found.z or any(each.dim() != 2 or not each.shape[1] for each in found.z):
            raise InputError(f"{path}: it holds no z; write it anew with flowtron style encode.")
        return found


def evidence_ratio(m: int, strength: float) -> float:
    """r = m / λ: how much more m pieces of evidence weigh than the prior."""
    return m / strength


def curve(points: Sequence[tuple[float, float]], n_frames: int) -> Tensor:
    """Piecewise linear curve (n_frames,) over an utterance, constant outside its points.

    Args:
        points: (share of the utterance from 0 to 1, value), in order of time.
        n_frames: of the utterance.

    Raises:
        InputError: there are no points, or they are not in order.
    """
    where = [share for share, _ in points]
    if not points or where != sorted(where) or where[0] < 0 or where[-1] > 1:
        raise InputError(
            f"{list(points)}: expected points (share, value) with shares from 0 to 1 in order; correct it."
        )
    share = np.linspace(0, 1, n_frames) if n_frames > 1 else np.zeros(1)
    return torch.from_numpy(np.interp(share, where, [value for _, value in points])).float()


def deviation_over_time(sigma: Deviation, n_frames: int) -> float | Tensor:
    """Standard deviation of every frame: a number for all, or the `curve` of its points (n_frames,)."""
    return sigma if isinstance(sigma, float | int) else curve(sigma, n_frames)


def prior_source(
    voice: Synthesizer,
    seed: int,
    sigma: Deviation = 1.0,
    mixture: Mixture | None = None,
    component: int | None = None,
) -> Latent:
    """Draw from the prior as a function of the number of frames, for `Synthesizer.render`.

    Args:
        voice: of the model.
        seed: of the draw; the same seed and sigma give what `voice` itself draws.
        sigma: standard deviation, or points of a `curve` over the utterance.
        mixture: to draw from, such as an encoding's; None takes the model's own where it has one.
        component: of the mixture alone; None draws by its probabilities.

    Raises:
        InputError: there is no such component.
    """
    model = voice.flowtron
    if mixture is None and model.mixture is not None:
        with torch.inference_mode():
            mixture = model.mixture.unconditional()
    if component is not None and (mixture is None or not 0 <= component < mixture.prob.shape[1]):
        n = 0 if mixture is None else mixture.prob.shape[1]
        raise InputError(f"component is {component}, but this model's prior has {n}; choose one below that.")

    def source(n_frames: int) -> Tensor:
        deviation = deviation_over_time(sigma, n_frames)
        # Drawn in order of processing, but a curve is over time.
        if isinstance(deviation, Tensor):
            deviation = _turned(deviation, voice)[:, None]
        z = draw_latent(n_frames, model.n_mels, seed, deviation, mixture, component)
        return _turned(z, voice).T

    return source


def interpolate(a: Tensor, b: Tensor, weight: float | Tensor, spherical: bool = False) -> Tensor:
    """Interpolate between latents a and b (D, T_mel), of which the shorter is repeated.

    Linear: (1 − w) a + w b. It shrinks independent draws, to 0.71 of their size half way. Spherical:
    (sin (1 − w)θ a + sin wθ b) / sin θ, with θ the angle between them, which keeps the size.

    Args:
        a, b: (D, T_mel).
        weight: w, of b, or one for each frame (T_mel,).
        spherical: instead of linear.
    """
    n_frames = max(a.shape[1], b.shape[1])
    a, b = fitted(a, n_frames), fitted(b, n_frames)
    w = torch.as_tensor(weight, dtype=a.dtype)
    if spherical:
        cosine = (a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12)
        angle = cosine.clamp(-1, 1).acos()
        if float(angle.sin()) > 1e-4:
            return (((1 - w) * angle).sin() * a + (w * angle).sin() * b) / angle.sin()
    return (1 - w) * a + w * b


def interpolation_source(
    first: Latent, second: Latent, weight: float | Sequence[tuple[float, float]], spherical: bool = False
) -> Latent:
    """Interpolate between what two latents or sources give, as a function of the number of frames.

    Args:
        first, second: latents or sources, such as of the prior and a posterior.
        weight: of the second, or points of a `curve` over the utterance: (0, 0), (1, 1) moves from first to second.
        spherical: instead of linear.
    """

    def source(n_frames: int) -> Tensor:
        a, b = (fitted(each, n_frames) if isinstance(each, Tensor) else each(n_frames) for each in (first, second))
        w = weight if isinstance(weight, float | int) else curve(weight, n_frames)
        return interpolate(a, b, w, spherical)

    return source


class BlendedSpeakers(nn.Module):
    """A table of speakers with one row more: a weighted sum of the others, the same or one for every token."""

    def __init__(self, embedding: nn.Embedding, weights: Tensor) -> None:
        """Blend rows of `embedding` by weights (S,), or (T_text, S) for one text's tokens."""
        super().__init__()
        self.num_embeddings = embedding.num_embeddings + 1
        self.table = embedding.weight.detach()
        self.row = weights.to(self.table) @ self.table

    def forward(self, speaker_id: Tensor) -> Tensor:
        """Look up speakers (B,): (B, C), or (B, T_text, C) where the last row varies over tokens."""
        if self.row.dim() == 1:
            return F.embedding(speaker_id, torch.cat([self.table, self.row[None]]))
        if not bool((speaker_id == self.num_embeddings - 1).all()):
            return F.embedding(speaker_id, self.table)
        return self.row.expand(len(speaker_id), -1, -1)


def blend_speakers(
    voice: Synthesizer,
    first: str | int,
    second: str | int,
    weight: float | Sequence[tuple[float, float]],
    text: str = "",
) -> tuple[Synthesizer, str]:
    """Make a speaker between two.

    Args:
        voice: with the speakers.
        first, second: by name or number.
        weight: of the second, or points of a `curve` over the text's tokens.
        text: that will be spoken, where the weight varies over it.

    Returns:
        A voice with one speaker more, which shares everything else with the given one, and that speaker's name.

    Raises:
        InputError: there is no such speaker, or the model does not listen to speakers.
    """
    model = voice.flowtron
    if model.dummy_speaker:
        raise InputError("this model was trained without speakers; interpolate between two z of its prior instead.")
    a, b = voice.speaker_id(first), voice.speaker_id(second)
    n_speakers = model.speaker_embedding.num_embeddings
    share: float | Tensor = weight if isinstance(weight, float | int) else _token_curve(voice, weight, text)
    second_share = torch.as_tensor(share)[..., None]
    weights = (1 - second_share) * F.one_hot(torch.tensor(a), n_speakers)
    weights = weights + second_share * F.one_hot(torch.tensor(b), n_speakers)
    blended = _with_modules(model, speaker_embedding=BlendedSpeakers(model.speaker_embedding, weights))
    for name in ("duration_predictor", "aligner"):
        part = getattr(model, name)
        # The aligner compares one speaker with a recording; it has no use for one that changes.
        if part is not None and (name != "aligner" or weights.dim() == 1):
            table = BlendedSpeakers(part.speaker_embedding, weights)
            blended = _with_modules(blended, **{name: _with_modules(part, speaker_embedding=table)})
    name = f"{first}+{second}"
    rows_without_name = map(str, range(len(voice.speakers), n_speakers))
    speakers = [*voice.speakers, *rows_without_name, name]
    parts = (voice.tokenizer, speakers, voice.settings, voice.vocoder, voice.weights, voice.path_width)
    return Synthesizer(blended, *parts), name


def _token_curve(voice: Synthesizer, points: Sequence[tuple[float, float]], text: str) -> Tensor:
    return curve(points, len(voice.tokenizer.encode(text).tokens))


def _with_modules(module: M, **parts: nn.Module) -> M:
    """Copy a module, with some of its parts replaced and all else shared."""
    other = copy.copy(module)
    other._modules = {**module._modules, **parts}
    return other


def transfer_rhythm(voice: Synthesizer, encoding: Encoding, speaker: str | int, z: Latent | None = None) -> Speech:
    """Speak a recording's transcript as another speaker, with its durations and the model's own attention.

    Args:
        voice: with the speaker.
        encoding: of the recording.
        speaker: who speaks.
        z: latent or source; None draws it.
    """
    return voice.render(encoding.utterance.text, speaker, z=z, durations=encoding.durations)


def transfer_alignment(voice: Synthesizer, encoding: Encoding, speaker: str | int, z: Latent | None = None) -> Speech:
    """Speak a recording's transcript as another speaker, with its attention itself, in every step of flow."""
    return voice.render(encoding.utterance.text, speaker, z=z, attention=encoding.attention)


def component_shares(encodings: Sequence[Encoding]) -> dict[str, Tensor]:
    """Mean probability (K,) of each mixture component, by the recordings' own speakers, or 'unknown'.

    Raises:
        InputError: the model's prior is no mixture.
    """
    by_speaker: dict[str, list[Tensor]] = {}
    for encoding in encodings:
        if encoding.mixture is None:
            raise InputError("this model's prior is no mixture; train one with model_config.n_components of 2 or more.")
        by_speaker.setdefault(encoding.utterance.speaker or "unknown", []).append(encoding.mixture.prob[0])
    return {speaker: torch.stack(rows).mean(0) for speaker, rows in sorted(by_speaker.items())}


def translate(mixture: Mixture, component: int, dimension: int, deviations: float) -> Mixture:
    """Move the mean of one dimension of one component by a number of its standard deviations."""
    mean = mixture.mean.clone()
    mean[:, dimension, component] += deviations * (0.5 * mixture.log_var[:, dimension, component]).exp()
    return mixture._replace(mean=mean)
