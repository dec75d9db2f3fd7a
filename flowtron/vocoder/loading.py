"""Vocoders by name or from a folder."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flowtron.audio import AudioSettings
from flowtron.checkpoint import DESCRIPTION, VOCODER_DESCRIPTION, VocoderFile, best_checkpoint, read_vocoder
from flowtron.errors import InputError
from flowtron.tensorfile import brief
from flowtron.vocoder.base import Vocoder, check_settings
from flowtron.vocoder.griffin_lim import GriffinLim
from flowtron.vocoder.hifigan import HifiGan
from flowtron.vocoder.layers import fold_weight_norm
from flowtron.vocoder.neural import HifiGanVocoder, SourceFilterVocoder, SqueezeWaveVocoder, WaveGlowVocoder
from flowtron.vocoder.source_filter import SourceFilterNet
from flowtron.vocoder.squeezewave import SqueezeWave, fold_batch_norm
from flowtron.vocoder.waveglow import WaveGlow
from flowtron.vocoder.wavenet import WaveNet, WaveNetVocoder

WEIGHTS = Path(__file__).parent / "weights"
MODELS: dict[str, Callable[..., nn.Module]] = {
    "waveglow": WaveGlow,
    "squeezewave": SqueezeWave,
    "hifigan": HifiGan,
    "wavenet": WaveNet,
    "source_filter": SourceFilterNet,
}


def bundled_vocoders() -> list[str]:
    """Names of the vocoders that come with weights in the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob(f"*/{VOCODER_DESCRIPTION}"))


class NoLargerThan(TorchFunctionMode):
    """Stops the making of a network that outgrows the weights it is for, before memory is touched for it.

    Networks are made with random values, so that a number in a file would otherwise make a machine fill its memory.
    """

    FACTORIES = frozenset({"empty", "zeros", "ones", "full", "randn", "rand"})

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        # Matrices are made twice, once for their layer and once for their values; what else is made is small.
        self.numbers_left = 4 * sum(value.numel() for value in state.values()) + (1 << 20)
        self.tensors_left = 4 * len(state) + 64

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, and count what it makes."""
        result = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") in self.FACTORIES:
            self.numbers_left -= result.numel()
            self.tensors_left -= 1
            if min(self.numbers_left, self.tensors_left) < 0:
                raise ValueError("it is larger than its weights")
        return result


def locate_vocoder(name: str | Path) -> Path:
    """Return the folder of a bundled vocoder by its name, of the best checkpoint of a run, or the path as it is."""
    return WEIGHTS / str(name) if str(name) in bundled_vocoders() else best_checkpoint(Path(name)) or Path(name)


def build_vocoder_model(
    kind: str, architecture: Mapping[str, Any], settings: AudioSettings, state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Build the network of a vocoder, its weights random.

    Args:
        kind: a key of `MODELS`.
        architecture: arguments of its class.
        settings: of the mels.
        state: weights that it is for, by name; a network that outgrows them is not made.

    Raises:
        InputError: there is no such kind, or the architecture does not fit it or the weights.
    """
    if kind not in MODELS:
        raise InputError(f"vocoder kind is {kind!r}, expected one of {', '.join(MODELS)}; correct it.")
    arguments = dict(architecture)
    if kind == "source_filter":
        arguments = {**arguments, "settings": settings}
    inner = arguments.get("WN_config")
    for counts in (arguments, inner if isinstance(inner, dict) else {}):
        for name in ("n_flows", "n_layers"):
            count = counts.get(name, 1)
            if type(count) is not int or count < 1 or (state is not None and count > len(state)):
                raise InputError(f"the architecture of the {kind} has {name} {repr(count)[:40]}; correct it.")
    try:
        with nullcontext() if state is None else NoLargerThan(state):
            return MODELS[kind](**arguments)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise InputError(f"the architecture of the {kind} does not fit ({brief(error)}); correct it.") from None


def load_weights_into(model: nn.Module, state: Mapping[str, Tensor], origin: Path) -> None:
    """Give a network its weights.

    Raises:
        InputError: they are not those of the network.
    """
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise InputError(f"{origin}: weights do not fit the architecture ({brief(error)}); get it anew.") from None


def samples_per_frame(model: nn.Module) -> int | None:
    """Samples that a network makes of a frame; None where the settings of its mels say."""
    if isinstance(model, WaveGlow):
        return model.stride // model.n_group * model.n_group
    if isinstance(model, SqueezeWave):
        return model.repeats * model.n_group
    if isinstance(model, HifiGan):
        return model.hop_length
    return math.prod(model.upsampling.factors) if isinstance(model, WaveNet) else None


def from_file(file: VocoderFile, origin: Path, dtype: torch.dtype | None, **options: Any) -> Vocoder:
    """Make a vocoder of what a folder holds, normalisations folded away.

    Raises:
        InputError: the kind is not known, or weights, architecture and settings do not fit.
    """
    state = {name: value.float() if value.is_floating_point() else value for name, value in file.state.items()}
    architecture = dict(file.architecture)
    try:
        if architecture.get("weight_norm"):
            state, architecture["weight_norm"] = fold_weight_norm(state), False
        if file.kind == "squeezewave" and architecture.get("batch_norm", True):
            state, architecture["batch_norm"] = fold_batch_norm(state), False
        model = build_vocoder_model(file.kind, architecture, file.audio, state)
        n_samples = samples_per_frame(model)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None
    except (TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        raise InputError(f"{origin}: weights do not fit the architecture ({brief(error)}); get it anew.") from None
    load_weights_into(model, state, origin)
    hop_length = file.audio.hop_length
    if n_samples is not None and (type(n_samples) is not int or n_samples != hop_length):
        raise InputError(
            f"{origin}: its network makes {n_samples} samples a frame, but hop_length is {hop_length}; get it anew."
        )
    if isinstance(model, WaveGlow):
        return WaveGlowVocoder(model, file.audio, dtype, **options)
    if dtype is not None:
        raise InputError(f"{origin}: dtype is {dtype}, but only WaveGlow has another than float32; leave it out.")
    if isinstance(model, SqueezeWave):
        return SqueezeWaveVocoder(model, file.audio, **options)
    if isinstance(model, HifiGan):
        return HifiGanVocoder(model, file.audio, **options)
    if isinstance(model, WaveNet):
        return WaveNetVocoder(model, file.audio, **options)
    assert isinstance(model, SourceFilterNet)
    return SourceFilterVocoder(model, file.audio, **options)


def load_vocoder(
    name: str | Path = "griffin_lim",
    settings: AudioSettings | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Vocoder:
    """Load a vocoder.

    Args:
        name: 'griffin_lim', a bundled vocoder such as 'light', or a vocoder's folder, as `flowtron convert` and
            training write it, or a training run's, of which the best is taken.
        settings: of the mels it will be given; None takes what it was made for.
        dtype: of WaveGlow's matrix products, such as torch.bfloat16.
        options: of its class, such as sigma.

    Raises:
        InputError: there is no such vocoder, it was made for other mels, or its files are damaged.
    """
    if str(name) == "griffin_lim":
        return GriffinLim(settings, **options)
    folder = locate_vocoder(name)
    if not (folder / VOCODER_DESCRIPTION).is_file():
        known = ", ".join(f"'{each}'" for each in ["griffin_lim", *bundled_vocoders()])
        remedy = f"use {known} or a vocoder's folder"
        if (folder / DESCRIPTION).is_file():
            raise InputError(f"{name}: a voice, not a vocoder; {remedy}.")
        if folder.is_file() and folder.suffix != ".safetensors":
            remedy = "convert it with `flowtron convert` first"
        raise InputError(f"{name}: no such vocoder; {remedy}.")
    file = read_vocoder(folder)
    check_settings(str(name), file.audio, settings)
    return from_file(replace(file, audio=settings or file.audio), folder, dtype, **options)
