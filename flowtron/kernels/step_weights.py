"""Weights of one step of flow, laid out for free-running inference.

Letters: H hidden channels, A attention channels, V value channels, D mel channels, K inputs of a matrix.
"""

import mmap
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LANES = 8
WIDTH = 4 * LANES
GROUP = 32  # inputs that share a scale in int8; step.cpp has the same
DTYPES = (torch.float32, torch.bfloat16, torch.int8)


@dataclass(frozen=True)
class Matrix:
    """A weight (outputs, K) as the kernel reads it.

    panels: (P, K, WIDTH), columns in natural order, but for bfloat16, where j and j + 16 alternate.
    scale: (P, ⌈K / GROUP⌉, WIDTH) what a group of a column of int8 is multiplied by, or None.
    """

    panels: Tensor
    scale: Tensor | None
    inputs: int
    outputs: int

    @property
    def dtype(self) -> torch.dtype:
        """Type of the stored numbers."""
        return self.panels.dtype

    @property
    def n_bytes(self) -> int:
        """Bytes of the numbers and of their scales."""
        return sum(x.numel() * x.element_size() for x in (self.panels, self.scale) if x is not None)

    def dense(self) -> Tensor:
        """Return the weight (outputs, K) in float32, with what rounding left of it."""
        panels = self.panels
        if self.dtype == torch.bfloat16:
            panels = panels.view(-1, self.inputs, WIDTH // 2, 2).transpose(2, 3)
        plain = panels.reshape(-1, self.inputs, WIDTH).float()
        if self.scale is not None:
            plain = plain * self.scale.repeat_interleave(GROUP, 1)[:, : self.inputs]
        return plain.transpose(1, 2).reshape(-1, self.inputs)[: self.outputs]


def _in_huge_pages(x: Tensor) -> Tensor:
    """Copy x to memory whose pages are large where the system has such: reading all weights a frame misses fewer."""
    if not hasattr(mmap, "MADV_HUGEPAGE") or x.numel() * x.element_size() < 1 << 21:
        return x.contiguous()
    memory = mmap.mmap(-1, x.numel() * x.element_size())
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=x.dtype).view(x.shape).copy_(x)


def pack(weight: Tensor, dtype: torch.dtype) -> Matrix:
    """Lay out a weight (outputs, K) in panels; int8 gets one scale for every output and `GROUP` inputs."""
    outputs, inputs = weight.shape
    weight = functional.pad(weight.detach().float(), (0, 0, 0, -outputs % WIDTH))
    panels = weight.view(-1, WIDTH, inputs).transpose(1, 2)
    scale = None
    if dtype == torch.int8:
        groups = functional.pad(panels, (0, 0, 0, -inputs % GROUP)).unflatten(1, (-1, GROUP))
        scale = (groups.abs().amax(2).clamp(min=1e-30) / 127).contiguous()
        panels = (panels / scale.repeat_interleave(GROUP, 1)[:, :inputs]).round()
    panels = panels.to(dtype)
    if dtype == torch.bfloat16:
        panels = panels.reshape(-1, inputs, 2, WIDTH // 2).transpose(2, 3)
    return Matrix(_in_huge_pages(panels.reshape(-1, inputs, WIDTH)), scale, inputs, outputs)


def by_unit(x: Tensor) -> Tensor:
    """Reorder the first dimension (4H) from gate by gate to four gates of eight units at a time."""
    return x.view(4, -1, LANES, *x.shape[1:]).transpose(0, 1).reshape(x.shape)


def by_gate(x: Tensor) -> Tensor:
    """Undo `by_unit`."""
    return x.view(-1, 4, LANES, *x.shape[1:]).transpose(0, 1).reshape(x.shape)


@dataclass(frozen=True)
class Layer:
    """One LSTM layer, 4H outputs by unit: inputs from below (K), context (V; None but in the first), recurrent (H)."""

    below: Matrix
    context: Matrix | None
    recurrent: Matrix
    bias: Tensor


@dataclass(frozen=True)
class StepWeights:
    """What one step of flow computes a frame with. Build it with `from_conditioner`, once per model and dtype.

    query: (A, H). score: (A,). gate: (H + V,) and its bias (1,), or None. Dense and output layers with biases.
    """

    attention_lstm: Layer
    lstm: tuple[Layer, ...]
    query: Matrix
    dense: tuple[Matrix, Matrix]
    output: Matrix
    biases: tuple[Tensor, Tensor, Tensor]
    score: Tensor
    gate: tuple[Tensor, Tensor] | None

    @property
    def hidden(self) -> int:
        """Hidden channels H."""
        return self.query.inputs

    @property
    def n_mels(self) -> int:
        """Mel channels D."""
        return self.output.outputs // 2

    @property
    def matrices(self) -> list[Matrix]:
        """All that a frame multiplies by."""
        layers = (self.attention_lstm, *self.lstm)
        inner = [m for layer in layers for m in (layer.below, layer.context, layer.recurrent) if m is not None]
        return [*inner, self.query, *self.dense, self.output]

    @property
    def n_weights(self) -> int:
        """Weights that a frame reads."""
        return sum(matrix.panels.numel() for matrix in self.matrices)

    @property
    def n_bytes(self) -> int:
        """Bytes of weights that a frame reads."""
        return sum(matrix.n_bytes for matrix in self.matrices)

    @staticmethod
    @torch.no_grad()
    def from_conditioner(conditioner: Any, dtype: torch.dtype = torch.float32) -> "StepWeights":
        """Take the weights of a conditioner.

        Args:
            conditioner: `flowtron.model.flow.Conditioner`, without location-sensitive attention, its hidden channels
                a multiple of 8.
            dtype: float32; bfloat16; or int8 with one scale for every output and `GROUP` inputs, the dense layers
                staying bfloat16 and the output layer float32. Sums are float32 always.

        Raises:
            ValueError: another dtype or conditioner.
        """
        if dtype not in DTYPES:
            raise ValueError(f"Weights of dtype {dtype} are not known to the step kernel; use one of {DTYPES}.")
        if conditioner.location is not None or conditioner.attention_lstm.hidden_size % LANES:
            raise ValueError(
                "The step kernel needs attention that is not location-sensitive and hidden channels that are a "
                f"multiple of {LANES}; use the flow's own inverse for this conditioner."
            )
        hidden = conditioner.attention_lstm.hidden_size

        def layer(module: nn.LSTM, index: int) -> Layer:
            w_ih, w_hh, b_ih, b_hh = (
                by_unit(getattr(module, f"{name}_l{index}").detach().float().contiguous())
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            has_context = module is conditioner.lstm and index == 0
            context = pack(w_ih[:, hidden:], dtype) if has_context else None
            below = w_ih[:, :hidden] if has_context else w_ih
            return Layer(pack(below, dtype), context, pack(w_hh, dtype), b_ih + b_hh)

        wider = torch.bfloat16 if dtype == torch.int8 else dtype  # where rounding costs most for its bytes
        outer, attention = [*conditioner.dense, conditioner.output], conditioner.attention
        gate = None
        if conditioner.gate is not None:
            gate = (conditioner.gate.weight[0].detach().float(), conditioner.gate.bias.detach().float())
        return StepWeights(
            layer(conditioner.attention_lstm, 0),
            tuple(layer(conditioner.lstm, i) for i in range(conditioner.lstm.num_layers)),
            pack(attention.query.weight, dtype),
            (pack(outer[0].weight, wider), pack(outer[1].weight, wider)),
            pack(outer[2].weight, torch.float32),
            (outer[0].bias.detach().float(), outer[1].bias.detach().float(), outer[2].bias.detach().float()),
            attention.score.weight[0].detach().float(),
            gate,
        )
