"""The network: text encoder, speaker embedding, steps of flow, prior; and Tacotron 2, the baseline."""

from flowtron.config import ModelConfig
from flowtron.model.flowtron import Flowtron, FlowtronOutput, FlowtronSample, build_model
from flowtron.model.tacotron2 import Tacotron2, Tacotron2Output, build_tacotron2

AcousticModel = Flowtron | Tacotron2

__all__ = [
    "AcousticModel",
    "Flowtron",
    "FlowtronOutput",
    "FlowtronSample",
    "Tacotron2",
    "Tacotron2Output",
    "build_any",
    "build_model",
    "build_tacotron2",
]


def build_any(config: ModelConfig) -> AcousticModel:
    """Build the untrained model of the kind that a config names.

    Raises:
        InputError: see `build_model`.
    """
    return build_tacotron2(config) if config.kind == "tacotron2" else build_model(config)
