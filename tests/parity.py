"""Cases recorded from the original implementation (tests/data/parity; layouts in its README)."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from flowtron.config import ModelConfig
from flowtron.model import Flowtron, build_model
from flowtron.names import from_original

DATA = Path(__file__).parent / "data" / "parity"
CASES = sorted(path.name for path in DATA.iterdir() if path.is_dir())


class Case(NamedTuple):
    """One recorded case: its config, inputs and float64 outputs, and the model with its weights."""

    config: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    grads: dict[str, Any]
    model: Flowtron

    def sorted_batch(self) -> dict[str, Any]:
        """The recorded batch as arguments of `Flowtron.forward`."""
        return batch_arguments(self.inputs, slice(None))

    def single(self) -> dict[str, Any]:
        """The item that was also recorded alone, trimmed to its own lengths."""
        item = int(self.config["b1_item"])
        return batch_arguments(self.inputs, slice(item, item + 1))


def batch_arguments(inputs: dict[str, Tensor], items: slice) -> dict[str, Any]:
    """Arguments of `Flowtron.forward` for some items, padded no further than they need."""
    token_lengths, mel_lengths = inputs["in_lens"][items], inputs["out_lens"][items]
    n_frames, n_tokens = int(mel_lengths.max()), int(token_lengths.max())
    arguments: dict[str, Any] = {
        "mel": inputs["mel"][items, :, :n_frames],
        "mel_lengths": mel_lengths,
        "tokens": inputs["text"][items, :n_tokens],
        "token_lengths": token_lengths,
        "speaker_id": inputs["speaker_ids"][items],
    }
    if "attn_prior" in inputs:
        # Recorded after an inference at 0.7, whose temperature stays on the original's module (NOTES.md, :959).
        arguments["temperature"] = 0.7
        arguments["attention_prior"] = inputs["attn_prior"][items, :n_frames, :n_tokens]
    return arguments


def load_case(name: str, dtype: torch.dtype = torch.float64, **model_config: Any) -> Case:
    """Read a case, its floating inputs and weights in `dtype`."""
    folder = DATA / name
    config = json.loads((folder / "config.json").read_text())

    def arrays(file: str) -> dict[str, Tensor]:
        loaded = {key: torch.from_numpy(value) for key, value in np.load(folder / file).items()}
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in loaded.items()}

    model = build_model(ModelConfig(**config["model_config"], **model_config)).eval()
    model.load_state_dict(from_original(load_file(folder / "weights.safetensors")))
    grads = json.loads((folder / "grads.json").read_text())["params"]
    outputs = {key: torch.from_numpy(value) for key, value in np.load(folder / "outputs_f64.npz").items()}
    return Case(config, arrays("inputs.npz"), outputs, grads, model.to(dtype))
