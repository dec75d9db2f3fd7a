"""Starting from weights that exist: what is taken, skipped, re-initialised and frozen, with a table that says so."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from torch import Tensor, nn

from flowtron.checkpoint import load_weights, read_description
from flowtron.config import Config
from flowtron.errors import InputError


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a weight's name fits one of the globs, or contains one of the plain patterns (as the original's)."""
    return any(
        fnmatch.fnmatchcase(name, pattern) if any(c in pattern for c in "*?[") else pattern in name
        for pattern in patterns
    )


def require_matches(names: Iterable[str], patterns: Sequence[str], key: str, what: str = "weight") -> None:
    """Refuse a pattern that fits no weight.

    Raises:
        InputError: naming the pattern and the config key.
    """
    names = list(names)
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            like = f"weights are named like '{names[0]}', " if names else ""
            raise InputError(f"train_config.{key}: '{pattern}' fits no {what}; {like}correct it.")


def _merge_rows(
    name: str, new: Tensor, old: Tensor, names: Sequence[str] | None, old_names: Sequence[str]
) -> tuple[Tensor, str]:
    """Take the rows of a grown, shrunk or re-ordered table: by name where both sides have names, else by number.

    Rows of new speakers start at the mean of the old ones, which is nearer to any voice than random numbers are.
    """
    if names and old_names and len(old_names) == len(old):
        source = {n: k for k, n in enumerate(old_names)}
        pairs = [(k, source[n]) for k, n in enumerate(names[: len(new)]) if n in source]
        how = "by name"
    else:
        pairs = [(k, k) for k in range(min(len(old), len(new)))]
        how = "by number"
    merged = new.clone()
    if "speaker" in name:
        merged[:] = old.mean(0)
    for k, origin in pairs:
        merged[k] = old[origin]
    left = len(new) - len(pairs)
    rest = f", {left} at the mean of the old" if left and "speaker" in name else f", {left} new" if left else ""
    return merged, f"loaded: {len(pairs)} of {len(new)} rows {how}{rest}"


def old_speakers(path: str | Path, include: Sequence[str] | None, ignore: Sequence[str]) -> list[str]:
    """Speakers whose rows a warm start takes, in order; "row 0" and so on where the checkpoint has no names for them.

    None where the patterns leave the rows, or the file does not tell.
    """
    row = "speaker_embedding.weight"
    if not Path(path).is_dir() or matches(row, ignore) or not (include is None or matches(row, include)):
        return []
    about = read_description(Path(path))
    n_rows = about["config"]["model_config"]["n_speakers"]
    return [str(name) for name in about.get("speakers") or (f"row {k}" for k in range(n_rows))]


def different_scales(path: str | Path, config: Config) -> list[str]:
    """What a checkpoint's mels differ in from those of a config, a clause for each difference."""
    if not Path(path).is_dir():
        return []
    about = read_description(Path(path))
    model = about["config"]["model_config"]
    old = {name: model.get(name, default) for name, default in (("mel_mean", 0.0), ("mel_std", 1.0))} | about["audio"]
    new = {"mel_mean": config.model.mel_mean, "mel_std": config.model.mel_std, **config.audio_settings().fingerprint()}
    return [f"{name} is {new[name]} here and {old[name]} there" for name in new if old.get(name) != new[name]]


def warm_start(
    model: nn.Module,
    path: str | Path,
    include: Sequence[str] | None,
    ignore: Sequence[str],
    speakers: Sequence[str] | None = None,
    symbols: Sequence[str] | None = None,
    trained: Sequence[str] = (),
) -> str:
    """Take weights from a checkpoint into a model, in place.

    A weight is taken when the patterns allow it and its shape fits. Of tables with other rows (more speakers, more
    symbols) the rows are taken that both have, by name where the checkpoint tells names.

    Args:
        model: the model to fill.
        path: a checkpoint of ours or of the original.
        include: patterns of weights to take; None takes all.
        ignore: patterns of weights to leave.
        speakers, symbols: what the rows of the model's tables stand for.
        trained: patterns of the only weights to be trained; none stands for all.

    Returns:
        A table of what happened to every weight.

    Raises:
        InputError: the checkpoint cannot be read, a pattern fits nothing, or a weight would stay random for good.
    """
    about = read_description(Path(path)) if Path(path).is_dir() else {}
    rows = {"speakers": speakers, "symbols": symbols}
    old_rows = {kind: [str(name) for name in about.get(kind) or []] for kind in rows}
    return take_weights(model, load_weights(path), str(path), include, ignore, rows, old_rows, trained)


def take_weights(
    model: nn.Module,
    saved: Mapping[str, Tensor],
    origin: str,
    include: Sequence[str] | None,
    ignore: Sequence[str],
    rows_of: Mapping[str, Sequence[str] | None] = MappingProxyType({}),
    old_rows_of: Mapping[str, Sequence[str]] = MappingProxyType({}),
    trained: Sequence[str] = (),
) -> str:
    """Take weights into a model, as `warm_start` does; `rows_of` names the tables' rows by "speakers" and "symbols".

    Raises:
        InputError: a pattern fits nothing, or a weight would stay random for good.
    """
    current = model.state_dict()
    names = sorted({*saved, *current})
    require_matches(names, include or [], "include_layers")
    require_matches(names, ignore, "ignore_layers")
    rows = []
    taken: dict[str, Tensor] = {}
    for name in names:
        if name not in current:
            verdict = "skipped: not in this model"
        elif name not in saved:
            verdict = "re-initialised: not in the checkpoint"
        elif (include is not None and not matches(name, include)) or matches(name, ignore):
            verdict = "re-initialised: by the config"
        elif name.endswith("embedding.weight") and saved[name].shape[1:] == current[name].shape[1:]:
            kind = "speakers" if "speaker" in name else "symbols"
            new_names, old_names = rows_of.get(kind), list(old_rows_of.get(kind, []))
            if saved[name].shape == current[name].shape and (
                not old_names or old_names == list(new_names or old_names)
            ):
                taken[name], verdict = saved[name], "loaded"
            else:
                taken[name], verdict = _merge_rows(name, current[name], saved[name], new_names, old_names)
        elif saved[name].shape == current[name].shape:
            taken[name], verdict = saved[name], "loaded"
        else:
            verdict = f"re-initialised: shape {tuple(saved[name].shape)} is not {tuple(current[name].shape)}"
        rows.append(f"{name:60s} {verdict}")
    require_matches(taken, include or [], "include_layers", "weight that both the model and the checkpoint have")
    for name, _ in model.named_parameters():
        if trained and name not in taken and not matches(name, trained):
            raise InputError(
                f"{origin}: it has no '{name}' for this model, and train_config.finetune_layers would leave "
                "that random; take the checkpoint's model_config, or train it as well."
            )
    model.load_state_dict(taken, strict=False)
    return "\n".join([f"warm start from {origin}", *rows])


def freeze_all_but(model: nn.Module, patterns: Sequence[str]) -> str:
    """Let only the weights that fit a pattern be trained; return a table.

    Raises:
        InputError: a pattern fits nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    require_matches(names, patterns, "finetune_layers")
    rows = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(matches(name, patterns))
        rows.append(f"{name:60s} {'trained' if parameter.requires_grad else 'frozen'}")
    return "\n".join(rows)
