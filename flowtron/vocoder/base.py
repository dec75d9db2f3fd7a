"""What every vocoder is, and how one that looks at its surroundings works on a stream.

Letters: B batch, T_mel frames.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from flowtron.audio import AudioSettings
from flowtron.errors import InputError

SEED = 0  # of the noise that vocoders draw: the same mel gives the same sound


class Vocoder(Protocol):
    """Anything that turns mels of its settings into sound."""

    settings: AudioSettings

    def __call__(self, mel: Tensor) -> Tensor:
        """Turn log-mels (B, n_mels, T_mel) into wav (B, T_mel · hop_length)."""
        ...

    def stream(self, mels: Iterable[Tensor]) -> Iterator[Tensor]:
        """Turn consecutive mels (n_mels, T_mel) into consecutive wavs (T_samples,), T_mel · hop_length in all."""
        ...


def check_settings(name: str, own: AudioSettings, given: AudioSettings | None) -> None:
    """Check that mels are what a vocoder was made for.

    Raises:
        InputError: they are not; the first setting that differs is named with both values.
    """
    if given is None:
        return
    ours, theirs = own.fingerprint(), given.fingerprint()
    for key, value in ours.items():
        if theirs.get(key) != value:
            raise InputError(
                f"{name}: made for mels of {key} {value}, but they have {key} {theirs.get(key)}; "
                "use a vocoder trained on such mels."
            )


def frame_noise(generator: torch.Generator, n_frames: int, n_values: int) -> Tensor:
    """Draw N(0, 1) for frames (n_frames, n_values), the same values in whatever pieces they are asked for.

    Torch draws normal numbers sixteen at a time, so `n_values` must be a multiple of that.
    """
    assert n_values % 16 == 0
    return torch.randn(n_frames, n_values, generator=generator)


def in_context(
    pieces: Iterable[tuple[Tensor, ...]], context_frames: int, run: Callable[..., tuple[Tensor, ...]]
) -> Iterator[tuple[Tensor, ...]]:
    """Run a function that looks `context_frames` around every frame on consecutive pieces, as if on the whole.

    Args:
        pieces: tensors (..., frames) of equally many frames, or a multiple of them.
        context_frames: how far an output depends on its surroundings; frames of the first tensor count.
        run: from such tensors to others, whose last dimension is a multiple of the frames.

    Yields:
        Consecutive outputs, as soon as what follows cannot change them.
    """
    held: tuple[Tensor, ...] = ()
    done = 0

    def finish(end: int) -> tuple[Tensor, ...]:
        n_frames = held[0].shape[-1]
        outputs = run(*held)
        rates = [output.shape[-1] // n_frames for output in outputs]
        return tuple(output[..., done * rate : end * rate] for output, rate in zip(outputs, rates))

    for piece in pieces:
        held = tuple(torch.cat(both, -1) for both in zip(held, piece)) if held else piece
        end = held[0].shape[-1] - context_frames
        if end <= done:
            continue
        yield finish(end)
        n_frames, cut = held[0].shape[-1], max(0, end - context_frames)
        held = tuple(each[..., cut * (each.shape[-1] // n_frames) :] for each in held)
        done = end - cut
    if held and held[0].shape[-1] > done:
        yield finish(held[0].shape[-1])
