"""A causal LSTM layer whose recurrence is one compiled loop, with its gradient.

The products with the inputs and the gradients of the weights are taken over the whole sequence at once; the loop keeps
the recurrent weights packed and fuses the gates. Letters: B batch, T frames, I input channels, H hidden channels.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from flowtron.kernels.build import load_library, pointer, team_size

# Columns of a packed panel of weights, of which H must be a multiple.
PANEL = 16
PRODUCTS_PER_THREAD = 250_000  # of a frame, that outweigh meeting after it: one short sentence gets one thread


class _Layer(torch.autograd.Function):
    """(x (B, T, I), w_ih, w_hh, bias, h0, c0) -> (hidden (B, T, H), last h, last c).

    `dtype` is that of all matrix products, of the hidden states and of what is kept for the backward pass; sums, the
    running cell and its gradient are float32. The weights are converted anew in the backward pass, which takes less
    than keeping them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        bias: Tensor | None,
        h0: Tensor,
        c0: Tensor,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        library = load_library("lstm")
        assert library is not None
        batch, frames, _ = x.shape
        x = x.to(dtype)
        # The kernel adds the bias, and overwrites the projections with the activated gates.
        gates = nn.functional.linear(x, w_ih.to(dtype)).contiguous()
        width = gates.shape[2]
        weight, h0, c0 = w_hh.contiguous(), h0.contiguous(), c0.contiguous()
        hidden = gates.new_empty(batch, frames, width // 4)
        cell, h, c = torch.empty_like(hidden), torch.empty_like(h0), torch.empty_like(c0)
        library.lstm_forward(
            *map(pointer, (gates, bias, weight, h0, c0, hidden, cell, h, c)),
            *map(ctypes.c_int64, (batch, frames, width // 4)),
            *map(ctypes.c_int, (dtype == torch.bfloat16, team_size(batch * w_hh.numel(), PRODUCTS_PER_THREAD))),
        )
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, w_ih, weight, h0, c0, gates, hidden, cell)
        return hidden, h, c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_hidden: Tensor, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:
        library = load_library("lstm")
        assert library is not None
        x, w_ih, weight, h0, c0, gates, hidden, cell = ctx.saved_tensors
        (batch, frames, width), dtype = gates.shape, x.dtype
        grad_hidden = grad_hidden.contiguous()
        grad_h, grad_c = (g.clone(memory_format=torch.contiguous_format) for g in (grad_h, grad_c))
        grad_gates, grad_bias = torch.empty_like(gates), c0.new_zeros(batch, width)
        library.lstm_backward(
            *map(pointer, (gates, cell, c0, weight, grad_hidden, grad_h, grad_c, grad_gates, grad_bias)),
            *map(ctypes.c_int64, (batch, frames, width // 4)),
            *map(ctypes.c_int, (dtype == torch.bfloat16, team_size(batch * weight.numel(), PRODUCTS_PER_THREAD))),
        )
        wanted = ctx.needs_input_grad
        rows = grad_gates.view(-1, width)
        grad_x = (rows @ w_ih.to(dtype)).view(x.shape) if wanted[0] else None
        grad_w_ih = (rows.t() @ x.reshape(-1, x.shape[2])).to(w_ih.dtype) if wanted[1] else None
        grad_w_hh = None
        if wanted[2]:
            before = torch.cat([h0[:, None].to(dtype), hidden[:, :-1]], 1).view(-1, width // 4)
            grad_w_hh = (rows.t() @ before).to(weight.dtype)
        grad_bias = grad_bias.sum(0) if ctx.has_bias and wanted[3] else None
        return grad_x, grad_w_ih, grad_w_hh, grad_bias, grad_h, grad_c, None


def lstm(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    state: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run one LSTM layer over a batch of sequences, as `torch.nn.LSTM(batch_first=True)` does.

    i, f, o = σ(·), g = tanh(·) of W_ih x_t + b_ih + W_hh h_{t−1} + b_hh;  c_t = f c_{t−1} + i g;  h_t = o tanh(c_t).

    Args:
        x: (B, T, I).
        w_ih: (4H, I).
        w_hh: (4H, H).
        b_ih, b_hh: (4H,) or None.
        state: h and c (B, H) before the first frame; zeros when None.

    Returns:
        Hidden states (B, T, H), and h and c (B, H) after the last frame. Under bfloat16 autocast the hidden states are
        bfloat16, h and c float32.
    """
    hidden = w_hh.shape[1]
    autocast = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if autocast and not usable(x, w_hh):
        # oneDNN has no bfloat16 LSTM for processors without that instruction set, and raises.
        with torch.autocast("cpu", enabled=False):
            wide = None if state is None else (state[0].float(), state[1].float())
            return lstm(x.float(), w_ih, w_hh, b_ih, b_hh, wide)
    h0, c0 = (x.new_zeros(x.shape[0], hidden),) * 2 if state is None else state
    if usable(x, w_hh):
        bias = None if b_ih is None or b_hh is None else b_ih + b_hh
        is_half = autocast and torch.get_autocast_dtype("cpu") == torch.bfloat16
        dtype = torch.bfloat16 if is_half else w_hh.dtype
        with torch.autocast("cpu", enabled=False):
            output, h, c = _Layer.apply(x, w_ih, w_hh, bias, h0.float(), c0.float(), dtype)
        return output, (h, c)
    weights = [w for w in (w_ih, w_hh, b_ih, b_hh) if w is not None]
    # cuDNN has a gradient only of what it ran in training mode; without dropout the mode changes nothing else.
    training = torch.is_grad_enabled()
    output, h, c = torch.lstm(
        x, (h0[None].to(x.dtype), c0[None].to(x.dtype)), weights, b_ih is not None, 1, 0.0, training, False, True
    )
    return output, (h[0], c[0])


def usable(x: Tensor, w_hh: Tensor) -> bool:
    """Return whether the compiled loop can run a layer."""
    return (
        x.device.type == "cpu"
        and w_hh.dtype == torch.float32
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.is_autocast_enabled("cpu")))
        and x.numel() > 0
        and w_hh.shape[1] % PANEL == 0
        and load_library("lstm") is not None
    )


class LSTM(nn.LSTM):
    """`torch.nn.LSTM(batch_first=True)`, one direction, with the compiled loop where it can be had.

    Weights, names, initial values and results are the same; packed sequences go torch's way.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, batch_first: bool = True) -> None:
        if not batch_first:
            raise ValueError("This LSTM takes (B, T, I); use torch.nn.LSTM for frames first.")
        super().__init__(input_size, hidden_size, num_layers, batch_first=True)

    def forward(self, x: Any, state: tuple[Tensor, Tensor] | None = None) -> Any:
        """Run x (B, T, I) from state h, c (num_layers, B, H); return hidden states (B, T, H) and the last state."""
        if not (isinstance(x, Tensor) and x.dim() == 3 and usable(x, self.all_weights[0][1])):
            return super().forward(x, state)
        finals = []
        for layer, (w_ih, w_hh, b_ih, b_hh) in enumerate(self.all_weights):
            x, final = lstm(x, w_ih, w_hh, b_ih, b_hh, None if state is None else (state[0][layer], state[1][layer]))
            finals.append(final)
        h, c = (torch.stack(parts) for parts in zip(*finals))
        return x, (h, c)
