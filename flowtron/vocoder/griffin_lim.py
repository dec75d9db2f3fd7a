"""Griffin-Lim: sound from a mel without any weights.

Letters: B batch, T_mel frames, n_bins frequency bins.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from flowtron.audio import AudioSettings, mel_to_magnitude

FADE_FRAMES = 8  # of a stream's pieces


class InverseStft:
    """`torch.istft` of centred frames, with what does not depend on the spectrum computed once.

    window: (n_fft,). n_frames: of every spectrum. Sound is (n_frames − 1) · hop samples long.
    """

    def __init__(self, window: Tensor, hop: int, n_frames: int) -> None:
        self.n_fft, self.hop = len(window), hop
        self.window = functional.pad(window, (0, -len(window) % hop)).view(-1, hop)
        weight = self._overlapped(self.window.expand(1, n_frames, -1, -1))
        self.weight = weight.clamp(min=1e-11).reciprocal()

    def _overlapped(self, frames: Tensor) -> Tensor:
        """Sum frames (B, T_mel, n_fft / hop, hop), weighted by the window, to (B, T_samples)."""
        batch, n_frames, parts, hop = frames.shape
        total = frames.new_zeros(batch, n_frames + parts - 1, hop)
        for part in range(parts):
            total[:, part : part + n_frames].addcmul_(frames[:, :, part], self.window[part])
        return total.flatten(1)[:, self.n_fft // 2 :][:, : (n_frames - 1) * hop]

    def __call__(self, spectrum: Tensor) -> Tensor:
        """Turn spectra (B, n_bins, T_mel) into sound (B, T_samples)."""
        frames = torch.fft.irfft(spectrum.mT, self.n_fft)
        if self.n_fft % self.hop:
            frames = functional.pad(frames, (0, -self.n_fft % self.hop))
        return self._overlapped(frames.unflatten(2, (-1, self.hop))) * self.weight


class GriffinLim:
    """Fast Griffin-Lim: alternate projections on the magnitudes and on consistent spectra, with momentum.

    Source: Griffin and Lim 1984; Perraudin, Balazs and Søndergaard 2013 for the momentum.
    """

    def __init__(
        self, settings: AudioSettings | None = None, n_iter: int = 32, momentum: float = 0.99, power: float = 1.2
    ) -> None:
        """Set the number of iterations, the momentum, and the power that magnitudes are sharpened by."""
        self.settings = settings or AudioSettings()
        self.n_iter, self.momentum, self.power = n_iter, momentum, power

    def __call__(self, mel: Tensor) -> Tensor:
        """Turn log-mels (B, n_mels, T_mel) into wav (B, T_mel · hop_length) in [-1, 1].

        The first phases are drawn with a fixed seed: the same mel gives the same sound.
        """
        settings = self.settings
        magnitude = mel_to_magnitude(mel, settings)
        if self.power != 1.0:
            sharpened = magnitude**self.power
            # Sharpening must not change how loud a frame is.
            magnitude = sharpened * (magnitude.norm(dim=1, keepdim=True) / sharpened.norm(dim=1, keepdim=True))
        window = torch.hann_window(settings.win_length, device=mel.device)
        beside = settings.n_fft - settings.win_length
        window = functional.pad(window, (beside // 2, beside - beside // 2))
        generator = torch.Generator().manual_seed(0)
        angle = torch.rand(magnitude.shape[1:], generator=generator).to(mel) * (2 * torch.pi)
        phase = torch.polar(torch.ones_like(angle), angle).expand(magnitude.shape)
        n_samples = settings.hop_length * (mel.shape[2] - 1)
        if n_samples < settings.n_fft:
            # Too short for the padding of the transform: a longer mel of silence is cut afterwards.
            missing = settings.n_fft // settings.hop_length + 1
            silence = mel.new_full((*mel.shape[:2], missing), float(mel.min()))
            return self(torch.cat([mel, silence], 2))[:, : mel.shape[2] * settings.hop_length]
        magnitude = magnitude.mT.contiguous().mT  # lies as spectra do, frame by frame
        spectrum, before = magnitude * phase, None
        to_wav = InverseStft(window, settings.hop_length, mel.shape[2])
        for _ in range(self.n_iter):
            wav = to_wav(spectrum)
            rebuilt = torch.stft(wav, settings.n_fft, settings.hop_length, window=window, return_complex=True)
            share = 0.0 if before is None else self.momentum / (1 + self.momentum)
            ahead = torch.sub(rebuilt, rebuilt if before is None else before, alpha=share)
            before = rebuilt
            # The phase of `ahead` and the known magnitude; a square and a root are faster than a complex norm.
            power = (ahead * ahead.conj()).real.clamp(min=1e-24)
            spectrum = ahead * power.rsqrt_().mul_(magnitude)
        wav = to_wav(spectrum)
        return functional.pad(wav, (0, settings.hop_length)).clamp(-1, 1)

    def stream(self, mels: Iterable[Tensor]) -> Iterator[Tensor]:
        """Turn consecutive mels (n_mels, T_mel) into consecutive wavs, which fade into each other.

        Phases are found anew for each piece, with the last frames of the one before it; what fades is held back.
        """
        hop, held, tail = self.settings.hop_length, torch.zeros(0), torch.zeros(0)
        for mel in mels:
            held = torch.cat([held, mel], 1) if held.numel() else mel
            if held.shape[1] <= 2 * FADE_FRAMES:
                continue
            wav = self._led_in(held, tail)
            end = (held.shape[1] - FADE_FRAMES) * hop
            yield wav[:end]
            held, tail = held[:, -FADE_FRAMES:], wav[end:]
        if len(tail) and held.shape[1] == FADE_FRAMES:  # nothing came to fade into
            yield tail
        elif held.numel():
            yield self._led_in(held, tail)

    def _led_in(self, mel: Tensor, tail: Tensor) -> Tensor:
        """Sound of a mel (n_mels, T_mel), faded in from the end of the sound before it."""
        wav = self(mel[None])[0]
        if len(tail):
            share = torch.linspace(0, 1, len(tail), device=wav.device)
            # Of equal power, since the two differ in phase.
            wav[: len(tail)] = ((1 - share).sqrt() * tail + share.sqrt() * wav[: len(tail)]).clamp(-1, 1)
        return wav
