"""The network: text encoder, speaker embedding, steps of flow, prior."""

from flowtron.model.flowtron import Flowtron, FlowtronOutput, FlowtronSample, build_model

__all__ = ["Flowtron", "FlowtronOutput", "FlowtronSample", "build_model"]
