"""Free-running inference of one step of flow, all frames in one call.

Letters: B batch, T frames, N tokens, D mel channels, H hidden channels, A attention channels, V value channels.
"""

import ctypes
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from flowtron.kernels.attention import CLAMP
from flowtron.kernels.build import load_library, pointer, team_size
from flowtron.kernels.step_weights import DTYPES, LANES, WIDTH, Layer, Matrix, StepWeights

WEIGHTS_PER_THREAD = 4_000_000  # products of a frame that outweigh meeting at every layer


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
    *("dense0_bias", "dense1_bias", "output_bias", "score", "keys", "values", "gate", "gate_bias"),
    *("mask", "prior", "given", "z", "x", "attention", "gate_logits", "lengths"),
)


class _Window(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("direction", "back", "ahead", "patience", "tail"))


class _Step(ctypes.Structure):
    """The same fields in the same order as `Step` in step.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_double) for name in ("temperature", "gate_threshold")),
        ("window", _Window),
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


def _layer(layer: Layer) -> _Layer:
    return _Layer(_matrix(layer.below), _matrix(layer.context), _matrix(layer.recurrent), pointer(layer.bias))


def _padded(x: Tensor, multiple: int) -> Tensor:
    """Pad the last dimension with zeros to a multiple."""
    return functional.pad(x, (0, -x.shape[-1] % multiple)).contiguous()


def is_available(device: torch.device) -> bool:
    """Whether `run_step` runs here: on a CPU, with a compiler or a library compiled before."""
    return device.type == "cpu" and load_library("step") is not None


@torch.no_grad()
def run_step(
    weights: StepWeights,
    z: Tensor,
    keys: Tensor,
    values: Tensor,
    token_mask: Tensor,
    prior: Tensor | None = None,
    given: Tensor | None = None,
    lengths: Tensor | None = None,
    gate_threshold: float | None = None,
    temperature: float = 1.0,
    window: tuple[int, int, int, int, int] | None = None,
) -> StepResult:
    """Invert one step of flow, x_t = (z_t − shift_t) · exp(−log_scale_t), each frame from those before.

    The loop over frames runs in C++ on `torch.get_num_threads()` threads. An item's numbers are the same to the last
    bit alone and in a batch.

    Args:
        weights: of the step's conditioner.
        z: (B, T, D) latent frames in the order of processing.
        keys: (B, N, A), the conditioner's `memory`.
        values: (B, N, V), likewise.
        token_mask: (B, N), true at an item's tokens, of which every item has one; padding comes after them.
        prior: (B, T, N) multiplied into the attention, which is then renormalised.
        given: (B, T, N) attention to use in place of a computed one.
        lengths: (B,) frames wanted of each item; None wants T.
        gate_threshold: an item ends with the first frame whose gate probability exceeds it; None never stops.
        temperature: divides attention energies.
        window: direction of reading (1 or −1), and back, ahead, patience and tail of an `AttentionWindow`.

    Raises:
        RuntimeError: the kernel is not available.
    """
    library = load_library("step")
    if library is None or z.device.type != "cpu":
        raise RuntimeError("The step kernel needs a CPU and a C++ compiler; use the flow's own inverse.")
    lengths = torch.full((z.shape[0],), z.shape[1]) if lengths is None else lengths.long()
    lengths = lengths.clamp(max=z.shape[1]).contiguous()
    z, keys, values = (x.float().contiguous() for x in (z, keys, values))
    (batch, frames, n_mels), tokens, width = z.shape, keys.shape[1], values.shape[2]
    score = _padded(weights.score, LANES)
    gate, gate_bias = weights.gate or (None, None)
    gate_logits = None if gate is None else z.new_zeros(batch, frames)
    layers = (_Layer * len(weights.lstm))(*map(_layer, weights.lstm))
    result = StepResult(torch.zeros_like(z), z.new_zeros(batch, frames, tokens), gate_logits, lengths.clone())
    tensors = {
        "dense0_bias": _padded(weights.biases[0], WIDTH),
        "dense1_bias": _padded(weights.biases[1], WIDTH),
        "output_bias": _padded(weights.biases[2], WIDTH),
        "score": score,
        "keys": _padded((2 * keys.clamp(-CLAMP, CLAMP)).exp(), LANES),
        "values": values,
        "gate": gate,
        "gate_bias": gate_bias,
        "mask": token_mask.to(torch.uint8).contiguous(),
        "prior": None if prior is None else prior.float().contiguous(),
        "given": None if given is None else given.float().contiguous(),
        "z": z,
        "x": result.x,
        "attention": result.attention,
        "gate_logits": gate_logits,
        "lengths": result.lengths,
    }
    threads = team_size(batch * weights.n_weights, WEIGHTS_PER_THREAD)
    step = _Step(
        *(batch, frames, tokens, n_mels, weights.hidden, score.shape[0], width, len(weights.lstm), threads),
        *(temperature, math.nan if gate_threshold is None else gate_threshold),
        _Window(*(window or (0,) * 5)),
        _layer(weights.attention_lstm),
        ctypes.cast(layers, ctypes.c_void_p),
        *map(_matrix, (weights.query, *weights.dense, weights.output)),
        *(pointer(tensors[name]) for name in _POINTERS),
    )
    library.run_step(ctypes.byref(step))
    return result
