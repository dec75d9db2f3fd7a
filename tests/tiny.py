"""A tiny voice with random weights, which speaks noise of the right length: for tests of everything around a model."""

import numpy as np
import soundfile
import torch

from flowtron.checkpoint import save_model
from flowtron.config import Config, ModelConfig
from flowtron.model import build_model
from flowtron.text import SYMBOLS

SPEAKERS = ["ann", "ben"]
MODEL = {
    "n_text_dim": 8,
    "n_hidden": 8,
    "n_lstm_layers": 1,
    "n_attn_channels": 8,
    "n_speakers": 2,
    "n_speaker_dim": 4,
    "n_flows": 2,
    "aligner_dim": 8,
    "mel_mean": -5.0,
    "mel_std": 2.0,
}


def save_tiny_voice(folder, **model):
    """Write a checkpoint of the voice; return its folder."""
    config = Config(model_config=ModelConfig(**{**MODEL, **model}))
    torch.manual_seed(0)
    return save_model(folder, build_model(config.model), config, symbols=SYMBOLS, speakers=SPEAKERS)


def tone(seconds=1.0, hz=220.0, rate=22050, level=0.3):
    """A tone (T_samples,) that swells and fades."""
    time = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(np.pi * time / seconds) * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def write_wav(path, seconds=1.0, hz=220.0, rate=22050, **options):
    """Write a tone; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, hz, rate), rate, **options)
    return path
