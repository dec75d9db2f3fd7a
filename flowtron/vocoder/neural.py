"""The neural vocoders behind the one interface.

Letters: B batch, T_mel frames, P groups of samples a frame, G samples a group.
"""

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from flowtron.audio import AudioSettings
from flowtron.vocoder.base import SEED, frame_noise, in_context
from flowtron.vocoder.denoiser import Denoiser
from flowtron.vocoder.glow_engine import GlowEngine
from flowtron.vocoder.hifigan import HifiGan
from flowtron.vocoder.source_filter import SourceFilterNet, phases, render, smoothed
from flowtron.vocoder.squeezewave import SqueezeWave
from flowtron.vocoder.waveglow import WaveGlow

BLOCK_FRAMES = 128  # products with many rows are faster; with more than this memory grows
SIGMA = 0.6
SOURCE_FILTER_SIGMA = 0.4  # docs/VOCODERS.md
RENDER_CONTEXT = 3  # frames around a frame that its filters and windows touch


class WaveGlowVocoder:
    """WaveGlow by its inference engine; memory does not grow with the sound."""

    def __init__(
        self,
        model: WaveGlow,
        settings: AudioSettings,
        dtype: torch.dtype | None = None,
        sigma: float = SIGMA,
        denoise: float = 0.0,
    ) -> None:
        """Prepare the engine.

        Args:
            model: the flow.
            settings: of the mels that it was trained on.
            dtype: of the matrix products, such as torch.bfloat16; None keeps the model's.
            sigma: standard deviation of z.
            denoise: strength of the denoiser in whole sounds; a stream is not denoised.
        """
        self.settings, self.sigma, self.denoise = settings, sigma, denoise
        self.engine = GlowEngine(model, dtype)
        self._denoiser: Denoiser | None = None

    def _noise(self, generator: torch.Generator, mel: Tensor, sigma: float) -> Tensor:
        engine = self.engine
        noise = frame_noise(generator, mel.shape[2], engine.phases * engine.n_group) * sigma
        return noise.view(1, -1, engine.n_group).expand(mel.shape[0], -1, -1).to(mel)

    def _pieces(self, mels: Iterable[Tensor], sigma: float) -> Iterator[Tensor]:
        """Turn consecutive mels (B, n_mels, T_mel) into consecutive wavs."""
        generator, state, mel = torch.Generator().manual_seed(SEED), None, None
        for mel in mels:
            state = state or self.engine.start(mel.shape[0])
            yield self.engine.push(state, mel, self._noise(generator, mel, sigma), last=False)
        if state is not None and mel is not None:
            end = mel[..., :0]
            yield self.engine.push(state, end, self._noise(generator, end, sigma), last=True)

    def __call__(self, mel: Tensor) -> Tensor:
        """Turn log-mels (B, n_mels, T_mel) into wav (B, T_mel · hop_length)."""
        with torch.inference_mode():
            wav = torch.cat(list(self._pieces(mel.split(BLOCK_FRAMES, 2), self.sigma)), 1)
            if self.denoise:
                if self._denoiser is None:
                    self._denoiser = Denoiser(
                        lambda x: torch.cat(list(self._pieces([x], 0.0)), 1), self.settings, mel.dtype
                    )
                wav = self._denoiser(wav, self.denoise)
            return wav.clamp(-1, 1)

    def stream(self, mels: Iterable[Tensor]) -> Iterator[Tensor]:
        """Turn consecutive mels (n_mels, T_mel) into consecutive wavs; each comes when its look-ahead is in."""
        with torch.inference_mode():
            for wav in self._pieces((mel[None] for mel in mels), self.sigma):
                if wav.shape[1]:
                    yield wav[0].clamp(-1, 1)


class SqueezeWaveVocoder:
    """The light flow."""

    def __init__(self, model: SqueezeWave, settings: AudioSettings, sigma: float = SIGMA) -> None:
        """Take a model, batch norm folded, and the settings of its mels."""
        self.model, self.settings, self.sigma = model.eval(), settings, sigma

    def _noise(self, generator: torch.Generator, mel: Tensor) -> Tensor:
        noise = frame_noise(generator, mel.shape[-1], self.settings.hop_length) * self.sigma
        return noise.view(-1, self.model.n_group).t().to(mel)

    def __call__(self, mel: Tensor) -> Tensor:
        """Turn log-mels (B, n_mels, T_mel) into wav (B, T_mel · hop_length)."""
        with torch.inference_mode():
            noise = self._noise(torch.Generator().manual_seed(SEED), mel)
            return self.model.inverse(noise.expand(mel.shape[0], -1, -1), mel).clamp(-1, 1)

    def stream(self, mels: Iterable[Tensor]) -> Iterator[Tensor]:
        """Turn consecutive mels (n_mels, T_mel) into consecutive wavs."""
        generator = torch.Generator().manual_seed(SEED)

        def run(mel: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
            return (self.model.inverse(noise[None], mel[None])[0].clamp(-1, 1),)

        with torch.inference_mode():
            pieces = ((mel, self._noise(generator, mel)) for mel in mels)
            for (wav,) in in_context(pieces, self.model.context_frames, run):
                yield wav


class HifiGanVocoder:
    """HiFi-GAN's generator."""

    def __init__(self, model: HifiGan, settings: AudioSettings) -> None:
        """Take a model, weight norm folded, and the settings of its mels."""
        self.model, self.settings = model.eval(), settings

    def __call__(self, mel: Tensor) -> Tensor:
        """Turn log-mels (B, n_mels, T_mel) into wav (B, T_mel · hop_length)."""
        with torch.inference_mode():
            return self.model(mel)

    def stream(self, mels: Iterable[Tensor]) -> Iterator[Tensor]:
        """Turn consecutive mels (n_mels, T_mel) into consecutive wavs."""
        with torch.inference_mode():
            for (wav,) in in_context(
                ((m,) for m in mels), self.model.context_frames, lambda m: (self.model(m[None])[0],)
            ):
                yield wav


class SourceFilterVocoder:
    """Pulses and noise through learned filters: the light vocoder that comes with the package."""

    def __init__(self, model: SourceFilterNet, settings: AudioSettings, sigma: float = SOURCE_FILTER_SIGMA) -> None:
        """Take a model, the settings of its mels, and the standard deviation of the noise, 1 in training."""
        self.model, self.settings, self.sigma = model.eval(), settings, sigma
        # In float64, since errors of the pitch add up over the phase of a sound, and products round by their size.
        self.pitch_net = copy.deepcopy(model.pitch).double()

    def _pitch(self, mel: Tensor) -> Tensor:
        """Pitch (B, T_mel) in Hz of a mel (B, n_mels, T_mel)."""
        return smoothed(self.model.pitch_hz(self.pitch_net(mel.double())))

    def _read(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Filter curves (4, F, 2 · T_mel) and pitch (T_mel,) of a mel (n_mels, T_mel)."""
        model = self.model
        return model.filters(mel[None])[0].transpose(1, 2), self._pitch(mel[None])[0]

    def _render(self, curves: Tensor, phase: Tensor, pitch: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return (
            render(self.model, curves.transpose(1, 2)[None], phase[None], pitch[None], noise[None])[0].clamp(-1, 1),
        )

    def _noise(self, generator: torch.Generator, n_frames: int) -> Tensor:
        hop = self.settings.hop_length
        return self.sigma * frame_noise(generator, n_frames, 2 * hop).view(-1, 2, hop).transpose(0, 1).flatten(1)

    def __call__(self, mel: Tensor) -> Tensor:
        """Turn log-mels (B, n_mels, T_mel) into wav (B, T_mel · hop_length)."""
        settings, model = self.settings, self.model
        with torch.inference_mode():
            pitch = self._pitch(mel)
            phase, each = phases(pitch, settings.hop_length, settings.sample_rate, mel.new_zeros(len(mel)))
            noise = self._noise(torch.Generator().manual_seed(SEED), mel.shape[2]).to(mel)
            return render(model, model.filters(mel), phase, each, noise.expand(len(mel), -1, -1)).clamp(-1, 1)

    def _sources(self, read: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
        """Add phase, pitch and noise at every sample to consecutive filters, a frame behind, since pitch glides."""
        generator, phase = torch.Generator().manual_seed(SEED), torch.zeros(1, dtype=torch.float64)
        curves, pitch = torch.zeros(0), torch.zeros(0)

        def ready(n_frames: int, open_end: bool) -> tuple[Tensor, ...]:
            nonlocal phase
            settings = self.settings
            phi, each = phases(pitch[None], settings.hop_length, settings.sample_rate, phase, open_end)
            phase = phi[:, -1]
            return curves[..., : 2 * n_frames], phi[0], each[0], self._noise(generator, n_frames).to(curves)

        for more_curves, more_pitch in read:
            curves = torch.cat([curves, more_curves], 2) if len(pitch) else more_curves
            pitch = torch.cat([pitch, more_pitch])
            if len(pitch) > 1:
                yield ready(len(pitch) - 1, open_end=True)
                curves, pitch = curves[..., -2:], pitch[-1:]
        if len(pitch):
            yield ready(1, open_end=False)

    def stream(self, mels: Iterable[Tensor]) -> Iterator[Tensor]:
        """Turn consecutive mels (n_mels, T_mel) into consecutive wavs."""
        with torch.inference_mode():
            read = in_context(((mel,) for mel in mels), self.model.context_frames, self._read)
            for (wav,) in in_context(self._sources(read), 2 * RENDER_CONTEXT, self._render):
                yield wav
