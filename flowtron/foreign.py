"""What a file of another project holds: its kind, its weights, and the architecture that their names and shapes show.

Flowtron (published and training files), WaveGlow, Tacotron 2 and HiFi-GAN. Weights keep their values and names; only
layouts of the first WaveGlow files are brought to the later one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowtron.errors import InputError
from flowtron.names import example
from flowtron.tensorfile import read_tensors
from flowtron.torchfile import read_file
from flowtron.unpickle import Shell, module_state, plain

TITLES = {"flowtron": "Flowtron", "waveglow": "WaveGlow", "tacotron2": "Tacotron 2", "hifigan": "HiFi-GAN generator"}
# Weight norm as newer versions of PyTorch name it.
PARAMETRIZED = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}


@dataclass(frozen=True)
class Foreign:
    """A file of another project.

    path: the file. kind: a key of `TITLES`. state: weights by their names there. attributes: plain values that its
    module held. iteration, learning_rate, optimizer: of its training, where it has them.
    """

    path: Path
    kind: str
    state: dict[str, Tensor]
    attributes: dict[str, Any] = field(default_factory=dict)
    iteration: int = 0
    learning_rate: float | None = None
    optimizer: dict[str, Any] | None = None


def kind_of(names: Mapping[str, Tensor]) -> str | None:
    """Tell the kind of model by the names of its weights."""
    if "convinv.0.conv.weight" in names and "upsample.weight" in names:
        return "waveglow"
    if any(name.startswith("flows.0.attention_lstm.") for name in names):
        return "flowtron"
    if any(name.startswith("conv_pre.") for name in names) and any(name.startswith("ups.0.") for name in names):
        return "hifigan"
    if "encoder.convolutions.0.0.conv.weight" in names and "embedding.weight" in names:
        return "tacotron2"
    return None


def _tensors(values: Any) -> dict[str, Tensor] | None:
    if isinstance(values, Shell):
        return module_state(values)
    if isinstance(values, dict) and values and all(isinstance(value, Tensor) for value in values.values()):
        return {str(name): value for name, value in values.items()}
    return None


def read_foreign(path: Path) -> Foreign:
    """Read a file of another project, without running anything in it.

    Raises:
        InputError: it is missing, damaged, refused, or holds no model known here.
    """
    if path.is_dir():
        raise InputError(f"{path}: a folder, not a file of another project; name the file.")
    value = read_tensors(path) if path.suffix == ".safetensors" else read_file(path)
    held = value if isinstance(value, dict) else {}
    for candidate in (held.get("state_dict"), held.get("model"), held.get("generator"), value):
        state = _tensors(candidate)
        if state is None:
            continue
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        for ending, usual in PARAMETRIZED.items():
            state = {name.replace(ending, usual): tensor for name, tensor in state.items()}
        kind = kind_of(state)
        if kind is None:
            examples = ", ".join(plain(name) for name in list(state)[:3])
            raise InputError(f"{path}: weights like {examples} are of no model known here; see docs/CHECKPOINTS.md.")
        iteration, rate, optimizer = (held.get(key) for key in ("iteration", "learning_rate", "optimizer"))
        return Foreign(
            path,
            kind,
            modern_waveglow(state) if kind == "waveglow" else state,
            _attributes(candidate),
            iteration if type(iteration) is int else 0,
            rate if isinstance(rate, float) else None,
            optimizer if isinstance(optimizer, dict) else None,
        )
    found = plain(", ".join(str(key)[:40] for key in list(held)[:5]) or type(value).__name__)
    raise InputError(f"{path}: holds no model, but {found}; name a file that does.")


def _attributes(module: Any) -> dict[str, Any]:
    if not isinstance(module, Shell):
        return {}
    attributes: dict[str, Any] = {n: value for n, value in module.state.items() if isinstance(value, bool | int)}
    attributes["class"] = module.path
    upsample = module.state.get("_modules", {}).get("upsample")
    stride = upsample.state.get("stride") if isinstance(upsample, Shell) else None
    if isinstance(stride, tuple) and stride and type(stride[0]) is int:
        attributes["upsample_stride"] = stride[0]
    return attributes


def modern_waveglow(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the first layouts of WaveGlow to the later one: fused residual and skip, fused conditioning layers.

    The fused layers' rows are those of the single ones, one after the other, with weight norm (which is by row) too.
    """
    modern: dict[str, Tensor] = {}
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for name, value in state.items():
        if match := re.fullmatch(r"(WN\.\d+\.)(res|skip)_layers\.(\d+)\.(\w+)", name):
            wn, which, layer, leaf = match.groups()
            parts.setdefault(f"{wn}res_skip_layers.{layer}.{leaf}", []).append((which == "skip", value))
        elif match := re.fullmatch(r"(WN\.\d+\.)cond_layers\.(\d+)\.(\w+)", name):
            parts.setdefault(f"{match[1]}cond_layer.{match[3]}", []).append((int(match[2]), value))
        else:
            modern[name] = value
    for name, rows in parts.items():
        rows.sort(key=lambda row: row[0])
        if len({value.shape[1:] for _, value in rows}) != 1:
            raise InputError(f"the parts of weight '{name}' do not fit together; the file is damaged, get it anew.")
        modern[name] = torch.cat([value for _, value in rows])
    return modern


def _shape(state: Mapping[str, Tensor], layer: str, dimensions: int = 3) -> tuple[int, ...]:
    value = state.get(f"{layer}.weight", state.get(f"{layer}.weight_v"))
    if value is None or value.dim() != dimensions:
        raise InputError(f"weight '{layer}.weight' is missing or has an odd shape; the file is damaged, get it anew.")
    return tuple(value.shape)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    found = {int(match[1]) for name in state if (match := re.match(pattern, name))}
    if found != set(range(len(found))) or not found:
        raise InputError(f"weights like '{example(pattern)}' are not numbered from 0 on; get the file anew.")
    return len(found)


def _positive(values: Any) -> bool:
    """Whether values are a list of whole numbers above 0."""
    return isinstance(values, list) and all(type(value) is int and value > 0 for value in values)


def check_layers(state: Mapping[str, Tensor], layers: Mapping[str, tuple[tuple[int, ...], int]]) -> None:
    """Check that weights are those of the layers: each its shape and the length of its bias (0: none).

    Raises:
        InputError: a weight is missing, superfluous, or of another shape.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for layer, (shape, n_biases) in layers.items():
        if f"{layer}.weight_v" in state:
            expected[f"{layer}.weight_v"] = shape
            expected[f"{layer}.weight_g"] = (shape[0], *(1 for _ in shape[1:]))
        else:
            expected[f"{layer}.weight"] = shape
        if n_biases:
            expected[f"{layer}.bias"] = (n_biases,)
    for name in sorted({*expected, *state}):
        found = tuple(state[name].shape) if name in state else None
        if found != expected.get(name):
            wanted = expected.get(name, "no such weight")
            raise InputError(f"weight '{plain(name)}' has shape {found}, expected {wanted}; get the file anew.")


def waveglow_architecture(
    state: Mapping[str, Tensor], attributes: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Read a WaveGlow's architecture off its weights; return it and what had to be assumed.

    Args:
        state: weights in the later layout.
        attributes: of the pickled module, where it was one.
        config: the original's `waveglow_config`, for what shapes cannot tell.

    Raises:
        InputError: the weights do not make a WaveGlow.
    """
    notes: list[str] = []
    n_mels, _, kernel = _shape(state, "upsample")
    n_flows = _count(state, r"convinv\.(\d+)\.")
    widths = [_shape(state, f"convinv.{k}.conv")[0] for k in range(n_flows)]
    early = [k for k in range(1, n_flows) if widths[k] < widths[k - 1]]
    told = {**config, **{key: value for key, value in attributes.items() if key.startswith("n_early")}}
    if early:
        every, size = early[0], widths[early[0] - 1] - widths[early[0]]
    else:
        every, size = told.get("n_early_every", 4), told.get("n_early_size", 2)
        if not _positive([every, size]):
            raise InputError(
                f"n_early_every {every} and n_early_size {size} are not whole numbers above 0; correct them."
            )
        notes.append(f"no channel leaves early within these flows; n_early_every {every} is taken")
    stride = attributes.get("upsample_stride", 256)
    alternating = str(attributes.get("class", "")).startswith("glow_old.")
    n_layers, (channels, _, _) = _count(state, r"WN\.0\.in_layers\.(\d+)\."), _shape(state, "WN.0.start")
    width = _shape(state, "WN.0.in_layers.0")[2]
    layers: dict[str, tuple[tuple[int, ...], int]] = {"upsample": ((n_mels, n_mels, kernel), n_mels)}
    for k, c in enumerate(widths):
        wn = f"WN.{k}"
        layers[f"convinv.{k}.conv"] = (c, c, 1), 0
        layers[f"{wn}.start"] = (channels, c // 2, 1), channels
        layers[f"{wn}.cond_layer"] = (2 * channels * n_layers, n_mels * widths[0], 1), 2 * channels * n_layers
        layers[f"{wn}.end"] = (c, channels, 1), c
        for i in range(n_layers):
            n_out = 2 * channels if i < n_layers - 1 else channels
            layers[f"{wn}.in_layers.{i}"] = (2 * channels, channels, width), 2 * channels
            layers[f"{wn}.res_skip_layers.{i}"] = (n_out, channels, 1), n_out
    check_layers(state, layers)
    architecture = {
        "n_mel_channels": n_mels,
        "n_flows": n_flows,
        "n_group": widths[0],
        "n_early_every": every,
        "n_early_size": size,
        "upsample_kernel": kernel,
        "upsample_stride": stride,
        "WN_config": {"n_layers": n_layers, "n_channels": channels, "kernel_size": width},
        "weight_norm": any(name.endswith(".weight_g") for name in state),
        "alternating_halves": alternating,
    }
    return architecture, notes


def hifigan_architecture(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Read a HiFi-GAN generator's architecture off its weights; return it and what had to be assumed.

    Args:
        state: the generator's weights.
        config: its JSON config, for what shapes cannot tell: strides and dilations.

    Raises:
        InputError: the weights do not make a HiFi-GAN generator, or the config's lists do not fit them.
    """
    notes: list[str] = []
    channels, n_mels, pre_width = _shape(state, "conv_pre")
    n_ups, n_blocks = _count(state, r"ups\.(\d+)\."), _count(state, r"resblocks\.(\d+)\.")
    kernels = [_shape(state, f"ups.{i}")[2] for i in range(n_ups)]
    kind = "1" if any(".convs1." in name for name in state) else "2"
    convs, n_kinds = ("convs1", "convs2") if kind == "1" else ("convs",), n_blocks // n_ups
    widths = [_shape(state, f"resblocks.{j}.{convs[0]}.0")[2] for j in range(n_kinds)]
    depth = _count(state, rf"resblocks\.0\.{convs[0]}\.(\d+)\.")
    rates, dilations = config.get("upsample_rates"), config.get("resblock_dilation_sizes")
    if rates is None:
        rates = [kernel // 2 for kernel in kernels]
        notes.append(f"strides of the upsampling are assumed to be half its kernels: {rates}")
    if dilations is None:
        usual = [[1, 3, 5]] * n_kinds if kind == "1" else [[1, 2], [2, 6], [3, 12]][:n_kinds]
        dilations = [list(each[:depth]) for each in usual]
        notes.append(f"dilations are assumed to be the published ones: {dilations}")
    lists = (rates, *(dilations if isinstance(dilations, list) else [None]))
    if not all(map(_positive, lists)) or [*map(len, lists)] != [n_ups, *[depth] * n_kinds]:
        shown = f"{str(rates)[:80]} and {str(dilations)[:80]}"
        raise InputError(f"{shown} do not fit {n_ups} upsamplings and {n_kinds} kinds of blocks; give its config.")
    layers: dict[str, tuple[tuple[int, ...], int]] = {"conv_pre": ((channels, n_mels, pre_width), channels)}
    for i, kernel in enumerate(kernels):
        n_out = channels // 2 ** (i + 1)
        layers[f"ups.{i}"] = (channels // 2**i, n_out, kernel), n_out
        for j, width in enumerate(widths):
            for conv in convs:
                for d in range(depth):
                    layers[f"resblocks.{i * n_kinds + j}.{conv}.{d}"] = (n_out, n_out, width), n_out
    layers["conv_post"] = (1, channels // 2**n_ups, _shape(state, "conv_post")[2]), 1
    check_layers(state, layers)
    architecture = {
        "resblock": kind,
        "upsample_rates": rates,
        "upsample_kernel_sizes": kernels,
        "upsample_initial_channel": channels,
        "resblock_kernel_sizes": widths,
        "resblock_dilation_sizes": dilations,
        "num_mels": n_mels,
        "weight_norm": any(name.endswith(".weight_g") for name in state),
    }
    return architecture, notes
