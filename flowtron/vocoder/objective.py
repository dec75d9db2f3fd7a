"""Losses of the vocoders, each a module from a batch of sound with its mel to named losses.

Letters: B batch, T_mel frames, T_samples samples, K pitch classes, F frequency bins.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowtron.audio import AudioSettings
from flowtron.errors import InputError
from flowtron.vocoder.glow import Glow
from flowtron.vocoder.pitch import N_CLASSES, track_pitch
from flowtron.vocoder.source_filter import SourceFilterNet, phases, render, smoothed
from flowtron.vocoder.wavenet import WaveNet

RESOLUTIONS = (128, 256, 512, 1024, 2048)  # samples of the windows that spectra are compared in
N_RESOLUTIONS = 3  # drawn for each step
FLOOR = 3e-4  # of magnitudes in the logarithm
PITCH_SIGMA = 1.0  # classes
MIN_VOICED_WEIGHT = 0.05


class LikelihoodObjective(nn.Module):
    """Negative log-likelihood of a flow or of WaveNet."""

    def __init__(self, model: nn.Module, sigma: float) -> None:
        super().__init__()
        self.model, self.sigma = model, sigma

    def forward(self, wav: Tensor, mel: Tensor) -> dict[str, Tensor]:
        """Losses of wav (B, T_samples) with its mel (B, n_mels, T_mel)."""
        # Called as a function: a forward through another name would pass by what distributed training listens to.
        if isinstance(self.model, WaveNet):
            return {"nll": self.model.loss(wav, mel)}
        assert isinstance(self.model, Glow)
        return {"nll": self.model(wav, mel).loss(self.sigma)}


Spectra = list[tuple[Tensor, Tensor]]


def spectra(wav: Tensor, sizes: Sequence[int]) -> Spectra:
    """Log-magnitudes and magnitudes (B, F, frames) of wav (B, T_samples) at every size, noise as its deviation."""
    found = []
    for size in sizes:
        window = torch.hann_window(size, device=wav.device)
        spectrum = torch.stft(wav, size, size // 2, window=window, center=False, return_complex=True)
        power = (spectrum.real.square() + spectrum.imag.square()) / (0.375 * size)
        found.append((0.5 * (power + FLOOR**2).log(), (power + 1e-10).sqrt()))
    return found


def spectral_distance(a: Spectra, b: Spectra, level: Tensor) -> Tensor:
    """Distance of sounds in their spectra: by frame and by bin in logarithm, by bin in magnitude over level (B,)."""
    total = level.new_zeros(())
    for (log_a, a_), (log_b, b_) in zip(a, b):
        difference = log_a - log_b
        by_frame = (difference.square().mean(1) + 1e-4).sqrt().mean()
        by_magnitude = ((a_ - b_).abs().mean((1, 2)) / level).mean()
        total = total + by_frame + 0.5 * difference.abs().mean() + 2 * by_magnitude
    return total / len(a)


class SourceFilterObjective(nn.Module):
    """Energy distance between spectra of recordings and of the model's sound, and the pitch's cross-entropy.

    2 E d(x, y) − E d(y, y'), with y and y' two draws of the model's noise and first phase: a proper score, which is
    least when the model's spread is the recordings' own, where a plain distance would be least without any noise.

    Source: Gritsenko et al. 2020, arXiv 2008.01160.
    """

    def __init__(self, model: SourceFilterNet, settings: AudioSettings) -> None:
        super().__init__()
        self.model, self.settings = model, settings

    def _sound(self, curves: Tensor, pitch: Tensor) -> Tensor:
        settings = self.settings
        start = torch.rand(len(pitch), device=pitch.device) * 2 * math.pi
        phase, each = phases(pitch, settings.hop_length, settings.sample_rate, start)
        return render(self.model, curves, phase, each, torch.randn(len(pitch), 2, phase.shape[1], device=pitch.device))

    def forward(self, wav: Tensor, mel: Tensor) -> dict[str, Tensor]:
        """Losses of wav (B, T_samples) with its mel (B, n_mels, T_mel)."""
        # Pitch at the very start and end of a segment is a guess: the recording is cut off there.
        tracked = track_pitch(list(wav.cpu()), self.settings)
        n_frames = mel.shape[2]
        pitch = torch.stack([each[0][:n_frames] for each in tracked]).to(mel)
        weight = torch.stack([each[1][:n_frames] for each in tracked]).to(mel).clamp(MIN_VOICED_WEIGHT, 1)
        grid = self.model.grid.log()
        classes = (pitch.log() - grid[0]) / (grid[1] - grid[0])
        places = torch.arange(N_CLASSES, device=mel.device)
        target = (-0.5 * ((places - classes[..., None]) / PITCH_SIGMA).square()).softmax(2)
        entropy = -(target * self.model.pitch(mel).log_softmax(2)).sum(2)
        sizes = [RESOLUTIONS[i] for i in torch.randperm(len(RESOLUTIONS))[:N_RESOLUTIONS]]
        curves = self.model.filters(mel)
        # As smooth as it will be spoken: the tracker's jitter would smear high harmonics, which no filter can mend.
        steady = smoothed(pitch)
        sound = spectra(self._sound(curves, steady), sizes)
        with torch.no_grad():
            recorded, other = spectra(wav, sizes), spectra(self._sound(curves, steady), sizes)
        level = wav.square().mean(1).sqrt() + 0.01
        near, spread = spectral_distance(recorded, sound, level), spectral_distance(other, sound, level)
        # The other draw has no gradient, so that of d(y, y') is half of itself: the factors make up for it.
        return {"energy": 2 * (near - spread), "pitch": 0.5 * (entropy * weight).sum() / weight.sum()}


def vocoder_objective(model: nn.Module, settings: AudioSettings, sigma: float) -> nn.Module:
    """Choose the objective of a vocoder's network.

    Raises:
        InputError: it is one that is not trained here.
    """
    if isinstance(model, SourceFilterNet):
        return SourceFilterObjective(model, settings)
    if isinstance(model, Glow | WaveNet):
        return LikelihoodObjective(model, sigma)
    raise InputError(
        "vocoder_config.kind is 'hifigan', which is not trained here; choose waveglow, squeezewave, wavenet or "
        "source_filter, or convert published weights with `flowtron convert`."
    )
