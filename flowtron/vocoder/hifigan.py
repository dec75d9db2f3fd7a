"""HiFi-GAN's generator, which reads the published weights (Kong, Kim and Bae 2020, arXiv 2010.05646).

Letters: B batch, T_mel frames, C channels, T steps of time.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowtron.vocoder.layers import Conv

SLOPE = 0.1  # of leaky rectifiers between layers
LAST_SLOPE = 0.01  # of the one before the last layer, torch's default


class ResidualBlock(nn.Module):
    """Dilated convolutions with residuals: each followed by an undilated one in the first kind, alone in the second."""

    def __init__(self, kind: str, n_channels: int, width: int, dilations: Sequence[int], weight_norm: bool) -> None:
        super().__init__()
        dilated = nn.ModuleList(
            Conv(n_channels, n_channels, width, dilation=d, weight_norm=weight_norm) for d in dilations
        )
        if kind == "1":
            self.convs1 = dilated
            self.convs2 = nn.ModuleList(Conv(n_channels, n_channels, width, weight_norm=weight_norm) for _ in dilations)
        else:
            self.convs = dilated
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T) to the same shape."""
        if self.kind == "1":
            for first, second in zip(self.convs1, self.convs2):
                y = first(nn.functional.leaky_relu(x, SLOPE))
                x = x + second(nn.functional.leaky_relu(y, SLOPE))
            return x
        for conv in self.convs:
            x = x + conv(nn.functional.leaky_relu(x, SLOPE))
        return x


class HifiGan(nn.Module):
    """The generator with the architecture of its config."""

    def __init__(
        self,
        resblock: str = "1",
        upsample_rates: Sequence[int] = (8, 8, 2, 2),
        upsample_kernel_sizes: Sequence[int] = (16, 16, 4, 4),
        upsample_initial_channel: int = 512,
        resblock_kernel_sizes: Sequence[int] = (3, 7, 11),
        resblock_dilation_sizes: Sequence[Sequence[int]] = ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
        num_mels: int = 80,
        weight_norm: bool = True,
    ) -> None:
        """Make the generator; the names of the arguments are the published config's, the defaults its V1.

        Args:
            resblock: kind of the residual blocks, "1" or "2".
            upsample_rates: factor of each upsampling.
            upsample_kernel_sizes: taps of each.
            upsample_initial_channel: channels before the first; each halves them.
            resblock_kernel_sizes: taps of the blocks whose mean follows each upsampling.
            resblock_dilation_sizes: dilations within each of them.
            num_mels: channels of the mel.
            weight_norm: whether weights are stored with weight norm.
        """
        super().__init__()
        self.hop_length = math.prod(upsample_rates)
        self.n_kinds = len(resblock_kernel_sizes)
        channels = upsample_initial_channel
        self.conv_pre = Conv(num_mels, channels, 7, weight_norm=weight_norm)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        # How far each output step sees, in steps of its own rate, and then in frames.
        reach, scale = 3.0, 1
        for rate, kernel in zip(upsample_rates, upsample_kernel_sizes):
            padding = (kernel - rate) // 2
            up = Conv(
                channels, channels // 2, kernel, stride=rate, padding=padding, transposed=True, weight_norm=weight_norm
            )
            self.ups.append(up)
            channels, scale = channels // 2, scale * rate
            widest = 0
            for width, dilations in zip(resblock_kernel_sizes, resblock_dilation_sizes):
                self.resblocks.append(ResidualBlock(resblock, channels, width, dilations, weight_norm))
                seen = sum(d + (resblock == "1") for d in dilations) * (width // 2)
                widest = max(widest, seen)
            reach += (kernel + widest) / scale
        self.conv_post = Conv(channels, 1, 7, weight_norm=weight_norm)
        self.context_frames = math.ceil(reach + 3 / scale)

    def forward(self, mel: Tensor) -> Tensor:
        """Turn a mel (B, num_mels, T_mel) into sound (B, T_mel · hop_length) in [-1, 1]."""
        x = self.conv_pre(mel)
        for i, up in enumerate(self.ups):
            x = up(nn.functional.leaky_relu(x, SLOPE))
            blocks = self.resblocks[i * self.n_kinds : (i + 1) * self.n_kinds]
            x = torch.stack([block(x) for block in blocks]).mean(0)
        return self.conv_post(nn.functional.leaky_relu(x, LAST_SLOPE)).tanh()[:, 0]
