"""Flowtron: text-to-speech with an autoregressive normalizing flow (Valle et al. 2020, arXiv 2005.05957)."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowtron.synthesizer import Synthesizer

__all__ = ["load"]
__version__ = "0.1.0"


def load(
    path: str | Path,
    vocoder: str | Path | None = None,
    device: str = "cpu",
    engine: str = "auto",
    dtype: str = "float32",
) -> "Synthesizer":
    """Load a voice: a checkpoint folder, or the name of a bundled one.

    Args:
        path: the folder or name.
        vocoder: 'griffin_lim', 'light' or a vocoder's folder; None takes the light one for a bundled voice, whose
            speakers it was trained on, and Griffin-Lim for others.
        device: where to compute.
        engine: what computes the frames: 'kernel', compiled at first use; 'torch'; 'auto', the kernel where it runs.
        dtype: of the weights that a frame reads: 'float32'; 'bfloat16' or 'int8', in the kernel.

    Returns:
        An object that, called with a text, gives speech.

    Raises:
        InputError: there is no such voice or vocoder, or the engine or dtype cannot be had.
    """
    from flowtron.synthesizer import Synthesizer  # torch is slow to import, and not needed to ask for the version

    return Synthesizer.load(path, vocoder, device, engine, dtype)
