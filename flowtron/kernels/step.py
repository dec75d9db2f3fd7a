"""Free-running inference of one step of flow, all frames in one call.

Letters: B batch, T frames, N tokens, D mel channels, H hidden channels, A attention channels, V value channels.
"""

import ctypes
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from flowtron.kernels.attention import CLAMP, additive_scores
from flowtron.kernels.build import load_library, pointer
from flowtron.kernels.step_weights import DTYPES, LANES, WIDTH, Layer, Matrix, StepWeights, by_gate


class StepResult(NamedTuple):
    """Frames of a step.

    x: (B, T, D), zero from an item's length on. attention: (B, T, N), likewise. gate_logits: (B, T), zero likewise, or
    None. lengths: (B,) frames after stopping.
    """

    x: Tensor
    attention: Tensor
    gate_logits: Tensor | None
    lengths: Tensor


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("panels", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs", "kind")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (("below", _Matrix), ("context", _Matrix), ("recurrent", _Matrix), ("bias", ctypes.c_void_p))


_SIZES = ("B", "T", "N", "D", "H", "A", "V", "L", "threads")
_POINTERS = (
    *("dense0_bias", "dense1_bias", "output_bias", "score", "keys", "values", "folded", "gate", "gate_tokens"),
    *("mask", "prior", "z", "x", "attention", "gate_logits", "lengths"),
)


class _Step(ctypes.Structure):
    """The same fields in the same order as `Step` in step.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_double) for name in ("temperature", "gate_threshold")),
        ("attention_lstm", _Layer),
        ("lstm", ctypes.c_void_p),
        *((name, _Matrix) for name in ("query", "dense0", "dense1", "output")),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    )


def _matrix(matrix: Matrix | None) -> _Matrix:
    if matrix is None:
        return _Matrix(None, None, 0, 0, 0)
    kind = DTYPES.index(matrix.dtype)
    return _Matrix(pointer(matrix.panels), pointer(matrix.scale), matrix.inputs, matrix.outputs, kind)


def _layer(layer: Layer, folded: bool = False) -> _Layer:
    return _Layer(
        _matrix(layer.below),
        _matrix(None if folded else layer.context),
        _matrix(layer.recurrent),
        pointer(layer.bias),
    )


def _padded(x: Tensor, multiple: int) -> Tensor:
    """Pad the last dimension with zeros to a multiple."""
    return functional.pad(x, (0, -x.shape[-1] % multiple)).contiguous()


def _folds(weights: StepWeights, batch: int, tokens: int) -> bool:
    """Return whether context · W = attention · (values · W) reads less: N rows per item against W's V rows."""
    context = weights.lstm[0].context
    assert context is not None
    return batch * tokens * 4 < context.inputs * context.panels.element_size()


def _run_kernel(
    library: ctypes.CDLL,
    weights: StepWeights,
    z: Tensor,
    keys: Tensor,
    values: Tensor,
    token_mask: Tensor,
    log_prior: Tensor | None,
    lengths: Tensor,
    gate_threshold: float | None,
    temperature: float,
) -> StepResult:
    (batch, frames, n_mels), tokens, width = z.shape, keys.shape[1], values.shape[2]
    score = _padded(weights.score, LANES)
    exponentials = _padded((2 * keys.clamp(-CLAMP, CLAMP)).exp(), LANES)
    context = weights.lstm[0].context
    assert context is not None
    folded = values @ context.dense().t() if _folds(weights, batch, tokens) else None
    gate = gate_tokens = gate_logits = None
    if weights.gate is not None:
        gate = weights.gate[0][: weights.hidden].contiguous()
        gate_tokens = (values @ weights.gate[0][weights.hidden :] + weights.gate[1]).contiguous()
        gate_logits = z.new_zeros(batch, frames)
    layers = (_Layer * len(weights.lstm))(*(_layer(layer, folded is not None) for layer in weights.lstm))
    result = StepResult(torch.zeros_like(z), z.new_zeros(batch, frames, tokens), gate_logits, lengths.clone())
    tensors = {
        "dense0_bias": _padded(weights.biases[0], WIDTH),
        "dense1_bias": _padded(weights.biases[1], WIDTH),
        "output_bias": _padded(weights.biases[2], WIDTH),
        "score": score,
        "keys": exponentials,
        "values": values,
        "folded": folded,
        "gate": gate,
        "gate_tokens": gate_tokens,
        "mask": token_mask.to(torch.uint8).contiguous(),
        "prior": None if log_prior is None else log_prior.double().exp().contiguous(),
        "z": z,
        "x": result.x,
        "attention": result.attention,
        "gate_logits": gate_logits,
        "lengths": result.lengths,
    }
    threads = torch.get_num_threads()
    step = _Step(
        *(batch, frames, tokens, n_mels, weights.hidden, score.shape[0], width, len(weights.lstm), threads),
        *(temperature, math.nan if gate_threshold is None else gate_threshold),
        _layer(weights.attention_lstm),
        ctypes.cast(layers, ctypes.c_void_p),
        *map(_matrix, (weights.query, *weights.dense, weights.output)),
        *(pointer(tensors[name]) for name in _POINTERS),
    )
    library.run_step(ctypes.byref(step))
    return result


def _dense_layer(layer: Layer) -> tuple[Tensor, Tensor]:
    """Return a layer's weight (4H, K + V + H), gate by gate, and its bias."""
    matrices = [m.dense() for m in (layer.below, layer.context, layer.recurrent) if m is not None]
    return by_gate(torch.cat(matrices, 1)), by_gate(layer.bias)


def _lstm_cell(
    layer: tuple[Tensor, Tensor], inputs: list[Tensor], state: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """One frame of a layer: inputs from below (B, K) and context (B, V), h and c (B, H) -> h and c."""
    gates = functional.linear(torch.cat([*inputs, state[0]], 1), *layer)
    i, f, g, o = gates.chunk(4, 1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _run_torch(
    weights: StepWeights,
    z: Tensor,
    keys: Tensor,
    values: Tensor,
    token_mask: Tensor,
    log_prior: Tensor | None,
    lengths: Tensor,
    gate_threshold: float | None,
    temperature: float,
) -> StepResult:
    batch, frames, n_mels = z.shape
    lengths = lengths.clone()
    zero = z.new_zeros(batch, weights.hidden)
    attention_state, states = (zero, zero), [(zero, zero) for _ in weights.lstm]
    x, attention = torch.zeros_like(z), z.new_zeros(batch, frames, keys.shape[1])
    gate_logits = None if weights.gate is None else z.new_zeros(batch, frames)
    frame = z.new_zeros(batch, n_mels)
    attention_lstm, *lstm = map(_dense_layer, (weights.attention_lstm, *weights.lstm))
    to_query, *dense, output = (m.dense() for m in (weights.query, *weights.dense, weights.output))
    for t in range(frames):
        active = t < lengths
        if not active.any():
            break
        attention_state = _lstm_cell(attention_lstm, [frame], attention_state)
        query = attention_state[0] @ to_query.t()
        energy = additive_scores(query[:, None], keys, weights.score)[:, 0] / temperature
        weight = energy.masked_fill(~token_mask, -torch.inf).softmax(1)
        if log_prior is not None:
            logprob = (weight + 1e-20).log() + log_prior[:, t]
            weight = logprob.masked_fill(~token_mask, -torch.inf).softmax(1)
        attention[:, t] = weight * active[:, None]
        context = (weight[:, None] @ values)[:, 0]
        if weights.gate is not None and gate_logits is not None:
            logit = torch.cat([attention_state[0], context], 1) @ weights.gate[0] + weights.gate[1]
            gate_logits[:, t] = logit * active
            if gate_threshold is not None:
                stops = active & (logit.sigmoid() > gate_threshold)
                lengths = torch.where(stops, t + 1, lengths)
        below = attention_state[0]
        for index, layer in enumerate(lstm):
            states[index] = _lstm_cell(layer, [below, context] if index == 0 else [below], states[index])
            below = states[index][0]
        for matrix, bias in zip(dense, weights.biases):
            below = functional.linear(below, matrix, bias).tanh()
        log_scale, shift = functional.linear(below, output, weights.biases[2]).chunk(2, 1)
        frame = (z[:, t] - shift) * (-log_scale).exp()
        x[:, t] = frame * active[:, None]
    return StepResult(x, attention, gate_logits, lengths)


@torch.no_grad()
def run_step(
    weights: StepWeights,
    z: Tensor,
    keys: Tensor,
    values: Tensor,
    token_mask: Tensor,
    log_prior: Tensor | None = None,
    lengths: Tensor | None = None,
    gate_threshold: float | None = None,
    temperature: float = 1.0,
) -> StepResult:
    """Invert one step of flow, x_t = (z_t − shift_t) · exp(−log_scale_t), each frame from those before.

    On a CPU the loop over frames runs in C++ on `torch.get_num_threads()` threads; elsewhere, and without a compiler,
    it is an equal loop in torch.

    Args:
        weights: of the step's conditioner.
        z: (B, T, D) latent frames in the order of processing.
        keys: (B, N, A), the conditioner's `memory`.
        values: (B, N, V), likewise.
        token_mask: (B, N), true at tokens, of which every item has one.
        log_prior: (B, T, N) added to the log attention, which is then renormalised.
        lengths: (B,) frames wanted of each item; None wants T.
        gate_threshold: an item ends with the first frame whose gate probability exceeds it; None never stops.
        temperature: divides attention energies.
    """
    lengths = torch.full((z.shape[0],), z.shape[1]) if lengths is None else lengths.long()
    lengths = lengths.to(z.device).clamp(max=z.shape[1]).contiguous()
    z, keys, values = (x.float().contiguous() for x in (z, keys, values))
    library = load_library("step") if z.device.type == "cpu" and z.numel() else None
    if library is not None:
        return _run_kernel(
            library, weights, z, keys, values, token_mask, log_prior, lengths, gate_threshold, temperature
        )
    return _run_torch(weights, z, keys, values, token_mask, log_prior, lengths, gate_threshold, temperature)
