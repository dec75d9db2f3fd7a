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


# Overrides of a config for a training of three steps.
SMALL = [f"model_config.{name}={value}" for name, value in MODEL.items()]
SMALL += ["train_config.max_iters=3", "train_config.aligner_iters=1", "train_config.flow_start_iters=[1,2]"]
SMALL += ["train_config.eval_sentences=['Hi.']", "train_config.iters_per_checkpoint=3", "train_config.fp16_run=false"]
SMALL += ["train_config.eval_wer=false"]


def write_corpus(folder):
    """A corpus of tones in the place of the one that make_corpus.py writes."""
    rows = []
    for number in range(6):
        speaker = ("heart", "joe")[number % 2]
        write_wav(folder / "wavs" / f"{number}.wav", 0.5, hz=150 + 20 * number)
        rows.append(f"wavs/{number}.wav|Number {number} is spoken.|{speaker}\n")
    for part, chosen in (("train", rows[:4]), ("val", rows[4:]), ("test", rows[4:])):
        (folder / f"{part}.txt").write_text("".join(chosen))
