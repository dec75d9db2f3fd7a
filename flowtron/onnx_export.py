"""Export to ONNX: the text encoder with the duration predictor, and one frame of each step of flow with its state.

The graphs are written node by node, so that what they hold does not depend on the version of an exporter; they run with
`flowtron.onnx_runner`, which needs no torch. Letters: N tokens, D mel channels, H hidden channels, A attention
channels, V value channels, L decoder LSTM layers.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowtron.checkpoint import load_model
from flowtron.errors import InputError, remedy
from flowtron.inference import DEFAULT_SIGMA, DURATION_SHARE, PATH_SHARE
from flowtron.model.aligner import MAX_STD
from flowtron.model.encoder import ConvEncoder
from flowtron.model.flow import AffineFlow, Conditioner, TimeReversed
from flowtron.model.flowtron import Flowtron
from flowtron.text import SYMBOLS

OPSET = 17
IR_VERSION = 8
DESCRIPTION = "onnx.json"


class _Graph:
    """Collects the nodes and weights of an ONNX graph; tensors go by name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}

    def weight(self, value: Tensor | np.ndarray) -> str:
        """Store a constant and return its name."""
        array = value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value
        name = f"w{len(self.weights)}"
        self.weights[name] = np.ascontiguousarray(array)
        return name

    def numbers(self, *values: int) -> str:
        """Store whole numbers, such as axes."""
        return self.weight(np.array(values, dtype=np.int64))

    def scalar(self, value: float) -> str:
        """Store a float."""
        return self.weight(np.array(value, dtype=np.float32))

    def node(self, kind: str, *inputs: str, outputs: int | list[str] = 1, **attributes: Any) -> Any:
        """Append a node and return the name of its output, or the names of its outputs."""
        from onnx import helper

        at = len(self.nodes)
        names = outputs if isinstance(outputs, list) else [f"n{at}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if len(names) == 1 else names

    def named(self, tensor: str, name: str) -> None:
        """Give a tensor the name of an output of the graph."""
        self.node("Identity", tensor, outputs=[name])

    def save(
        self, path: Path, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], whole: tuple[str, ...]
    ) -> None:
        """Check the graph and write it; inputs and outputs with their shapes, those named in `whole` being integers."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        def infos(shapes: dict[str, list[Any]]) -> list[Any]:
            kinds = {name: TensorProto.INT64 if name in whole else TensorProto.FLOAT for name in shapes}
            return [helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in shapes.items()]

        stored = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "flowtron", infos(inputs), infos(outputs), stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)


def _gates(x: Tensor) -> Tensor:
    """Reorder the first dimension (4H) from torch's gates (input, forget, cell, output) to ONNX's (i, o, f, c)."""
    i, f, g, o = x.detach().float().chunk(4)
    return torch.cat([i, o, f, g])


def _lstm(graph: _Graph, module: nn.Module, layer: int, x: str, state: tuple[str, str] | None, both: bool) -> list[str]:
    """Append an LSTM layer over x (T, 1, channels); return hidden (T, directions, 1, H), last h and last c."""
    suffixes = [f"l{layer}", f"l{layer}_reverse"] if both else [f"l{layer}"]
    parts = [
        [getattr(module, f"{name}_{s}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")] for s in suffixes
    ]
    w = torch.stack([_gates(p[0]) for p in parts])
    r = torch.stack([_gates(p[1]) for p in parts])
    b = torch.stack([torch.cat([_gates(p[2]), _gates(p[3])]) for p in parts])
    inputs = [x, *map(graph.weight, (w, r, b)), *(["", *state] if state else [])]
    direction = "bidirectional" if both else "forward"
    names: list[str] = graph.node("LSTM", *inputs, outputs=3, hidden_size=r.shape[2], direction=direction)
    return names


def _encode(graph: _Graph, encoder: ConvEncoder, x: str) -> str:
    """Append a convolutional encoder over x (1, channels, N); return (1, N, channels)."""
    for conv, norm in zip(encoder.convs, encoder.norms):
        assert isinstance(conv, nn.Conv1d)
        pad = int(conv.padding[0])
        bias = [] if conv.bias is None else [graph.weight(conv.bias)]
        x = graph.node("Conv", x, graph.weight(conv.weight), *bias, pads=[pad, pad])
        x = graph.node(
            "InstanceNormalization",
            x,
            graph.weight(norm.weight),  # type: ignore[arg-type]
            graph.weight(norm.bias),  # type: ignore[arg-type]
            epsilon=float(norm.eps),  # type: ignore[arg-type]
        )
        x = graph.node("Relu", x)
    hidden, _, _ = _lstm(graph, encoder.lstm, 0, graph.node("Transpose", x, perm=[2, 0, 1]), None, True)
    # (N, directions, 1, H) -> (1, N, 2 H)
    turned = graph.node("Transpose", hidden, perm=[2, 0, 1, 3])
    return str(graph.node("Reshape", turned, graph.numbers(1, -1, 2 * encoder.lstm.hidden_size)))


def _linear(graph: _Graph, layer: nn.Linear, x: str) -> str:
    product = graph.node("MatMul", x, graph.weight(layer.weight.T))
    return product if layer.bias is None else str(graph.node("Add", product, graph.weight(layer.bias)))


def _conditioners(model: Flowtron) -> list[Conditioner]:
    found = []
    for flow in model.flows:
        assert isinstance(flow, AffineFlow | TimeReversed)
        found.append(flow.conditioner)
    return found


def export_encoder(model: Flowtron, path: Path) -> None:
    """Write the graph from tokens (1, N) and speaker (1,) to the keys (1, N, A) and values (1, N, V) of every step.

    A model with durations adds mean and log_std (1, N) of the log durations.
    """
    graph = _Graph()
    speaker_id = graph.numbers(0) if model.dummy_speaker else "speaker"
    named = graph.node("Gather", graph.weight(model.text_encoder.embedding.weight), "tokens")
    text = _encode(graph, model.text_encoder, graph.node("Transpose", named, perm=[0, 2, 1]))
    speaker = graph.node("Gather", graph.weight(model.speaker_embedding.weight), speaker_id)
    width = model.speaker_embedding.embedding_dim
    n_tokens = graph.node("Slice", graph.node("Shape", "tokens"), graph.numbers(1), graph.numbers(2))
    shape = graph.node("Concat", graph.numbers(1), n_tokens, graph.numbers(width), axis=0)
    encoded = graph.node("Concat", text, graph.node("Expand", speaker, shape), axis=2)
    outputs: dict[str, list[Any]] = {}
    for k, conditioner in enumerate(_conditioners(model)):
        attention = conditioner.attention
        for name, layer in (("keys", attention.key), ("values", attention.value)):
            graph.named(_linear(graph, layer, encoded), f"{name}_{k}")
            outputs[f"{name}_{k}"] = [1, "N", layer.out_features]
    predictor = model.duration_predictor
    if predictor is not None:
        named = graph.node("Gather", graph.weight(predictor.embedding.weight), "tokens")
        who = graph.node("Gather", graph.weight(predictor.speaker_embedding.weight), "speaker")
        named = graph.node("Add", named, who)
        inner = _encode(graph, predictor.encoder, graph.node("Transpose", named, perm=[0, 2, 1]))
        both = graph.node("Split", _linear(graph, predictor.output, inner), outputs=2, axis=2)
        mean, log_std = (graph.node("Squeeze", each, graph.numbers(2)) for each in both)
        graph.named(graph.node("Add", mean, graph.scalar(1.0)), "mean")
        graph.named(graph.node("Clip", log_std, graph.scalar(-4.0), graph.scalar(math.log(MAX_STD))), "log_std")
        outputs |= {"mean": [1, "N"], "log_std": [1, "N"]}
    graph.save(path, {"tokens": [1, "N"], "speaker": [1]}, outputs, ("tokens", "speaker"))


def export_step(conditioner: Conditioner, path: Path) -> None:
    """Write the graph of one frame of a step of flow.

    From previous and z (1, D), keys (1, N, A), values (1, N, V), prior (1, N), temperature () and the state (h0, c0
    (1, 1, H) of the attention LSTM, h, c (L, 1, H) of the decoder's) to frame (1, D), attention (1, N), gate_logit (1,)
    if there is a gate, and the next state, named with next_ in front. A prior of ones changes nothing.
    """
    graph = _Graph()
    D, H = conditioner.attention_lstm.input_size, conditioner.attention_lstm.hidden_size
    L, attention = conditioner.lstm.num_layers, conditioner.attention
    axis0 = graph.numbers(0)
    x = graph.node("Unsqueeze", "previous", axis0)
    _, h0, c0 = _lstm(graph, conditioner.attention_lstm, 0, x, ("h0", "c0"), False)
    graph.named(h0, "next_h0")
    graph.named(c0, "next_c0")
    hidden = graph.node("Squeeze", h0, axis0)
    query = graph.node("Unsqueeze", _linear(graph, attention.query, hidden), graph.numbers(1))
    pairs = graph.node("Tanh", graph.node("Add", "keys", query))
    energy = graph.node("Squeeze", _linear(graph, attention.score, pairs), graph.numbers(2))
    weights = graph.node("Softmax", graph.node("Div", energy, "temperature"), axis=1)
    tiny = graph.scalar(1e-20)
    logs = [graph.node("Log", graph.node("Add", each, tiny)) for each in (weights, "prior")]
    graph.node("Softmax", graph.node("Add", *logs), axis=1, outputs=["attention"])
    row = graph.node("Unsqueeze", "attention", graph.numbers(1))
    context = graph.node("Squeeze", graph.node("MatMul", row, "values"), graph.numbers(1))
    joined = graph.node("Concat", hidden, context, axis=1)
    outputs: dict[str, list[Any]] = {"frame": [1, D], "attention": [1, "N"]}
    if conditioner.gate is not None:
        graph.named(graph.node("Squeeze", _linear(graph, conditioner.gate, joined), graph.numbers(1)), "gate_logit")
        outputs["gate_logit"] = [1]
    below, states = graph.node("Unsqueeze", joined, axis0), []
    h = graph.node("Split", "h", outputs=L, axis=0) if L > 1 else ["h"]
    c = graph.node("Split", "c", outputs=L, axis=0) if L > 1 else ["c"]
    for layer in range(L):
        _, below, cell = _lstm(graph, conditioner.lstm, layer, below, (h[layer], c[layer]), False)
        states.append((below, cell))
    for name, parts in zip(("next_h", "next_c"), zip(*states)):
        graph.node("Concat", *parts, axis=0, outputs=[name])
    decoded = graph.node("Squeeze", below, axis0)
    for dense in conditioner.dense:
        assert isinstance(dense, nn.Linear)
        decoded = graph.node("Tanh", _linear(graph, dense, decoded))
    log_scale, shift = graph.node("Split", _linear(graph, conditioner.output, decoded), outputs=2, axis=1)
    scale = graph.node("Exp", graph.node("Neg", log_scale))
    graph.node("Mul", graph.node("Sub", "z", shift), scale, outputs=["frame"])
    A, V = attention.key.out_features, attention.value.out_features
    state: dict[str, list[Any]] = {"h0": [1, 1, H], "c0": [1, 1, H], "h": [L, 1, H], "c": [L, 1, H]}
    frame: dict[str, list[Any]] = {
        "previous": [1, D],
        "z": [1, D],
        "keys": [1, "N", A],
        "values": [1, "N", V],
        "prior": [1, "N"],
    }
    inputs: dict[str, list[Any]] = {**frame, "temperature": [], **state}
    graph.save(path, inputs, outputs | {f"next_{name}": shape for name, shape in state.items()}, ())


def export_onnx(source: str | Path, target: str | Path) -> Path:
    """Write a checkpoint as a folder of ONNX graphs, with a description for `flowtron.onnx_runner`.

    Args:
        source: checkpoint folder.
        target: folder to write.

    Raises:
        InputError: the source is no checkpoint, its attention is location-sensitive, or onnx is not installed.
    """
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise InputError(f"export to ONNX needs the package onnx; {remedy('onnx')}.") from None
    loaded = load_model(source)
    model, folder = loaded.model.eval(), Path(target)
    if not isinstance(model, Flowtron):
        raise InputError(f"{source}: a Tacotron 2, which is not exported; name a Flowtron's checkpoint.")
    conditioners = _conditioners(model)
    if conditioners[0].location is not None:
        raise InputError(f"{source}: its attention is location-sensitive, which is not exported; use torch for it.")
    if folder.is_file():
        raise InputError(f"{target} is a file; name a folder to write.")
    folder.mkdir(parents=True, exist_ok=True)
    export_encoder(model, folder / "encoder.onnx")
    for k, conditioner in enumerate(conditioners):
        export_step(conditioner, folder / f"step_{k}.onnx")
    config = loaded.config
    mixture = None
    if model.mixture is not None:
        mean, log_var, prob = (part[0].detach() for part in model.mixture.unconditional())
        std = (0.5 * log_var).exp()
        mixture = {"mean": mean.tolist(), "std": std.tolist(), "prob": prob.tolist()}
    description = {
        "backward": [isinstance(flow, TimeReversed) for flow in model.flows],
        "mel_mean": model.mel_mean,
        "mel_std": model.mel_std,
        "has_gate": conditioners[-1].gate is not None,
        "has_durations": model.duration_predictor is not None,
        "sigma": DEFAULT_SIGMA,
        "duration_share": DURATION_SHARE,
        "path_width": PATH_SHARE * config.train.path_width,
        "n_mels": model.n_mels,
        "hidden": config.model.n_hidden,
        "lstm_layers": config.model.n_lstm_layers,
        "symbols": list(loaded.symbols or SYMBOLS),
        "cleaners": list(config.data.text_cleaners),
        "keep_ambiguous": config.data.keep_ambiguous,
        "speakers": list(loaded.speakers),
        "n_speakers": model.n_speakers,
        "mixture": mixture,
        "audio": config.audio_settings().fingerprint(),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return folder
