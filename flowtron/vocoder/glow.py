"""A normalizing flow between sound and noise, conditioned on mels: what WaveGlow and its light variants share.

Letters: B batch, T_mel frames, T_samples samples, G channels of a group (n_group consecutive samples), T groups,
C channels within a coupling network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class GlowOutput:
    """From sound to noise.

    z: (B, G, T). log_scales: of each flow (B, half its channels, T). log_dets: (n_flows,), of the 1×1 convolutions,
    summed over groups and batch.
    """

    z: Tensor
    log_scales: list[Tensor]
    log_dets: Tensor

    def loss(self, sigma: float = 1.0) -> Tensor:
        """Negative log-likelihood per value without its constant: (Σ z²/2σ² − Σ log s − Σ log|det W|) / values.

        Source: Prenger, Valle and Catanzaro 2018, equation 8.
        """
        log_scale = sum(each.sum() for each in self.log_scales)
        return (self.z.square().sum() / (2 * sigma**2) - log_scale - self.log_dets.sum()) / self.z.numel()


class InvertibleConv(nn.Module):
    """A square matrix that mixes the channels at every step, under the name that published weights give it."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(n_channels, n_channels, 1, bias=False)
        q, _ = torch.linalg.qr(torch.randn(n_channels, n_channels))
        if torch.det(q) < 0:
            q[:, 0] *= -1
        self.conv.weight.data = q[..., None].contiguous()

    @property
    def matrix(self) -> Tensor:
        """The matrix (G, G)."""
        return self.conv.weight[..., 0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mix (B, G, T); return it and B · T · log|det W|."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return self.conv(x), x.shape[0] * x.shape[2] * torch.linalg.slogdet(self.matrix.to(wide))[1]

    def inverse(self, x: Tensor) -> Tensor:
        """Undo the mixing of (B, G, T)."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return torch.linalg.inv(self.matrix.to(wide)).to(x.dtype) @ x


class Glow(nn.Module):
    """Flows of a 1×1 convolution and an affine coupling; every few of them, some channels leave early.

    Subclasses supply `condition` and the coupling networks `WN`, each of which maps half the channels and the
    conditioning to a shift and a log-scale for the other half.
    """

    def __init__(self, widths: Sequence[int], couplings: Sequence[nn.Module], alternating_halves: bool = False) -> None:
        """Take the channels of every flow, in the order from sound to noise, and its coupling network.

        Args:
            widths: channels of each flow.
            couplings: network of each flow.
            alternating_halves: odd flows change the first half of the channels instead of the second, as the first
                published version did.
        """
        super().__init__()
        self.widths = list(widths)
        self.n_group = self.widths[0]
        self.alternating_halves = alternating_halves
        self.convinv = nn.ModuleList(InvertibleConv(width) for width in widths)
        self.WN = nn.ModuleList(couplings)

    @staticmethod
    def early_widths(n_group: int, n_flows: int, every: int, size: int) -> list[int]:
        """Channels of every flow when `size` of them leave before each `every`-th."""
        return [n_group - size * (k // every) for k in range(n_flows)]

    def condition(self, mel: Tensor, n_groups: int) -> Tensor:
        """Bring a mel (B, n_mels, T_mel) to the rate of the groups: (B, n_conditioning, T)."""
        raise NotImplementedError

    def _flips(self, k: int) -> bool:
        return self.alternating_halves and k % 2 == 1

    def group(self, audio: Tensor) -> Tensor:
        """Cut sound (B, T_samples) into groups (B, G, T); what is left over is dropped."""
        n_groups = audio.shape[1] // self.n_group
        return audio[:, : n_groups * self.n_group].unflatten(1, (n_groups, self.n_group)).transpose(1, 2)

    def forward(self, audio: Tensor, mel: Tensor) -> GlowOutput:
        """Turn sound (B, T_samples) with its mel (B, n_mels, T_mel) into noise."""
        x = self.group(audio)
        conditioning = self.condition(mel, x.shape[2])
        left, log_scales, log_dets = [], [], []
        for k, (mix, network) in enumerate(zip(self.convinv, self.WN)):
            if (leaving := x.shape[1] - self.widths[k]) > 0:
                left.append(x[:, :leaving])
                x = x[:, leaving:]
            x, log_det = mix(x)
            kept, changed = x.chunk(2, 1)
            if self._flips(k):
                kept, changed = changed, kept
            shift, log_scale = network(kept, conditioning)
            changed = changed * log_scale.exp() + shift
            x = torch.cat([changed, kept] if self._flips(k) else [kept, changed], 1)
            log_scales.append(log_scale)
            log_dets.append(log_det)
        return GlowOutput(torch.cat([*left, x], 1), log_scales, torch.stack(log_dets))

    def inverse(self, z: Tensor, mel: Tensor) -> Tensor:
        """Turn noise (B, G, T) with a mel (B, n_mels, T_mel) into sound (B, G · T)."""
        conditioning = self.condition(mel, z.shape[2])
        n_left = z.shape[1] - self.widths[-1]
        x = z[:, n_left:]
        for k in reversed(range(len(self.widths))):
            if (joining := self.widths[k] - x.shape[1]) > 0:
                x = torch.cat([z[:, n_left - joining : n_left], x], 1)
                n_left -= joining
            kept, changed = x.chunk(2, 1)
            if self._flips(k):
                kept, changed = changed, kept
            shift, log_scale = self.WN[k](kept, conditioning)
            changed = (changed - shift) * (-log_scale).exp()
            mix = self.convinv[k]
            assert isinstance(mix, InvertibleConv)
            x = mix.inverse(torch.cat([changed, kept] if self._flips(k) else [kept, changed], 1))
        x = torch.cat([z[:, :n_left], x], 1)
        return x.transpose(1, 2).flatten(1)
