"""From mel to sound, by one interface."""

from flowtron.vocoder.base import Vocoder
from flowtron.vocoder.griffin_lim import GriffinLim
from flowtron.vocoder.loading import bundled_vocoders, load_vocoder

__all__ = ["GriffinLim", "Vocoder", "bundled_vocoders", "load_vocoder"]
