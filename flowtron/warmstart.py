"""Starting from weights that exist: what is taken, skipped, re-initialised and frozen, with a table that says so."""

import fnmatch
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from flowtron.checkpoint import load_weights
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


def warm_start(model: nn.Module, path: str, include: Sequence[str] | None, ignore: Sequence[str]) -> str:
    """Take weights from a checkpoint into a model, in place.

    A weight is taken when the patterns allow it and its shape fits. Tables that have grown by rows (more speakers,
    more symbols) keep the old rows.

    Args:
        model: the model to fill.
        path: a checkpoint of ours or of the original.
        include: patterns of weights to take; None takes all.
        ignore: patterns of weights to leave.

    Returns:
        A table of what happened to every weight.

    Raises:
        InputError: the checkpoint cannot be read, or a pattern fits nothing.
    """
    saved, current = load_weights(path), model.state_dict()
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
        elif saved[name].shape == current[name].shape:
            taken[name], verdict = saved[name], "loaded"
        elif "embedding" in name and saved[name].shape[1:] == current[name].shape[1:]:
            rows_taken = min(len(saved[name]), len(current[name]))
            grown = current[name].clone()
            grown[:rows_taken] = saved[name][:rows_taken]
            taken[name], verdict = grown, f"loaded: {rows_taken} of {len(grown)} rows"
        else:
            verdict = f"re-initialised: shape {tuple(saved[name].shape)} is not {tuple(current[name].shape)}"
        rows.append(f"{name:60s} {verdict}")
    model.load_state_dict(taken, strict=False)
    return "\n".join([f"warm start from {path}", *rows])


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
