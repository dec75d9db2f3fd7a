"""Import of other projects' files, export to the original's layout, and what a checkpoint is, in words.

Architectures are read off the weights. What they cannot tell comes from the original's config where it is given, and
from its defaults otherwise; the report and the notes in the checkpoint say which.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowtron.audio import AudioSettings
from flowtron.checkpoint import (
    DESCRIPTION,
    VOCODER_DESCRIPTION,
    WEIGHTS,
    fill,
    read_description,
    read_vocoder,
    read_weights,
    save_description,
    save_model,
    save_training_state,
    save_vocoder,
)
from flowtron.config import SECTIONS, Config, parse_config
from flowtron.errors import InputError
from flowtron.foreign import TITLES, Foreign, hifigan_architecture, read_foreign, waveglow_architecture
from flowtron.names import (
    OWN_PARTS,
    architecture_of,
    from_original,
    from_tacotron2,
    to_original,
    whole_tacotron2,
)
from flowtron.optim import build_optimizer
from flowtron.tensorfile import brief, pack, read_json, read_tensors, replaced_file
from flowtron.text import SYMBOLS
from flowtron.text.symbols import TACOTRON2_SYMBOLS

TRAINING = "training.pt"
# Keys of audio settings: ours, the original's data_config, HiFi-GAN's config.
AUDIO_KEYS = (
    ("sample_rate", "sampling_rate", "sampling_rate"),
    ("n_fft", "filter_length", "n_fft"),
    ("hop_length", "hop_length", "hop_size"),
    ("win_length", "win_length", "win_size"),
    ("f_min", "mel_fmin", "fmin"),
    ("f_max", "mel_fmax", "fmax"),
)

AS_ORIGINAL = "flowtron_original_cleaners"


def convert(source: str | Path, target: str | Path, config: str | Path | None = None) -> str:
    """Convert a file of another project to a folder of ours.

    Args:
        source: published or training file of Flowtron or WaveGlow, state dict of Tacotron 2, HiFi-GAN generator.
        target: folder to write.
        config: its JSON config, for what weights cannot tell.

    Returns:
        What was found, assumed and written, in lines of text.

    Raises:
        InputError: the source cannot be read or is refused, the config does not fit, or the target is in the way.
    """
    path, folder = Path(source), Path(target)
    foreign = read_foreign(path)
    values = {} if config is None else read_json(Path(config), "config")
    try:
        writer = WRITERS[foreign.kind]
        notes = writer(foreign, folder, values, str(config or path))
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    n_values = sum(value.numel() for value in foreign.state.values())
    size = f"{n_values:,} numbers in {len(foreign.state)} weights"
    return "\n".join([f"{path}: {TITLES[foreign.kind]}, {size}", *(f"  {note}" for note in notes), f"wrote {folder}"])


def _audio(values: Mapping[str, Any], origin: str, n_mels: int, column: int = 1) -> tuple[AudioSettings, list[str]]:
    """Audio settings of a config, by the original's names (column 1) or HiFi-GAN's (2), else the original's."""
    found = {keys[0]: values[keys[column]] for keys in AUDIO_KEYS if keys[column] in values}
    settings = AudioSettings.from_json({"n_mels": n_mels, **found}, origin)
    missing = [keys[0] for keys in AUDIO_KEYS if keys[0] not in found]
    shown = ", ".join(f"{name} {getattr(settings, name)}" for name in missing)
    return settings, [f"assumed, the original's defaults: {shown}"] if missing else []


def _write_flowtron(foreign: Foreign, folder: Path, values: Mapping[str, Any], origin: str) -> list[str]:
    sections = {}
    for name in map(str, SECTIONS):
        section = values.get(name, {})
        if not isinstance(section, dict):
            raise InputError(f"{origin}: {name} is {repr(section)[:40]}, expected an object of keys; correct it.")
        sections[name] = dict(section)
    ignored = sorted(set(values) - set(sections))
    notes = [f"sections of the config that are not used: {', '.join(ignored)}"] if ignored else []
    shown = architecture_of(foreign.state)
    model_values = sections["model_config"]
    for key, value in shown.items():
        if key in model_values and model_values[key] != value:
            notes.append(f"{key} is {value} by the weights, not {model_values[key]} as in the config")
    model_values.update(shown)
    if "dummy_speaker_embedding" not in model_values:
        known = foreign.attributes.get("dummy_speaker_embedding")
        model_values["dummy_speaker_embedding"] = bool(known)
        if known is None:
            notes.append("assumed, the original's default: dummy_speaker_embedding off")
    _, assumed = _audio(sections["data_config"], origin, shown["n_mel_channels"])
    notes += assumed
    cleaners = sections["data_config"].get("text_cleaners", ["flowtron_cleaners"])
    if isinstance(cleaners, list) and "flowtron_cleaners" in cleaners:
        # What the original calls so is another one here, with its mistakes, on which its weights were trained.
        sections["data_config"]["text_cleaners"] = [
            AS_ORIGINAL if name == "flowtron_cleaners" else name for name in cleaners
        ]
        notes.append(f"text is read by {AS_ORIGINAL}, as the weights were trained; see docs/TEXT.md")
    settings = _optimizer_settings(foreign)
    sections["train_config"] = {**sections["train_config"], **settings}
    config = parse_config(sections, origin)
    symbols = list(config.model.symbols or SYMBOLS)
    if len(symbols) != config.model.n_text:
        raise InputError(
            f"its table has {config.model.n_text} rows, but there are {len(symbols)} symbols; give a config with "
            "model_config.symbols."
        )
    if config.model.symbols is None:
        notes.append(f"assumed: the original's {len(SYMBOLS)} symbols")
    model = fill(config, from_original(foreign.state), foreign.path)
    notes.append("speakers have no names in such a file: use their numbers")
    training = None
    if foreign.optimizer is not None:
        try:
            training = _training_state(foreign, model, config)
            notes.append(f"training goes on when train_config.checkpoint_path is the {TRAINING} in this folder")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            notes.append(f"the optimizer's state is not carried over ({brief(error)})")
    save_model(folder, model, config, symbols=symbols, speakers=[], step=foreign.iteration, notes=notes)
    if training is not None:
        save_training_state(folder / TRAINING, training)
    return notes


def _optimizer_settings(foreign: Foreign) -> dict[str, Any]:
    """Keys of `train_config` that the optimizer's state tells."""
    settings: dict[str, Any] = {}
    groups = (foreign.optimizer or {}).get("param_groups")
    if isinstance(groups, list) and groups and isinstance(groups[0], dict):
        # Only Adam has this option; the original's RAdam has not.
        settings["optim_algo"] = "Adam" if "amsgrad" in groups[0] else "RAdam"
        decay = groups[0].get("weight_decay")
        if isinstance(decay, float) and decay >= 0:
            settings["weight_decay"] = decay
    if foreign.learning_rate is not None and foreign.learning_rate > 0:
        settings["learning_rate"] = foreign.learning_rate
    return settings


def _training_state(foreign: Foreign, model: nn.Module, config: Config) -> dict[str, Any]:
    """The original's training as a state that `flowtron.train` goes on from.

    The optimizer numbers weights by their order in the model, which differs.
    """
    assert foreign.optimizer is not None
    ours = {name: index for index, (name, _) in enumerate(model.named_parameters())}
    # Two names of one weight count once, and what is no parameter not at all.
    theirs = [name for name in dict.fromkeys(_our_names(foreign.state)) if name in ours]
    (group,) = foreign.optimizer["param_groups"]
    names = dict(zip(group["params"], theirs, strict=True))
    optimizer = build_optimizer(model.parameters(), config.train)
    state = optimizer.state_dict()
    shapes = [parameter.shape for parameter in model.parameters()]
    for number, values in foreign.optimizer["state"].items():
        index = ours[names[number]]
        moments = {key: values[key].reshape(shapes[index]) for key in ("exp_avg", "exp_avg_sq")}
        state["state"][index] = {"step": torch.tensor(float(values["step"])), **moments}
    for key in ("lr", "betas", "eps", "weight_decay"):
        state["param_groups"][0][key] = group[key]
    optimizer.load_state_dict(state)
    return {
        "iteration": foreign.iteration,
        "bad_steps": 0,
        "is_measured": True,
        "optim_algo": config.train.optim_algo,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": {"plateau_factor": 1.0, "best": float("inf"), "stale": 0},
        "average": None,
        "scaler": None,
        "sampler": {"epoch": 0, "position": 0, "plan": []},
    }


def _our_names(state: Mapping[str, Tensor]) -> list[str]:
    return [next(iter(from_original({name: value}))) for name, value in state.items()]


def _write_tacotron2(foreign: Foreign, folder: Path, values: Mapping[str, Any], origin: str) -> list[str]:
    whole = whole_tacotron2(foreign.state)
    if whole is not None and whole[0]["n_text"] == len(TACOTRON2_SYMBOLS):
        shown, state = whole
        sections = {"model_config": {**shown, "symbols": list(TACOTRON2_SYMBOLS)}}
        config = parse_config(sections, origin)
        model = fill(config, state, foreign.path)
        _, assumed = _audio({}, origin, shown["n_mel_channels"])
        notes = [*assumed, f"assumed: the {len(TACOTRON2_SYMBOLS)} symbols of the published checkpoints"]
        save_model(folder, model, config, symbols=TACOTRON2_SYMBOLS, speakers=[], step=foreign.iteration, notes=notes)
        return notes
    n_symbols = len(from_tacotron2(foreign.state)["text_encoder.embedding.weight"])
    notes = [
        "to start training from: the text encoder goes into a Flowtron with train_config.warmstart_checkpoint_path",
        f"its table has {n_symbols} symbols, Flowtron's has {len(SYMBOLS)}; rows are taken by their number",
    ]
    description = {
        "kind": "tacotron2",
        "step": foreign.iteration,
        "metrics": {},
        "speakers": [],
        "symbols": [],
        "notes": notes,
        "config": {},
    }
    save_description(folder, description, pack(foreign.state), (DESCRIPTION, WEIGHTS))
    return notes


def _write_vocoder(foreign: Foreign, folder: Path, values: Mapping[str, Any], origin: str) -> list[str]:
    if foreign.kind == "waveglow":
        known = values.get("waveglow_config")
        architecture, notes = waveglow_architecture(
            foreign.state, foreign.attributes, known if isinstance(known, dict) else {}
        )
        data = values.get("data_config")
        audio, assumed = _audio(data if isinstance(data, dict) else {}, origin, architecture["n_mel_channels"])
        hop = architecture["upsample_stride"]
        if architecture["alternating_halves"]:
            notes.append("of the first version, in which odd flows change the first half of the channels")
    else:
        architecture, notes = hifigan_architecture(foreign.state, values)
        audio, assumed = _audio(values, origin, architecture["num_mels"], column=2)
        hop = math.prod(architecture["upsample_rates"])
    if hop != audio.hop_length:
        raise InputError(f"its strides make {hop} samples a frame, not {audio.hop_length}; give its own config.")
    notes = [*notes, *assumed, f"weight norm is {'kept' if architecture['weight_norm'] else 'folded'}, as in the file"]
    save_vocoder(folder, foreign.kind, architecture, foreign.state, audio, step=foreign.iteration, notes=notes)
    return notes


WRITERS: dict[str, Callable[[Foreign, Path, Mapping[str, Any], str], list[str]]] = {
    "flowtron": _write_flowtron,
    "tacotron2": _write_tacotron2,
    "waveglow": _write_vocoder,
    "hifigan": _write_vocoder,
}


def flowtron_weights(path: Path) -> dict[str, Tensor]:
    """Read weights by our names from a checkpoint folder, or a file of the original Flowtron or of Tacotron 2.

    Raises:
        InputError: it cannot be read or holds neither.
    """
    if path.is_dir():
        description = read_description(path)
        kind, state = description["kind"], read_weights(path, description)
        return from_tacotron2(state) if kind == "tacotron2" and not description["config"] else state
    foreign = read_foreign(path)
    if foreign.kind not in ("flowtron", "tacotron2"):
        raise InputError(f"{path}: a {TITLES[foreign.kind]}, which has no weights of a Flowtron; name another file.")
    if foreign.kind == "tacotron2":
        whole = whole_tacotron2(foreign.state)
        state = from_tacotron2(foreign.state) if whole is None else whole[1]
    else:
        state = from_original(foreign.state)
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def export(source: str | Path, target: str | Path) -> str:
    """Write a checkpoint of ours as a file that the original reads, {'state_dict': ...}.

    Args:
        source: checkpoint folder.
        target: .pt file to write.

    Returns:
        What was written and what the original cannot use, in lines of text.

    Raises:
        InputError: the source is no checkpoint of a Flowtron, or the target cannot be written.
    """
    folder, path = Path(source), Path(target)
    description = read_description(folder)
    if description["kind"] != "flowtron":
        raise InputError(f"{folder}: a {description['kind']}, not a Flowtron; its source has the original's layout.")
    state = read_tensors(folder / WEIGHTS, str(description["weights"].get("sha256")))
    own = [name for name in state if name.startswith(OWN_PARTS)]
    renamed = to_original({name: value for name, value in state.items() if name not in own})
    notes = [f"left out, since the original has no such parts: {len(own)} weights of {OWN_PARTS}"] if own else []
    if tuple(description["symbols"]) != tuple(SYMBOLS):
        notes.append("its symbols are not the original's: put them into text/symbols.py there")
    model = parse_config(description["config"], str(folder / DESCRIPTION)).model
    if (model.mel_mean, model.mel_std) != (0.0, 1.0):
        notes.append(
            f"its flows take (mel − {model.mel_mean}) / {model.mel_std}: do that to the mels there, and undo it"
        )
    if path.is_dir():
        raise InputError(f"{target}: a folder; name the .pt file to write.")
    with replaced_file(path) as file:
        torch.save({"state_dict": renamed}, file)
    return "\n".join([f"wrote {target}: {len(renamed)} weights", *(f"  {note}" for note in notes)])


def describe(path: Path) -> str:
    """Say what a checkpoint folder, a vocoder folder or a file of another project is, in lines of text.

    Raises:
        InputError: it is none of these, or is damaged.
    """
    if not path.is_dir():
        foreign = read_foreign(path)
        rows: dict[str, Any] = {"weights": _size(foreign.state), "step": foreign.iteration}
        if foreign.kind == "flowtron":
            rows["architecture"] = _listed(architecture_of(foreign.state))
        return _table(f"{path}: {TITLES[foreign.kind]}, to be converted with `flowtron convert`", rows)
    if (path / VOCODER_DESCRIPTION).is_file():
        vocoder = read_vocoder(path)
        rows = {
            "weights": _size(vocoder.state),
            "architecture": _listed(vocoder.architecture),
            "audio": _listed(vocoder.audio.fingerprint()),
            "step": vocoder.step,
            "notes": "; ".join(vocoder.notes) or "none",
        }
        return _table(f"{path}: vocoder, {TITLES.get(vocoder.kind, vocoder.kind)}", rows)
    description = read_description(path)
    state = read_tensors(path / WEIGHTS, str(description["weights"].get("sha256")))
    title = f"{path}: {TITLES[description['kind']]}, format version {description['format_version']}"
    if not description["config"]:
        rows = {"weights": _size(state), "step": description["step"], "notes": "; ".join(description.get("notes", []))}
        return _table(title, rows)
    config = parse_config(description["config"], str(path / DESCRIPTION))
    names = description["speakers"]
    rows = {
        "weights": _size(state),
        "architecture": _listed(config.model.model_dump(exclude={"symbols"})),
        "speakers": f"{len(names)}: {', '.join(names[:20])}" if names else f"{config.model.n_speakers}, without names",
        "symbols": f"{len(description['symbols'])}: {''.join(description['symbols'])[:60]}",
        "cleaners": ", ".join(config.data.text_cleaners),
        "audio": _listed(config.audio_settings().fingerprint()),
        "step": description["step"],
        "metrics": _listed(description["metrics"]) or "none",
        "notes": "; ".join(description.get("notes", [])) or "none",
    }
    return _table(title, rows)


def _size(state: Mapping[str, Tensor]) -> str:
    n_bytes = sum(value.nbytes for value in state.values())
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in state.values()})
    n_values = sum(value.numel() for value in state.values())
    return f"{n_values:,} numbers in {len(state)}, {' and '.join(dtypes)}, {n_bytes / 1e6:.1f} MB"


def _listed(values: Mapping[str, Any]) -> str:
    rounded = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in rounded.items())


def _table(title: str, rows: Mapping[str, Any]) -> str:
    return "\n".join([title, *(f"  {name:13s}{value}" for name, value in rows.items())])
