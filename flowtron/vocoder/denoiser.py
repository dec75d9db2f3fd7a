"""Denoiser: the sound that a vocoder makes of silence, taken out of what it makes of speech.

Letters: B batch, T_samples samples, T_mel frames, n_bins frequency bins.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from flowtron.audio import AudioSettings, windowed_fourier

BIAS_FRAMES = 88


@lru_cache(maxsize=4)
def _window(settings: AudioSettings) -> Tensor:
    """Return the periodic Hann window (n_fft,), padded on both sides, in float64."""
    padding = settings.n_fft - settings.win_length
    window = torch.hann_window(settings.win_length, dtype=torch.float64)
    return torch.nn.functional.pad(window, (padding // 2, padding - padding // 2))


def _overlap_weight(settings: AudioSettings, n_frames: int) -> Tensor:
    """Return the sum of squared windows at every sample, summed up in float32 as the original does."""
    square = _window(settings).square().numpy()
    total = np.zeros(settings.n_fft + settings.hop_length * (n_frames - 1), dtype=np.float32)
    for start in range(0, settings.hop_length * n_frames, settings.hop_length):
        total[start : start + settings.n_fft] += square
    return torch.from_numpy(total)


@lru_cache(maxsize=4)
def _inverse_fourier(settings: AudioSettings) -> Tensor:
    """Return the windowed inverse of the Fourier basis (2 n_bins, n_fft), rounded to float32 as the original's is."""
    n_fft = settings.n_fft
    fourier = np.fft.fft(np.eye(n_fft))[: n_fft // 2 + 1]
    inverse = np.linalg.pinv(np.concatenate([fourier.real, fourier.imag]) * (n_fft / settings.hop_length))
    return (torch.from_numpy(inverse.T.copy()).float() * _window(settings).float()).double()


class Denoiser:
    """Spectral subtraction of a vocoder's own noise, which shows in its sound of an empty mel without any noise in z.

    |S'| = max(|S| − strength · |S_bias|, 0), the phase kept.
    """

    def __init__(self, vocode: Callable[[Tensor], Tensor], settings: AudioSettings, dtype: torch.dtype) -> None:
        """Measure the noise.

        Args:
            vocode: from mel (1, n_mels, T_mel) to sound (1, T_samples), at sigma 0.
            settings: of the mels; the transform has their window and hop.
            dtype: of the mel to measure with.
        """
        self.settings = settings
        with torch.no_grad():
            silence = vocode(torch.zeros(1, settings.n_mels, BIAS_FRAMES, dtype=dtype))
        real, imaginary = self._transform(silence)
        # (1, n_bins, 1)
        self.bias = torch.hypot(real, imaginary)[:, :, :1]

    def _transform(self, wav: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary part (B, n_bins, T_mel) of the spectrum."""
        half = self.settings.n_fft // 2
        padded = torch.nn.functional.pad(wav[:, None], (half, half), mode="reflect")[:, 0]
        frames = padded.unfold(1, self.settings.n_fft, self.settings.hop_length)
        real, imaginary = (frames @ windowed_fourier(self.settings).to(wav)).transpose(1, 2).chunk(2, 1)
        return real, imaginary

    def _inverse(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Sound (B, hop_length · (T_mel − 1)) by overlap and add, divided by the sum of squared windows."""
        n_fft, hop_length, n_frames = self.settings.n_fft, self.settings.hop_length, real.shape[2]
        frames = torch.cat([real, imaginary], 1).transpose(1, 2) @ _inverse_fourier(self.settings).to(real)
        length = n_fft + hop_length * (n_frames - 1)
        shape = {"output_size": (1, length), "kernel_size": (1, n_fft), "stride": (1, hop_length)}
        total = torch.nn.functional.fold(frames.transpose(1, 2), **shape)[:, 0, 0]
        weight = _overlap_weight(self.settings, n_frames).to(real)
        total = total / weight.clamp(min=torch.finfo(torch.float32).tiny) * (n_fft / hop_length)
        return total[:, n_fft // 2 : length - n_fft // 2]

    def __call__(self, wav: Tensor, strength: float = 0.1) -> Tensor:
        """Denoise sound.

        Args:
            wav: (B, T_samples), longer than half a window.
            strength: share of the measured noise to take out; 0 changes nothing but rounding.

        Returns:
            (B, T_samples), the end filled up with zeros to the length of wav.
        """
        real, imaginary = self._transform(wav)
        magnitude = torch.hypot(real, imaginary)
        kept = (magnitude - strength * self.bias.to(wav)).clamp(min=0) / magnitude.clamp(min=1e-30)
        cleaned = self._inverse(real * kept, imaginary * kept)
        return torch.nn.functional.pad(cleaned, (0, wav.shape[1] - cleaned.shape[1]))
