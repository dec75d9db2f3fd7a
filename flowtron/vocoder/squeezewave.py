"""A light WaveGlow in the manner of SqueezeWave (Zhai et al. 2020, arXiv 2001.05685): long groups, separable layers.

With 128 samples a group there are two groups a frame, so the conditioning is computed at the mel's rate and repeated.
Letters: B batch, T_mel frames, T groups, G samples a group, C channels of a coupling network, L its layers.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flowtron.vocoder.glow import Glow


class SeparableLayer(nn.Module):
    """Depthwise convolution over time, normalised by batch, then a pointwise one; gated; added to the input."""

    def __init__(self, n_channels: int, kernel_size: int, batch_norm: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(n_channels, n_channels, kernel_size, padding=kernel_size // 2, groups=n_channels)
        self.norm = nn.BatchNorm1d(n_channels) if batch_norm else nn.Identity()
        self.pointwise = nn.Conv1d(n_channels, 2 * n_channels, 1)
        self.residual = nn.Conv1d(n_channels, n_channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map (B, C, T) with its conditioning (B, 2C, T) to (B, C, T)."""
        filtered, gate = (self.pointwise(self.norm(self.depthwise(x))) + condition).chunk(2, 1)
        return x + self.residual(filtered.tanh() * gate.sigmoid())


class SeparableNet(nn.Module):
    """Coupling network of separable layers, conditioned at the mel's rate."""

    def __init__(
        self,
        n_half: int,
        n_mels: int,
        repeats: int,
        n_layers: int,
        n_channels: int,
        kernel_size: int,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        self.repeats = repeats
        self.start = nn.Conv1d(n_half, n_channels, 1)
        self.cond_layer = nn.Conv1d(n_mels, 2 * n_channels * n_layers, 1)
        self.layers = nn.ModuleList(SeparableLayer(n_channels, kernel_size, batch_norm) for _ in range(n_layers))
        self.end = nn.Conv1d(n_channels, 2 * n_half, 1)
        for parameter in self.end.parameters():
            nn.init.zeros_(parameter)

    def forward(self, kept: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, n_half, T) and the mel (B, n_mels, T_mel) to shift and log-scale (B, n_half, T)."""
        x = self.start(kept)
        conditions = self.cond_layer(mel).repeat_interleave(self.repeats, 2)[..., : x.shape[2]]
        for layer, condition in zip(self.layers, conditions.chunk(len(self.layers), 1)):
            x = layer(x, condition)
        shift, log_scale = self.end(x).chunk(2, 1)
        return shift, log_scale


class SqueezeWave(Glow):
    """The light flow with the architecture of its config."""

    def __init__(
        self,
        n_mel_channels: int = 80,
        n_flows: int = 12,
        n_group: int = 128,
        n_early_every: int = 2,
        n_early_size: int = 16,
        WN_config: Mapping[str, int] | None = None,
        hop_length: int = 256,
        batch_norm: bool = True,
    ) -> None:
        """Make the flows; arguments are those of WaveGlow, with long groups.

        Args:
            n_mel_channels: channels of the mel.
            n_flows: flows.
            n_group: samples that are taken together as channels; it divides hop_length.
            n_early_every: flows between early outputs.
            n_early_size: channels that leave at each.
            WN_config: n_layers, n_channels and kernel_size of the coupling networks.
            hop_length: samples a frame.
            batch_norm: whether layers have batch norm; `fold_batch_norm` takes it out.
        """
        network = {"n_layers": 8, "n_channels": 128, "kernel_size": 3, **(WN_config or {})}
        widths = self.early_widths(n_group, n_flows, n_early_every, n_early_size)
        repeats = hop_length // n_group
        couplings = [
            SeparableNet(width // 2, n_mel_channels, repeats, batch_norm=batch_norm, **network) for width in widths
        ]
        super().__init__(widths, couplings)
        self.repeats = repeats
        self.context_frames = -(-n_flows * network["n_layers"] * (network["kernel_size"] // 2) // repeats)

    def condition(self, mel: Tensor, n_groups: int) -> Tensor:
        """Return the mel as it is: its layers are computed at its own rate."""
        return mel


def fold_batch_norm(state: Mapping[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """Return the weights of a SqueezeWave without batch norm that equals the given one in evaluation mode."""
    folded = {name: value for name, value in state.items() if ".norm." not in name}
    for name in state:
        if name.endswith(".norm.weight"):
            layer = name.removesuffix(".norm.weight")
            variance, mean, shift = (state[f"{layer}.norm.{part}"] for part in ("running_var", "running_mean", "bias"))
            gain = state[name] / torch.sqrt(variance + eps)
            folded[f"{layer}.depthwise.weight"] = state[f"{layer}.depthwise.weight"] * gain[:, None, None]
            folded[f"{layer}.depthwise.bias"] = (state[f"{layer}.depthwise.bias"] - mean) * gain + shift
    return folded
