"""Names of weights, the original's and ours: one table, read both ways.

The original flattens nothing and names layers by their kind (`linear_layer`, `conv`); here they are named by what they
do. Two things are more than a rename. Its output layer is a convolution of width 1, so its weight has a last dimension
of 1. Its location layer is registered twice, so its weights have two names each.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from flowtron.errors import InputError

# '#' stands for a number, a dot at the end for whatever follows. Original's name, our name.
STEP = [
    ("attention_lstm.", "attention_lstm."),
    ("lstm.", "lstm."),
    ("conv.", "output."),
    ("attention_layer.query.linear_layer.", "attention.query."),
    ("attention_layer.key.linear_layer.", "attention.key."),
    ("attention_layer.value.linear_layer.", "attention.value."),
    ("attention_layer.v.linear_layer.", "attention.score."),
    ("dense_layer.layers.#.linear_layer.", "dense.#."),
    ("gate_layer.linear_layer.", "gate."),
    ("attn_cond_layer.location_conv_hidden.conv.", "location.convs.0."),
    ("attn_cond_layer.location_conv_out.conv.", "location.convs.1."),
]
TABLE = [
    ("speaker_embedding.", "speaker_embedding."),
    ("embedding.", "text_encoder.embedding."),
    *(
        (f"{theirs}.{their_layer}", f"{ours}.{our_layer}")
        for theirs, ours in (("encoder", "text_encoder"), ("mel_encoder", "mel_encoder"))
        for their_layer, our_layer in (
            ("convolutions.#.0.conv.", "convs.#."),
            ("convolutions.#.1.", "norms.#."),
            ("lstm.", "lstm."),
        )
    ),
    ("gaussian_mixture.prob_layer.linear_layer.", "mixture.prob."),
    ("gaussian_mixture.mean_layer.linear_layer.", "mixture.mean."),
    ("gaussian_mixture.log_var_layer.linear_layer.", "mixture.log_var."),
    ("gaussian_mixture.mean", "mixture.mean"),
    ("gaussian_mixture.log_var", "mixture.log_var"),
    *((f"flows.#.ar_step.{theirs}", f"flows.#.flow.conditioner.{ours}") for theirs, ours in STEP),
    *((f"flows.#.{theirs}", f"flows.#.conditioner.{ours}") for theirs, ours in STEP),
]
# Tacotron 2's parts beside its text encoder, which is named as Flowtron's.
TACOTRON2_TABLE = [
    ("decoder.prenet.layers.#.linear_layer.", "prenet.layers.#."),
    ("decoder.attention_rnn.", "attention_lstm."),
    ("decoder.decoder_rnn.", "decoder_lstm."),
    ("decoder.attention_layer.query_layer.linear_layer.", "attention.query."),
    ("decoder.attention_layer.memory_layer.linear_layer.", "attention.key."),
    ("decoder.attention_layer.v.linear_layer.", "attention.score."),
    ("decoder.attention_layer.location_layer.location_conv.conv.", "attention.filters."),
    ("decoder.attention_layer.location_layer.location_dense.linear_layer.", "attention.location."),
    ("decoder.linear_projection.linear_layer.", "projection."),
    ("decoder.gate_layer.linear_layer.", "gate."),
    ("postnet.convolutions.#.0.conv.", "postnet.convs.#."),
    ("postnet.convolutions.#.1.", "postnet.norms.#."),
]
ALIASES = {
    "attn_cond_layer.conv_layers.0.conv.": "attn_cond_layer.location_conv_hidden.conv.",
    "attn_cond_layer.conv_layers.2.conv.": "attn_cond_layer.location_conv_out.conv.",
}
OUTPUT = "conditioner.output.weight"
# Parts of our model that the original does not have.
OWN_PARTS = ("aligner.", "duration_predictor.")


def _rules(pairs: list[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    rules = []
    for source, target in pairs:
        pattern = re.escape(source).replace(r"\#", r"(\d+)") + ("(.+)" if source.endswith(".") else "")
        groups = iter(range(1, 9))
        template = "".join(rf"\g<{next(groups)}>" if c == "#" else c for c in target)
        rules.append((re.compile(pattern), template + (rf"\g<{next(groups)}>" if source.endswith(".") else "")))
    return rules


IMPORT = _rules(TABLE)
IMPORT_TACOTRON2 = _rules([*TACOTRON2_TABLE, *TABLE])
EXPORT = _rules([(ours, theirs) for theirs, ours in TABLE])


def _renamed(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in rules:
        if match := pattern.fullmatch(name):
            return match.expand(template)
    return None


def example(pattern: str) -> str:
    """Return a pattern of names as a reader expects it, '#' for a number."""
    return pattern.replace(r"(\d+)", "#").replace("\\", "").rstrip("$")


def from_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original's weights to ours; no value changes.

    Args:
        state: the original's state dict, with or without the `module.` of data-parallel training.

    Raises:
        InputError: a name is not one of a Flowtron, or two names of one weight hold different values.
    """
    renamed: dict[str, Tensor] = {}
    for full_name, value in state.items():
        name = original = full_name.removeprefix("module.")
        for alias, canonical in ALIASES.items():
            original = original.replace(alias, canonical)
        ours = _renamed(original, IMPORT)
        if ours is None:
            raise InputError(f"weight '{full_name}' is not one of a Flowtron; give a checkpoint of a Flowtron.")
        if ours.endswith(OUTPUT):
            if value.dim() != 3 or value.shape[2] != 1:
                raise InputError(f"weight '{full_name}' has shape {tuple(value.shape)}, not (2·n_mels, n_hidden, 1).")
            value = value[:, :, 0]
        if ours in renamed and not (renamed[ours].shape == value.shape and bool((renamed[ours] == value).all())):
            raise InputError(f"weight '{name}' differs from its other name's; the checkpoint is damaged, get it anew.")
        renamed[ours] = value
    return renamed


def whole_tacotron2(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Rename all weights of a Tacotron 2 to ours, no value changed, and read its `model_config` off them.

    Returns:
        Both, or None for one that is not whole or has parts that are not known here, such as style tokens.
    """
    renamed = {_renamed(name, IMPORT_TACOTRON2): value for name, value in state.items()}
    ours = {name: value for name, value in renamed.items() if name is not None}
    shown = _tacotron2_architecture(ours)
    return None if shown is None or len(ours) < len(state) else (shown, ours)


def _tacotron2_architecture(state: Mapping[str, Tensor]) -> dict[str, Any] | None:

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        found = tuple(state[name].shape) if name in state else ()
        return found if len(found) == dimensions else (0,) * dimensions

    symbols, text = shape("text_encoder.embedding.weight", 2)
    prenet, seen = shape("prenet.layers.0.weight", 2)
    attention, hidden = shape("attention.query.weight", 2)
    filters, _, kernel = shape("attention.filters.weight", 3)
    postnet, mels, _ = shape("postnet.convs.0.weight", 3)
    if not all((symbols, text, prenet, seen, attention, hidden, filters, kernel, postnet, mels)) or seen % mels:
        return None
    speakers, speaker = shape("speaker_embedding.weight", 2)
    return {
        "kind": "tacotron2",
        "n_speakers": max(1, speakers),
        "n_speaker_dim": speaker,
        "n_text": symbols,
        "n_text_dim": text,
        "n_mel_channels": mels,
        "n_attn_channels": attention,
        "n_hidden": hidden,
        "prenet_dim": prenet,
        "postnet_dim": postnet,
        "n_location_filters": filters,
        "location_kernel_size": kernel,
        "n_frames_per_step": seen // mels,
    }


def from_tacotron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take a Tacotron 2's text encoder by our names; its batch norm's scale and offset become instance norm's.

    Raises:
        InputError: it has no text encoder.
    """
    running = ("running_mean", "running_var", "num_batches_tracked")
    taken = {
        name: value
        for name, value in state.items()
        if name.startswith(("embedding.", "encoder.")) and not name.endswith(running)
    }
    if "embedding.weight" not in taken:
        raise InputError("there is no weight 'embedding.weight'; give a checkpoint of a Tacotron 2.")
    return from_original(taken)


def to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our weights to the original's: the inverse of `from_original`, bit for bit.

    Raises:
        InputError: a weight has no place in the original, such as the aligner's.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        theirs = _renamed(name, EXPORT)
        if theirs is None:
            raise InputError(f"weight '{name}' has no place in the original's model; leave it out.")
        renamed[theirs] = value[:, :, None] if name.endswith(OUTPUT) else value
        for alias, canonical in ALIASES.items():
            if canonical in theirs:
                renamed[theirs.replace(canonical, alias)] = value
    return renamed


def architecture_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the `model_config` off the names and shapes of the original's weights.

    What they cannot tell is left out: `dummy_speaker_embedding`. A fixed mixture's scale is read from its means.

    Raises:
        InputError: weights that every Flowtron has are missing or oddly shaped.
    """
    ours = from_original(state)

    def size(name: str, dimension: int, dimensions: int = 2) -> int:
        if name not in ours:
            raise InputError(f"weight '{name}' is missing; the file is not a whole Flowtron, get it anew.")
        if ours[name].dim() != dimensions:
            raise InputError(f"weight '{name}' has shape {tuple(ours[name].shape)}, not {dimensions} dimensions.")
        return ours[name].shape[dimension]

    def numbered(pattern: str) -> int:
        found = {int(match[1]) for name in ours if (match := re.match(pattern, name))}
        if not found or found != set(range(len(found))):
            raise InputError(
                f"weights like '{example(pattern)}' are numbered {sorted(found)[:9]}, not from 0 on; get the file anew."
            )
        return len(found)

    step = "flows.0.conditioner."
    config: dict[str, Any] = {
        "n_speakers": size("speaker_embedding.weight", 0),
        "n_speaker_dim": size("speaker_embedding.weight", 1),
        "n_text": size("text_encoder.embedding.weight", 0),
        "n_text_dim": size("text_encoder.embedding.weight", 1),
        "n_flows": numbered(r"flows\.(\d+)\."),
        "n_mel_channels": size(f"{step}attention_lstm.weight_ih_l0", 1),
        "n_attn_channels": size(f"{step}attention.query.weight", 0),
        "n_hidden": size(f"{step}attention.query.weight", 1),
        "n_lstm_layers": numbered(r"flows\.0\.conditioner\.lstm\.weight_ih_l(\d+)$"),
        "use_gate_layer": any(name.endswith("conditioner.gate.weight") for name in ours),
        "use_cumm_attention": any(".location." in name for name in ours),
    }
    if "mixture.prob.weight" in ours:
        config["n_components"] = size("mixture.prob.weight", 0)
        config["mel_encoder_n_hidden"] = size("mixture.prob.weight", 1)
        config["fixed_gaussian"] = "mixture.mean" in ours
        if config["fixed_gaussian"]:
            config["mean_scale"] = float(ours["mixture.mean"].max())
    return config
