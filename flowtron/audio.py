"""Sound in and out, log-mel spectrograms and their inverse.

Letters: T_samples samples, T_mel frames, n_mels mel channels, n_bins = n_fft // 2 + 1 frequency bins.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import soundfile
import torch
from filelock import FileLock
from torch import Tensor

from flowtron.errors import InputError
from flowtron.kernels.build import cache_folder
from flowtron.tensorfile import set_usual_mode

MAX_SIZE = 1 << 16  # of a setting in samples; what files say may not make a machine allocate more
LARGEST = {"sample_rate": 1 << 20, "n_mels": 1 << 10}
LOG_FLOOR = 1e-5  # magnitudes below it are silence
# Floating samples a little beyond 1 come from resampling and are clipped; far beyond it they are of another scale.
MAX_PEAK = 4.0
MARGIN_SECONDS = 0.05  # of silence that is kept at either end of a corpus' recordings


@dataclass(frozen=True)
class AudioSettings:
    """What a mel frame is; a model and its vocoder must agree on it.

    sample_rate in Hz; n_fft, hop_length and win_length in samples; f_min and f_max in Hz.
    """

    sample_rate: int = 22050
    n_fft: int = 1024
    hop_length: int = 256
    win_length: int = 1024
    n_mels: int = 80
    f_min: float = 0.0
    f_max: float = 8000.0

    @classmethod
    def from_json(cls, values: Mapping[str, Any], origin: str) -> "AudioSettings":
        """Make settings of what a file says; what it does not say is the usual.

        Args:
            values: settings by name.
            origin: what to call the file in an error.

        Raises:
            InputError: a name is not one of a setting, or a value is not a number in its range.
        """
        usual = cls().fingerprint()
        for name, value in values.items():
            if name not in usual:
                raise InputError(f"{origin}: {name!r} is no audio setting; expected {', '.join(usual)}.")
            if isinstance(usual[name], int):
                most = LARGEST.get(name, MAX_SIZE)
                if type(value) is not int or not 1 <= value <= most:
                    shown = repr(value)[:40]
                    raise InputError(
                        f"{origin}: {name} is {shown}, expected a whole number from 1 to {most}; correct it."
                    )
            elif type(value) not in (int, float) or not 0 <= value <= LARGEST["sample_rate"]:
                raise InputError(f"{origin}: {name} is {repr(value)[:40]}, expected a frequency in Hz; correct it.")
        settings = cls(**values)
        if settings.win_length > settings.n_fft:
            raise InputError(f"{origin}: win_length {settings.win_length} is above n_fft {settings.n_fft}; correct it.")
        if not settings.f_min < settings.f_max <= settings.sample_rate / 2:
            raise InputError(
                f"{origin}: f_min {settings.f_min:g} and f_max {settings.f_max:g} are no range of frequencies below "
                f"half the sample_rate, {settings.sample_rate / 2:g}; correct it."
            )
        return settings

    def fingerprint(self) -> dict[str, int | float]:
        """Return the settings by name, as they travel with weights."""
        return asdict(self)


@cache
def load_librosa() -> Any:
    """Return librosa, its compiled functions imported by one process at a time.

    Processes that import them at once, the first time on a machine, mix their halves of a function in numba's cache,
    and whoever calls it from then on dies (https://github.com/numba/numba/issues/10128).
    """
    with FileLock(cache_folder() / "librosa.lock"):
        for module in ("librosa.util.utils", "librosa.core.audio", "librosa.core.pitch"):
            import_module(module)
    return librosa


def resampled(wav: np.ndarray, sample_rate: int, wanted_rate: int) -> np.ndarray:
    """Return wav (T_samples,) at another rate in Hz, as float32."""
    wav = np.asarray(wav, dtype=np.float32)
    result: np.ndarray = load_librosa().resample(wav, orig_sr=sample_rate, target_sr=wanted_rate, res_type="soxr_hq")
    return result


def trim_silence(wav: np.ndarray, top_db: float, margin: int = 0) -> np.ndarray:
    """Return wav (T_samples,) without what is `top_db` below its loudest at its ends, but for `margin` samples."""
    _, (start, end) = load_librosa().effects.trim(wav, top_db=top_db, frame_length=1024, hop_length=256)
    return wav[max(0, start - margin) : end + margin]


@lru_cache(maxsize=8)
def mel_filters(settings: AudioSettings) -> Tensor:
    """Return the mel filter bank (n_mels, n_bins) in float32: Slaney's scale and area normalisation."""
    return torch.from_numpy(
        librosa.filters.mel(
            sr=settings.sample_rate,
            n_fft=settings.n_fft,
            n_mels=settings.n_mels,
            fmin=settings.f_min,
            fmax=settings.f_max,
        ).astype(np.float32)
    )


@lru_cache(maxsize=8)
def windowed_fourier(settings: AudioSettings) -> Tensor:
    """Return the windowed Fourier basis (n_fft, 2 n_bins), cosines then sines, in float64.

    Its numbers are rounded to float32, as the original's are: near the floor of the logarithm the rounding shows.
    """
    n_bins = settings.n_fft // 2 + 1
    fourier = np.fft.fft(np.eye(settings.n_fft))[:n_bins]
    window = np.zeros(settings.n_fft, dtype=np.float32)
    start = (settings.n_fft - settings.win_length) // 2
    window[start : start + settings.win_length] = torch.hann_window(settings.win_length, dtype=torch.float64).numpy()
    basis = np.concatenate([fourier.real, fourier.imag]).astype(np.float32) * window
    return torch.from_numpy(basis.T.astype(np.float64).copy())


def magnitudes(wav: Tensor, settings: AudioSettings) -> Tensor:
    """Return |STFT| (..., n_bins, T_mel) of wav (..., T_samples) in float64, T_mel = T_samples // hop_length + 1.

    Periodic Hann window; half a window of reflection on either side. Sound shorter than that is first padded with
    zeros, since there is nothing to reflect.
    """
    half = settings.n_fft // 2
    flat = wav.double().reshape(-1, wav.shape[-1])
    if wav.shape[-1] <= half:
        padded = torch.nn.functional.pad(flat, (half, half + settings.hop_length))
        padded = padded[:, : wav.shape[-1] // settings.hop_length * settings.hop_length + settings.n_fft]
    else:
        padded = torch.nn.functional.pad(flat[:, None], (half, half), mode="reflect")[:, 0]
    frames = padded.unfold(1, settings.n_fft, settings.hop_length)
    cosines, sines = (frames @ windowed_fourier(settings).to(wav.device)).chunk(2, 2)
    return torch.hypot(cosines, sines).transpose(1, 2).reshape(*wav.shape[:-1], -1, frames.shape[1])


def log_mel(wav: Tensor, settings: AudioSettings = AudioSettings()) -> Tensor:
    """Return the log-mel spectrogram: ln max(mel_filters · |STFT|, 1e-5).

    Computed in float64, for the sake of quiet channels, and returned in the type of wav.

    Args:
        wav: (..., T_samples) in [-1, 1].
        settings: of the frames.

    Returns:
        (..., n_mels, T_mel), T_mel = T_samples // hop_length + 1.

    Source: Valle et al. 2020, section 4.1; the original's TacotronSTFT.
    """
    filters = mel_filters(settings).to(wav.device, torch.float64)
    return (filters @ magnitudes(wav, settings)).clamp(min=LOG_FLOOR).log().to(wav.dtype)


@lru_cache(maxsize=8)
def _pseudo_inverse(settings: AudioSettings) -> Tensor:
    return torch.linalg.pinv(mel_filters(settings).double()).float()


def mel_to_magnitude(mel: Tensor, settings: AudioSettings = AudioSettings(), n_iter: int = 8) -> Tensor:
    """Return magnitudes (..., n_bins, T_mel) whose log-mel is close to mel (..., n_mels, T_mel).

    The pseudo-inverse, clipped at zero, then multiplicative updates of non-negative least squares,
    x ← x · (Fᵀ m) / (Fᵀ F x), which keep x non-negative (Lee and Seung 2001).
    """
    filters = mel_filters(settings).to(mel)
    target = mel.exp()
    x = (_pseudo_inverse(settings).to(mel) @ target).clamp(min=LOG_FLOOR)
    numerator = filters.T @ target
    for _ in range(n_iter):
        x = x * numerator / (filters.T @ (filters @ x)).clamp(min=1e-10)
    return x


def load_wav(
    path: str | Path, sample_rate: int | None = None, resample: bool = False, trim_db: float | None = None
) -> Tensor:
    """Read a sound file of any format soundfile knows, mixed down to mono.

    Args:
        path: the file.
        sample_rate: expected rate in Hz; None takes any.
        resample: convert another rate instead of refusing it.
        trim_db: cut leading and trailing sound this many dB below the peak; None keeps it.

    Returns:
        (T_samples,) float32 in [-1, 1].

    Raises:
        InputError: the file is missing, no sound, empty, not finite, not in [-1, 1], or of another rate.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such sound file; correct the path.")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).rstrip(".").split(": ")[-1]
        raise InputError(f"{path}: not a readable sound file ({reason}); replace it or leave it out.") from None
    mono = samples.mean(1) if samples.shape[1] > 1 else samples[:, 0]
    if len(mono) == 0 or not np.isfinite(mono).all():
        what = "no samples" if len(mono) == 0 else "samples that are not finite"
        raise InputError(f"{path}: the file has {what}; replace it or leave it out.")
    peak = float(np.abs(mono).max())
    if peak > MAX_PEAK:
        raise InputError(f"{path}: samples reach {peak:g}, expected -1 to 1; divide them by their full scale.")
    if sample_rate is not None and rate != sample_rate:
        if not resample:
            raise InputError(
                f"{path}: sample rate is {rate} Hz, expected {sample_rate} Hz; convert it or set data_config.resample."
            )
        mono = resampled(mono, rate, sample_rate)
    if trim_db is not None:
        mono = trim_silence(mono, trim_db)
    return torch.from_numpy(np.ascontiguousarray(mono, dtype=np.float32).clip(-1, 1))


class WavWriter:
    """Writes a 16-bit wav piece by piece, as a context; the file appears when it is left without an error.

    Raises:
        InputError: the folder does not exist, or it is one itself.
    """

    def __init__(self, path: str | Path, sample_rate: int) -> None:
        self.path, self.sample_rate = Path(path).resolve(), sample_rate
        if not self.path.parent.is_dir():
            raise InputError(f"{path}: its folder does not exist; create it or choose another.")

    def __enter__(self) -> "WavWriter":
        if self.path.is_dir():
            raise InputError(f"{self.path}: is a folder; name a file.")
        descriptor, self._temporary = tempfile.mkstemp(
            prefix=f".{self.path.name}.", dir=self.path.parent, suffix=".wav"
        )
        os.close(descriptor)
        self._file = soundfile.SoundFile(
            self._temporary, "w", self.sample_rate, channels=1, format="WAV", subtype="PCM_16"
        )
        return self

    def write(self, wav: Tensor | np.ndarray) -> None:
        """Append wav (T_samples,) in [-1, 1]."""
        samples = np.asarray(wav.detach().cpu() if isinstance(wav, Tensor) else wav, dtype=np.float32)
        self._file.write(samples.clip(-1, 1))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is not None:
            os.unlink(self._temporary)
            return
        try:
            set_usual_mode(Path(self._temporary), 0o666)
            os.replace(self._temporary, self.path)
        except OSError:
            os.unlink(self._temporary)
            raise


def save_wav(path: str | Path, wav: Tensor | np.ndarray, sample_rate: int) -> None:
    """Write wav (T_samples,) in [-1, 1] as 16-bit PCM, so that no reader ever sees half of it.

    Raises:
        InputError: the folder does not exist.
    """
    with WavWriter(path, sample_rate) as file:
        file.write(wav)
