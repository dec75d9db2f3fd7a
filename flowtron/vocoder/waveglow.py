"""WaveGlow: sound from noise by a flow over groups of samples (Prenger, Valle and Catanzaro 2018, arXiv 1811.00002).

Weights have the names of the published files. Letters: B batch, T_mel frames, T groups, G samples a group, C channels
of a coupling network, L its layers.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flowtron.vocoder.glow import Glow
from flowtron.vocoder.layers import Conv


class CouplingNet(nn.Module):
    """Dilated, gated convolutions as in WaveNet, but not causal: half the channels to shift and log-scale."""

    def __init__(
        self, n_half: int, n_conditioning: int, n_layers: int, n_channels: int, kernel_size: int, weight_norm: bool
    ) -> None:
        super().__init__()
        self.n_layers, self.n_channels = n_layers, n_channels
        self.start = Conv(n_half, n_channels, weight_norm=weight_norm)
        self.cond_layer = Conv(n_conditioning, 2 * n_channels * n_layers, weight_norm=weight_norm)
        self.in_layers = nn.ModuleList(
            Conv(n_channels, 2 * n_channels, kernel_size, dilation=2**i, weight_norm=weight_norm)
            for i in range(n_layers)
        )
        self.res_skip_layers = nn.ModuleList(
            Conv(n_channels, (2 if i < n_layers - 1 else 1) * n_channels, weight_norm=weight_norm)
            for i in range(n_layers)
        )
        # Zero at first, so that every flow starts as the identity.
        self.end = nn.Conv1d(n_channels, 2 * n_half, 1)
        for parameter in self.end.parameters():
            nn.init.zeros_(parameter)

    def forward(self, kept: Tensor, conditioning: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, n_half, T) and the conditioning (B, n_conditioning, T) to shift and log-scale (B, n_half, T)."""
        x = self.start(kept)
        conditions = self.cond_layer(conditioning).chunk(self.n_layers, 1)
        skipped = torch.zeros_like(x)
        for in_layer, res_skip_layer, condition in zip(self.in_layers, self.res_skip_layers, conditions):
            filtered, gate = (in_layer(x) + condition).chunk(2, 1)
            y = res_skip_layer(filtered.tanh() * gate.sigmoid())
            if y.shape[1] > self.n_channels:
                x = x + y[:, : self.n_channels]
            skipped = skipped + y[:, -self.n_channels :]
        shift, log_scale = self.end(skipped).chunk(2, 1)
        return shift, log_scale


class WaveGlow(Glow):
    """WaveGlow with the architecture of its config."""

    def __init__(
        self,
        n_mel_channels: int = 80,
        n_flows: int = 12,
        n_group: int = 8,
        n_early_every: int = 4,
        n_early_size: int = 2,
        WN_config: Mapping[str, int] | None = None,
        upsample_kernel: int = 1024,
        upsample_stride: int = 256,
        weight_norm: bool = True,
        alternating_halves: bool = False,
    ) -> None:
        """Make the flows; the names of the arguments are the original's.

        Args:
            n_mel_channels: channels of the mel.
            n_flows: flows.
            n_group: samples that are taken together as channels.
            n_early_every: flows between early outputs.
            n_early_size: channels that leave at each.
            WN_config: n_layers, n_channels and kernel_size of the coupling networks.
            upsample_kernel: taps of the upsampling of mels.
            upsample_stride: samples a frame.
            weight_norm: whether weights are stored with weight norm.
            alternating_halves: as in the first published version.
        """
        network = {"n_layers": 8, "n_channels": 256, "kernel_size": 3, **(WN_config or {})}
        widths = self.early_widths(n_group, n_flows, n_early_every, n_early_size)
        couplings = [
            CouplingNet(width // 2, n_mel_channels * n_group, weight_norm=weight_norm, **network) for width in widths
        ]
        super().__init__(widths, couplings, alternating_halves)
        self.stride = upsample_stride
        self.upsample = nn.ConvTranspose1d(n_mel_channels, n_mel_channels, upsample_kernel, stride=upsample_stride)

    def condition(self, mel: Tensor, n_groups: int) -> Tensor:
        """Upsample a mel to samples, and group them: (B, n_mels · G, T), a mel channel's G samples side by side."""
        upsampled = self.upsample(mel)[..., : n_groups * self.n_group]
        return upsampled.unflatten(2, (n_groups, self.n_group)).transpose(2, 3).flatten(1, 2)
