"""Convolutions that many vocoders share: with weight norm as their files store it, or without.

Letters: B batch, C channels, T steps of time.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flowtron.errors import InputError


def normed(weight_v: Tensor, weight_g: Tensor) -> Tensor:
    """Return g · v / ‖v‖, the norm over all but the first dimension (Salimans and Kingma 2016)."""
    dimensions = list(range(1, weight_v.dim()))
    return weight_v * (weight_g / weight_v.square().sum(dimensions, keepdim=True).sqrt())


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with every pair `weight_g`, `weight_v` replaced by the `weight` that they make.

    Raises:
        InputError: a pair is none.
    """
    folded: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith("weight_v"):
            scale = state.get(f"{name[:-1]}g")
            if scale is None or scale.shape != value.shape[:1] + (1,) * (value.dim() - 1):
                raise InputError(f"weight '{name[:-1]}g' is missing or has an odd shape; get the file anew.")
            folded[f"{name[:-2]}"] = normed(value, scale)
        elif not name.endswith("weight_g"):
            folded[name] = value
    return folded


class Conv(nn.Module):
    """One-dimensional convolution, or its transpose, whose weight is stored with weight norm or plain."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        width: int = 1,
        *,
        dilation: int = 1,
        stride: int = 1,
        padding: int | None = None,
        transposed: bool = False,
        weight_norm: bool = True,
    ) -> None:
        """Make the layer.

        Args:
            n_in: input channels.
            n_out: output channels.
            width: taps.
            dilation: steps between taps.
            stride: of the transposed convolution.
            padding: steps on either side; None keeps the length of an odd width.
            transposed: whether it upsamples by its stride.
            weight_norm: whether the weight is stored as `weight_g` and `weight_v`.
        """
        super().__init__()
        self.dilation, self.stride, self.transposed = dilation, stride, transposed
        self.padding = dilation * (width - 1) // 2 if padding is None else padding
        shape = (n_in, n_out, width) if transposed else (n_out, n_in, width)
        weight = torch.empty(shape)
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        if weight_norm:
            self.weight_g = nn.Parameter(weight.square().sum((1, 2), keepdim=True).sqrt())
            self.weight_v = nn.Parameter(weight)
        else:
            self.weight = nn.Parameter(weight)
        bound = 1 / math.sqrt(n_in * width)
        self.bias = nn.Parameter(torch.empty(n_out).uniform_(-bound, bound))
        self.weight_norm = weight_norm

    @property
    def kernel(self) -> Tensor:
        """The weight (n_out, n_in, width), or (n_in, n_out, width) when transposed."""
        return normed(self.weight_v, self.weight_g) if self.weight_norm else self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n_in, T) to (B, n_out, T'), T' = T where stride is 1 and the padding is the usual."""
        if self.transposed:
            return nn.functional.conv_transpose1d(x, self.kernel, self.bias, stride=self.stride, padding=self.padding)
        return nn.functional.conv1d(x, self.kernel, self.bias, padding=self.padding, dilation=self.dilation)
