"""The checkpoint: a folder with the weights and a readable JSON that says all that is needed to use them.

    model.safetensors   the weights
    model.json          format_version, kind, config, symbols, cleaners, speakers, audio, step, metrics, weights' hash

A vocoder's folder holds vocoder.safetensors and vocoder.json likewise, with its architecture in place of a config.
Nothing that is read here can run code. docs/CHECKPOINTS.md describes every field.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flowtron.audio import AudioSettings
from flowtron.config import Config, parse_config
from flowtron.errors import InputError
from flowtron.model import AcousticModel, build_any
from flowtron.tensorfile import brief, pack, read_json, read_tensors, replace_folder, replaced_file
from flowtron.torchfile import check_archive

FORMAT_VERSION = 1
DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"
VOICES = Path(__file__).parent / "voices"
VOCODER_DESCRIPTION, VOCODER_WEIGHTS = "vocoder.json", "vocoder.safetensors"


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint: the model in evaluation mode, and what belongs to it."""

    model: AcousticModel
    config: Config
    symbols: list[str]
    speakers: list[str]
    step: int = 0
    metrics: dict[str, float | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class VocoderFile:
    """A vocoder's folder: its kind, what is needed to build it, its weights and the mels that it expects."""

    kind: str
    architecture: dict[str, Any]
    state: dict[str, Tensor]
    audio: AudioSettings
    step: int
    notes: list[str]


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the lowest validation loss, or None before the first and for what is no run's folder."""
    note = folder / "best"
    return folder / "checkpoints" / note.read_text(encoding="utf-8").strip() if note.is_file() else None


def locate(path: str | Path) -> Path:
    """Return the folder of a bundled voice by its name, of the best checkpoint of a run, or the path as it is."""
    path = Path(path)
    here = best_checkpoint(path) or path
    # A folder that only has the name, such as the one `make demo` writes to, does not hide the voice.
    is_taken = here.is_file() or any((here / name).is_file() for name in (DESCRIPTION, VOCODER_DESCRIPTION))
    if not is_taken and (VOICES / path / DESCRIPTION).is_file():
        return VOICES / path
    return here


def save_model(
    folder: str | Path,
    model: nn.Module,
    config: Config,
    *,
    symbols: Sequence[str],
    speakers: Sequence[str],
    step: int = 0,
    metrics: Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
    notes: Iterable[str] = (),
) -> Path:
    """Write a checkpoint; an older one of the same name is replaced in one go.

    Args:
        folder: to write.
        model: as `config.model` describes it.
        config: how it was made.
        symbols: the symbol set, one for each row of the embedding.
        speakers: names in order of their rows; none when they are not known.
        step: training iteration.
        metrics: measured values by name; those that are not finite become null.
        dtype: of floating weights in the file, such as torch.float16; as they are when None.
        notes: what a reader should know, such as assumptions of a conversion.

    Raises:
        InputError: the folder cannot be written or is something else, or a weight does not fit the dtype.
    """
    folder = Path(folder)
    weights = pack(model.state_dict(), dtype)
    description = {
        "kind": config.model.kind,
        "step": step,
        "metrics": {name: value if math.isfinite(value) else None for name, value in (metrics or {}).items()},
        "speakers": list(speakers),
        "audio": config.audio_settings().fingerprint(),
        "cleaners": list(config.data.text_cleaners),
        "symbols": list(symbols),
        "notes": list(notes),
        "dtype": str(dtype or next(model.parameters()).dtype).removeprefix("torch."),
        "config": config.to_json(),
    }
    save_description(folder, description, weights, (DESCRIPTION, WEIGHTS))
    return folder


def save_description(folder: Path, description: Mapping[str, Any], weights: bytes, names: tuple[str, str]) -> None:
    """Write a folder of a description and weights, the weights' size and hash noted in the description."""
    described = {
        "format": "flowtron",
        "format_version": FORMAT_VERSION,
        **description,
        "weights": {"file": names[1], "bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()},
    }
    text = json.dumps(described, indent=1, ensure_ascii=False, allow_nan=False)
    replace_folder(folder, {names[1]: weights, names[0]: f"{text}\n".encode()}, own=names[0])


def check_version(path: Path, description: Mapping[str, Any], newest: int = FORMAT_VERSION) -> None:
    """Refuse a description of a version that is not read here.

    Raises:
        InputError: naming both versions.
    """
    version = description.get("format_version")
    if type(version) is not int or version < 1:
        raise InputError(f"{path}: format_version is {version!r}, but {newest} is read here; convert the model again.")
    if version > newest:
        raise InputError(f"{path}: format_version {version} is newer than {newest}, read here; update flowtron.")


def read_description(folder: Path) -> dict[str, Any]:
    """Read a model's JSON and check its version, kind and the types of its fields.

    Raises:
        InputError: it is not a checkpoint of a Flowtron.
    """
    if folder.is_file():
        raise InputError(f"{folder}: a file, not a checkpoint folder; make one of it with `flowtron convert`.")
    if (folder / VOCODER_DESCRIPTION).is_file():
        raise InputError(f"{folder}: a vocoder, not a voice; give it as the vocoder.")
    path = folder / DESCRIPTION
    description = read_json(path, "model description")
    check_version(path, description)
    if description.get("kind") not in ("flowtron", "tacotron2"):
        raise InputError(f"{path}: kind is {description.get('kind')!r}, expected 'flowtron'; name another checkpoint.")
    types = {"config": dict, "symbols": list, "speakers": list, "step": int, "metrics": dict, "weights": dict}
    for name, kind in types.items():
        if not isinstance(description.get(name), kind):
            raise InputError(f"{path}: '{name}' is no {kind.__name__}; the file was altered, get it anew.")
    for name in ("symbols", "speakers"):
        if not all(isinstance(each, str) for each in description[name]):
            raise InputError(f"{path}: '{name}' holds other things than text; the file was altered, get it anew.")
    return description


def read_weights(folder: Path, description: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the weights beside a description, checked against its hash; float16 becomes float32."""
    state = read_tensors(folder / WEIGHTS, str(description["weights"].get("sha256")))
    half = (torch.float16, torch.bfloat16)
    return {name: value.float() if value.dtype in half else value for name, value in state.items()}


class ShapesOnly(TorchFunctionMode):
    """Leaves out what gives new weights their values, on the meta device, where there are none.

    There it would also import torch's symbolic machinery, which takes seconds.
    """

    FILLS = frozenset({"normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_", "orthogonal_", "__setitem__"})
    INDICES = frozenset({"arange", "randperm"})

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, or return its first argument as it is."""
        name = getattr(function, "__name__", "")
        if name in self.FILLS:
            return args[0] if args else None
        return function(*args, **{**(kwargs or {}), **({"device": "cpu"} if name in self.INDICES else {})})


def fill(config: Config, state: Mapping[str, Tensor], origin: Path) -> AcousticModel:
    """Build the model of a config with the given weights, after checking that each fits.

    Raises:
        InputError: a weight is missing, superfluous, or of another shape.
    """
    # A number in a file must not make a machine allocate or loop without weights to show for it.
    if config.model.n_flows > len(state) or config.model.n_lstm_layers > len(state):
        raise InputError(f"{origin}: {len(state)} weights are too few for its n_flows or n_lstm_layers; get it anew.")
    try:
        with torch.device("meta"), ShapesOnly():
            model = build_any(config.model)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise InputError(f"{origin}: no model has such sizes ({brief(error)}); get it anew.") from None
    expected = model.state_dict()
    for name in sorted({*expected, *state}):
        if name not in state:
            raise InputError(f"{origin}: weight '{name}' is missing; its config or weights were altered, get it anew.")
        if name not in expected:
            raise InputError(f"{origin}: weight '{name}' is not of the model it describes; get it anew.")
        if state[name].shape != expected[name].shape:
            found, wanted = tuple(state[name].shape), tuple(expected[name].shape)
            raise InputError(f"{origin}: weight '{name}' has shape {found}, expected {wanted}; get it anew.")
    model.load_state_dict(dict(state), assign=True)
    return model.eval()


def load_model(path: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Load a checkpoint, given its path and nothing else.

    Args:
        path: folder of the checkpoint.
        device: where the model goes.

    Raises:
        InputError: it is missing, truncated, altered, of a version not read here, or not a Flowtron.
    """
    folder = Path(path)
    description = read_description(folder)
    if not description["config"]:
        raise InputError(f"{folder}: weights of a {description['kind']} to start training from, not a voice.")
    config = parse_config(description["config"], str(folder / DESCRIPTION))
    if len(description["symbols"]) not in (0, config.model.n_text):
        raise InputError(
            f"{folder}: {len(description['symbols'])} symbols for {config.model.n_text} rows; get the checkpoint anew."
        )
    model = fill(config, read_weights(folder, description), folder)
    return LoadedModel(
        model.to(device),
        config,
        description["symbols"],
        description["speakers"],
        description["step"],
        description["metrics"],
        list(description.get("notes", [])),
    )


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read weights by our names, for a warm start.

    Args:
        path: a checkpoint folder of ours, or a file of the original Flowtron or of Tacotron 2.

    Raises:
        InputError: it cannot be read or holds neither.
    """
    from flowtron.convert import flowtron_weights

    return flowtron_weights(Path(path))


def save_vocoder(
    folder: str | Path,
    kind: str,
    architecture: Mapping[str, Any],
    state: Mapping[str, Tensor],
    audio: AudioSettings,
    *,
    step: int = 0,
    notes: Iterable[str] = (),
) -> Path:
    """Write a vocoder's folder.

    Args:
        folder: to write; an older one is replaced.
        kind: such as "waveglow".
        architecture: what is needed to build it, as JSON values.
        state: its weights by name, written bit for bit.
        audio: the mels that it was trained on.
        step: training iteration.
        notes: what a reader should know.

    Raises:
        InputError: the folder cannot be written or is something else.
    """
    folder = Path(folder)
    description = {
        "kind": kind,
        "step": step,
        "audio": audio.fingerprint(),
        "notes": list(notes),
        "architecture": dict(architecture),
    }
    save_description(folder, description, pack(state), (VOCODER_DESCRIPTION, VOCODER_WEIGHTS))
    return folder


def read_vocoder(path: str | Path) -> VocoderFile:
    """Read a vocoder's folder.

    Raises:
        InputError: it is missing, truncated, altered, or of a version not read here.
    """
    folder = Path(path)
    file = folder / VOCODER_DESCRIPTION
    description = read_json(file, "vocoder description")
    check_version(file, description)
    types = {"kind": str, "architecture": dict, "audio": dict, "notes": list, "step": int, "weights": dict}
    for name, kind in types.items():
        if not isinstance(description.get(name), kind):
            raise InputError(f"{file}: '{name}' is no {kind.__name__}; the file was altered, get it anew.")
    audio = AudioSettings.from_json(description["audio"], str(file))
    state = read_tensors(folder / VOCODER_WEIGHTS, str(description["weights"].get("sha256")))
    return VocoderFile(
        description["kind"], description["architecture"], state, audio, description["step"], description["notes"]
    )


def save_training_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write what a run needs to go on: tensors, numbers, text and containers of them. Atomic.

    Raises:
        InputError: it cannot be written.
    """
    with replaced_file(Path(path)) as file:
        torch.save(state, file)


def load_training_state(path: str | Path) -> dict[str, Any]:
    """Read a training state on the CPU; only tensors and plain values are built, nothing can run.

    Raises:
        InputError: it is missing, damaged, or not a training state.
    """
    path = Path(path)
    # torch would inflate compressed entries and believe declared sizes.
    check_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: not a readable training state ({brief(error)}); go back to an older one.") from None
    if not isinstance(state, dict) or not {"iteration", "model"} <= state.keys():
        raise InputError(f"{path}: not a training state; name one from the folder 'training' of a run.")
    return state


def info(path: str | Path) -> str:
    """Describe a checkpoint folder, a vocoder folder, or a file of the original, in lines of text.

    Raises:
        InputError: it is none of these.
    """
    from flowtron.convert import describe

    return describe(Path(path))
