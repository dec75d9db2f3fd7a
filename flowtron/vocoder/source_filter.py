"""A light vocoder: pulses and noise through filters that a small network reads off the mel.

Everything that is learned runs at the rate of the mel's frames. The network names the pitch and, for two half-frames
a frame, four curves over frequency: how strong and in what phase pulses at that pitch are, how strong steady noise is,
and how strong noise in the rhythm of the pulses is. The sum of the three filtered sources is the sound.

Letters: B batch, T_mel frames, T_samples = T_mel · hop_length, K pitch classes, F = n_fft / 2 + 1 filter bins.

Sources: Wang, Takaki and Yamagishi 2019 (neural source-filter); Engel et al. 2020 (differentiable synthesis); Siuzdak
2023 (a network at the frame rate with a Fourier head); Liu et al. 2022 (ConvNeXt blocks).
"""

import math

import torch
from torch import Tensor, nn

from flowtron.audio import AudioSettings, mel_filters
from flowtron.vocoder.pitch import pitch_grid

SUBFRAMES = 2  # filters per mel frame
SMOOTHING_REACH = 2  # frames


class Block(nn.Module):
    """ConvNeXt block: depthwise convolution over time, then two layers at every frame, added to the input."""

    def __init__(self, n_channels: int, expansion: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(n_channels, n_channels, 7, padding=3, groups=n_channels)
        self.norm = nn.LayerNorm(n_channels)
        self.wide = nn.Linear(n_channels, expansion * n_channels)
        self.narrow = nn.Linear(expansion * n_channels, n_channels)
        self.scale = nn.Parameter(torch.full((n_channels,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T_mel, C) to the same shape."""
        y = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return x + self.scale * self.narrow(nn.functional.gelu(self.wide(self.norm(y))))


class FrameNet(nn.Module):
    """ConvNeXt blocks between a convolution over the mel and a linear layer at every frame."""

    def __init__(self, n_in: int, n_out: int, n_channels: int, n_blocks: int, expansion: int) -> None:
        super().__init__()
        self.embed = nn.Conv1d(n_in, n_channels, 7, padding=3)
        self.embed_norm = nn.LayerNorm(n_channels)
        self.blocks = nn.ModuleList(Block(n_channels, expansion) for _ in range(n_blocks))
        self.norm = nn.LayerNorm(n_channels)
        self.head = nn.Linear(n_channels, n_out)

    def forward(self, mel: Tensor) -> Tensor:
        """Map (B, n_in, T_mel) to (B, T_mel, n_out)."""
        x = self.embed_norm(self.embed(mel).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class SourceFilterNet(nn.Module):
    """The networks: from mel to pitch classes, and to filter curves."""

    base: Tensor
    grid: Tensor

    def __init__(
        self,
        settings: AudioSettings,
        n_channels: int = 192,
        n_blocks: int = 6,
        expansion: int = 3,
        n_pitch_channels: int = 96,
        n_pitch_blocks: int = 3,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.n_fft = 2 * settings.hop_length
        self.hop = settings.hop_length // SUBFRAMES
        self.n_bins = self.n_fft // 2 + 1
        self.pitch = FrameNet(settings.n_mels, len(pitch_grid()), n_pitch_channels, n_pitch_blocks, expansion)
        self.curves = FrameNet(settings.n_mels, SUBFRAMES * 4 * self.n_bins, n_channels, n_blocks, expansion)
        nn.init.normal_(self.curves.head.weight, std=0.01)
        # Sources alone and together start at about the level that the mel says.
        bias = torch.zeros(SUBFRAMES, 4, self.n_bins)
        bias[:, 0], bias[:, 2], bias[:, 3] = -0.3, -1.0, -1.5
        self.curves.head.bias.data = bias.flatten()
        # Frames that a filter or a smoothed pitch depends on, on either side: three for each convolution.
        self.context_frames = max(3 * (1 + n_blocks), 3 * (1 + n_pitch_blocks) + SMOOTHING_REACH)
        self.register_buffer("base", self._spread(), persistent=False)
        self.register_buffer("grid", pitch_grid(), persistent=False)

    def _spread(self) -> Tensor:
        """Return the interpolation (n_mels, F) from log-mels to log-gains of white noise at the filter's bins."""
        settings = self.settings
        filters = mel_filters(settings)
        centres = (filters * torch.arange(filters.shape[1])).sum(1) / filters.sum(1)
        bins = torch.arange(self.n_bins) * (settings.n_fft / self.n_fft)
        right = torch.searchsorted(centres, bins).clamp(1, settings.n_mels - 1)
        part = ((bins - centres[right - 1]) / (centres[right] - centres[right - 1])).clamp(0, 1)
        weights = torch.zeros(settings.n_mels, self.n_bins)
        weights[right - 1, torch.arange(self.n_bins)] = 1 - part
        weights[right, torch.arange(self.n_bins)] += part
        return weights

    @property
    def offset(self) -> float:
        """Log-gain of white noise whose log-mel is zero, roughly."""
        per_band = float(mel_filters(self.settings).sum(1).mean())
        # The mean of |STFT| of unit noise under a Hann window: √(3/8 · win_length · π/4).
        return -math.log(per_band * math.sqrt(0.375 * self.settings.win_length * math.pi / 4))

    def filters(self, mel: Tensor) -> Tensor:
        """Read the filters off a mel (B, n_mels, T_mel).

        Returns:
            Curves (B, 4, 2 · T_mel, F): log-gain and phase of the pulses, log-gain of the steady noise, log-gain of the
            noise in bursts.
        """
        curves = self.curves(mel).unflatten(2, (SUBFRAMES, 4, self.n_bins)).permute(0, 3, 1, 2, 4).flatten(2, 3)
        level = (mel.transpose(1, 2) @ self.base + self.offset).repeat_interleave(SUBFRAMES, 1)
        return curves + level[:, None] * curves.new_tensor([1.0, 0.0, 1.0, 1.0])[:, None, None]

    def pitch_hz(self, logits: Tensor) -> Tensor:
        """Pitch in Hz (B, T_mel): the mean of the best class and its neighbours, weighted by probability."""
        best = logits.argmax(2, keepdim=True)
        near = best + torch.arange(-4, 5, device=logits.device)
        inside = near.clamp(0, logits.shape[2] - 1)
        weights = logits.gather(2, inside).masked_fill(near != inside, -torch.inf).softmax(2)
        return (weights * self.grid.log()[inside]).sum(2).exp()


def smoothed(pitch: Tensor) -> Tensor:
    """Smooth a pitch (B, T_mel) in Hz by a triangle over five frames, in logarithm: jitter makes a voice rough."""
    weights = pitch.new_tensor([1.0, 2.0, 3.0, 2.0, 1.0]) / 9
    padded = nn.functional.pad(pitch.log()[:, None], (SMOOTHING_REACH, SMOOTHING_REACH), mode="replicate")
    return nn.functional.conv1d(padded, weights[None, None])[:, 0].exp()


def phases(
    pitch: Tensor, hop_length: int, sample_rate: int, start: Tensor, open_end: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the phase of the first harmonic in radians, in float64, and the pitch in Hz, at every sample.

    Args:
        pitch: (B, T_mel) in Hz at the frames' centres, t · hop_length; one more frame than asked for when `open_end`.
        hop_length: samples.
        sample_rate: Hz.
        start: (B,) phase before the first sample.
        open_end: the last frame is only what the one before it leads to; else it lasts for a frame of its own.

    Returns:
        Both (B, T_samples).
    """
    ahead = pitch[:, 1:] if open_end else torch.cat([pitch[:, 1:], pitch[:, -1:]], 1)
    pitch = pitch[:, : ahead.shape[1]]
    part = torch.arange(hop_length, device=pitch.device) / hop_length
    each = (pitch[..., None] + (ahead - pitch)[..., None] * part).flatten(1)
    phase = start[:, None].double() + (each.double() * (2 * math.pi / sample_rate)).cumsum(1)
    return phase.remainder(2 * math.pi), each


def pulses(phase: Tensor, pitch: Tensor, sample_rate: int) -> Tensor:
    """Return a pulse train of unit power (B, T_samples): all harmonics below the Nyquist frequency, as cosines.

    Σ_{k=1}^{K} cos kφ = sin((K + ½)φ) / (2 sin ½φ) − ½.
    """
    n = (0.5 * sample_rate / pitch).floor()
    half = torch.where(phase > math.pi, phase - 2 * math.pi, phase) / 2
    sine = half.sin()
    near = sine.abs() < 1e-4
    total = torch.where(near, n, torch.sin((2 * n + 1) * half) / (2 * torch.where(near, 1.0, sine)) - 0.5)
    return total * (2 / n).sqrt()


def minimum_phase(log_gain: Tensor) -> Tensor:
    """Return the phase (..., F) in radians of the minimum-phase filter with log-gain (..., F), by its cepstrum."""
    n_fft = 2 * (log_gain.shape[-1] - 1)
    cepstrum = torch.fft.irfft(log_gain, n_fft)
    fold = torch.zeros(n_fft, device=log_gain.device, dtype=log_gain.dtype)
    fold[1 : n_fft // 2] = 1
    fold[n_fft // 2 + 1 :] = -1
    # The odd part of the folded cepstrum alone gives the imaginary part of the logarithm.
    return torch.fft.rfft(cepstrum * fold, n_fft).imag


def render(net: SourceFilterNet, curves: Tensor, phase: Tensor, pitch: Tensor, noise: Tensor) -> Tensor:
    """Filter the sources.

    Args:
        net: whose geometry to use.
        curves: (B, 4, 2 · T_mel, F).
        phase: (B, T_samples) of the first harmonic, in float64.
        pitch: (B, T_samples) in Hz, of any type.
        noise: (B, 2, T_samples) from N(0, 1).

    Returns:
        wav (B, T_samples).
    """
    B, n_samples = phase.shape
    phase, pitch = phase.to(curves.dtype), pitch.to(curves.dtype)
    window = torch.hann_window(net.n_fft, device=curves.device)
    # Noise in bursts around the pulses, of unit power on average.
    burst = (1 + phase.cos()) * math.sqrt(2 / 3)
    sources = torch.stack([pulses(phase, pitch, net.settings.sample_rate), noise[:, 0], noise[:, 1] * burst], 1)
    # Silence beyond either end, so that a piece cut out of a longer sound sees the same within.
    flat = sources.flatten(0, 1)
    spectra = torch.stft(flat, net.n_fft, net.hop, window=window, pad_mode="constant", return_complex=True)
    spectra = spectra.unflatten(0, (B, 3)).transpose(2, 3)
    log_gain = curves[:, [0, 2, 3]].clamp(max=4.0)
    turn = minimum_phase(log_gain[:, 0]) + curves[:, 1]
    gains = torch.cat([torch.polar(log_gain[:, :1].exp(), turn[:, None]), log_gain[:, 1:].exp().to(spectra.dtype)], 1)
    gains = torch.cat([gains, gains[:, :, -1:]], 2)
    total = (spectra * gains).sum(1).transpose(1, 2)
    return torch.istft(total, net.n_fft, net.hop, window=window, length=n_samples)
