"""From mel to sound, by one interface."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from torch import Tensor

from flowtron.audio import AudioSettings
from flowtron.errors import InputError
from flowtron.vocoder.griffin_lim import GriffinLim

__all__ = ["GriffinLim", "Vocoder", "load_vocoder"]


class Vocoder(Protocol):
    """Anything that turns mels of its settings into sound."""

    settings: AudioSettings

    def __call__(self, mel: Tensor) -> Tensor:
        """Turn log-mels (B, n_mels, T_mel) into wav (B, T_mel · hop_length)."""
        ...

    def stream(self, mels: Iterable[Tensor]) -> Iterator[Tensor]:
        """Turn consecutive mels (n_mels, T_mel) into consecutive wavs (T_mel · hop_length,)."""
        ...


def load_vocoder(name: str | Path = "griffin_lim", settings: AudioSettings | None = None) -> Vocoder:
    """Load a vocoder.

    Args:
        name: 'griffin_lim'.
        settings: of the mels it will be given; None takes the default ones.

    Raises:
        InputError: there is no such vocoder.
    """
    if str(name) == "griffin_lim":
        return GriffinLim(settings)
    raise InputError(f"{name}: no such vocoder; use 'griffin_lim'.")
