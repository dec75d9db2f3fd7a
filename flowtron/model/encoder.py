"""Text and mel encoders: convolutions with masked instance norm, then a bidirectional LSTM.

Letters: B batch, T positions (tokens or frames), C channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowtron.kernels.lstm import lstm


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Return (B, size) booleans, true at positions below each length (B,)."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def stack_padded(parts: Sequence[Tensor], size: int) -> Tensor:
    """Stack tensors (T_b, C) to (B, size, C), zero at padding."""
    stacked = parts[0].new_zeros(len(parts), size, parts[0].shape[1])
    for row, part in zip(stacked, parts):
        row[: len(part)] = part
    return stacked


def beside_tokens(speaker: Tensor) -> Tensor:
    """Make vectors of speakers, (B, C) or one for each token (B, T_text, C), broadcast over tokens."""
    return speaker if speaker.dim() == 3 else speaker[:, None]


def reverse_frames(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse the valid frames of x (B, T, ...), lengths (B,); padding stays where it is."""
    position = torch.arange(x.shape[1], device=x.device)
    index = torch.where(position < lengths[:, None], lengths[:, None] - 1 - position, position)
    rows = index + x.shape[1] * torch.arange(len(x), device=x.device)[:, None]
    # Whole rows are copied ten times as fast as `gather` finds number after number.
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(x.shape)


def run_both_ways(module: nn.LSTM, x: Tensor, lengths: Tensor) -> Tensor:
    """Run a bidirectional LSTM over x (B, T, C) without packing.

    Packing makes a GPU wait to tell the lengths, and a CPU take items of unequal lengths frame by frame.
    The way back is a way forth over reversed frames; outputs (B, T, 2 H) are zero at padding.
    """
    (w_ih, w_hh, b_ih, b_hh), back = module.all_weights
    ahead, _ = lstm(x, w_ih, w_hh, b_ih, b_hh)
    w_ih, w_hh, b_ih, b_hh = back
    behind, _ = lstm(reverse_frames(x, lengths), w_ih, w_hh, b_ih, b_hh)
    joined = torch.cat([ahead, reverse_frames(behind, lengths)], 2)
    return joined * length_mask(lengths, x.shape[1])[..., None]


class MaskedInstanceNorm(nn.Module):
    """Instance norm over the valid positions of each item and channel, with learned scale and offset.

    mean = Σ m·x / Σ m, var = Σ m·(x − mean)² / Σ m, y = (x − mean) / √(var + eps) · weight + bias.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Normalise x (B, C, T) where mask (B, T) is true."""
        m = mask[:, None].to(x.dtype)
        count = m.sum(2, keepdim=True)
        mean = (x * m).sum(2, keepdim=True) / count
        variance = ((x - mean) * m).square().sum(2, keepdim=True) / count
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight[:, None] + self.bias[:, None]


class Dropout(nn.Dropout):
    """torch's, which on a CPU draws its mask number by number; here in a fifth of the time."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop numbers of x, and scale the rest, in training."""
        if not self.training or self.p in (0, 1) or x.device.type != "cpu":
            return super().forward(x)
        return x * ((torch.rand_like(x, dtype=torch.float32) >= self.p) * (1 / (1 - self.p))).to(x.dtype)


class ConvEncoder(nn.Module):
    """Convolutions, each with masked instance norm, ReLU and dropout, then a bidirectional LSTM."""

    def __init__(self, in_channels: int, channels: int, n_convs: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * n_convs
        convs = [nn.Conv1d(wide, channels, kernel_size, padding=kernel_size // 2) for wide in widths[:-1]]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(MaskedInstanceNorm(channels) for _ in self.convs)
        self.dropout = Dropout(dropout)
        self.lstm = nn.LSTM(channels, channels // 2, batch_first=True, bidirectional=True)
        for conv in convs:
            nn.init.xavier_uniform_(conv.weight, gain=nn.init.calculate_gain("relu"))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Encode x (B, C_in, T) of the given lengths (B,) to (B, T, C), zero at padding."""
        mask = length_mask(lengths, x.shape[2])
        for conv, norm in zip(self.convs, self.norms):
            x = self.dropout(norm(conv(x * mask[:, None]), mask).relu())
        return run_both_ways(self.lstm, x.transpose(1, 2), lengths)


class TextEncoder(ConvEncoder):
    """Token embedding and three convolutions of width 5 before the LSTM (Tacotron 2's encoder with instance norm)."""

    def __init__(self, n_symbols: int, channels: int, dropout: float = 0.5) -> None:
        super().__init__(channels, channels, n_convs=3, kernel_size=5, dropout=dropout)
        self.embedding = nn.Embedding(n_symbols, channels)

    def forward(self, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """Encode tokens (B, T_text) to (B, T_text, C)."""
        return super().forward(self.embedding(tokens).transpose(1, 2), token_lengths)


class MelEncoder(ConvEncoder):
    """One vector for an utterance: two convolutions of width 3, LSTM, mean over time (the mixture's encoder)."""

    def __init__(self, n_mels: int, channels: int, original_padding: bool = False) -> None:
        super().__init__(n_mels, channels, n_convs=2, kernel_size=3, dropout=0.5)
        self.original_padding = original_padding

    def forward(self, mel: Tensor, mel_lengths: Tensor) -> Tensor:
        """Embed mel (B, n_mels, T_mel) as (B, C).

        The mean is over each utterance's own frames. With `original_padding` it is over the padded length, as the
        original computes it, so that an utterance's embedding shrinks by its share of padding.
        """
        total = super().forward(mel, mel_lengths).sum(1)
        return total / (mel.shape[2] if self.original_padding else mel_lengths[:, None].to(total.dtype))
