"""Starting from weights that exist: what is taken, skipped, re-initialised and frozen, with a table that says so."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from torch import Tensor, nn

from flowtron.checkpoint import load_weights, read_description
from flowtron.errors import InputError


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a weight's name fits one of the globs, or contains one of the plain patterns (as the original's)."""
    return any(
        fnmatch.fnmatchcase(name, pattern) if any(c in pattern for c in "*?[") else pattern in name
        for pattern in patterns
    )


def require_matches(names: Iterable[str], patterns: Sequence[str], key: str) -> None:
    """Refuse a pattern that fits no weight.

    Raises:
        InputError: naming the pattern and the config key.
    """
    names = list(names)
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            raise InputError(
                f"train_config.{key}: '{pattern}' fits no weight; weights are named like '{names[0]}', correct it."
            )


def _merge_rows(
    name: str, new: Tensor, old: Tensor, names: Sequence[str] | None, old_names: Sequence[str] | None
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


def warm_start(
    model: nn.Module,
    path: str,
    include: Sequence[str] | None,
    ignore: Sequence[str],
    speakers: Sequence[str] | None = None,
    symbols: Sequence[str] | None = None,
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

    Returns:
        A table of what happened to every weight.

    Raises:
        InputError: the checkpoint cannot be read, or a pattern fits nothing.
    """
    about = read_description(Path(path)) if Path(path).is_dir() else {}
    rows = {"speakers": speakers, "symbols": symbols}
    old_rows = {kind: [str(name) for name in about.get(kind) or []] for kind in rows}
    return take_weights(model, load_weights(path), path, include, ignore, rows, old_rows)


def take_weights(
    model: nn.Module,
    saved: Mapping[str, Tensor],
    origin: str,
    include: Sequence[str] | None,
    ignore: Sequence[str],
    rows_of: Mapping[str, Sequence[str] | None] = MappingProxyType({}),
    old_rows_of: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> str:
    """Take weights into a model, as `warm_start` does; `rows_of` names the tables' rows by "speakers" and "symbols".

    Raises:
        InputError: a pattern fits nothing.
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
