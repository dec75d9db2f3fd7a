"""A companion of the flows that knows which frame speaks which token: aligner, hard path, durations, path prior.

The flows' own attention learns slowly, because earlier frames explain the next one so well. The aligner has no such
shortcut: it compares mel frames with tokens and is trained by the forward-sum (CTC) likelihood alone. Its best
monotonic path gives durations; the flows attend under a prior around the path, in training around the aligned one and
in synthesis around the one of predicted durations, so that both see the same thing.

Letters: B batch, T_mel frames, T_text tokens, D mel channels, A aligner channels.
Source: alignment by forward-sum over distances, Badlani et al. 2021 (arXiv 2108.10447); monotonic path by dynamic
programming, Kim et al. 2020 (arXiv 2005.11129).
"""

import torch
from torch import Tensor, nn

from flowtron.model.encoder import ConvEncoder, beside_tokens, length_mask


class Aligner(nn.Module):
    """Soft alignment from distances between encoded mel frames and encoded tokens."""

    def __init__(self, n_symbols: int, n_speakers: int, n_mels: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_symbols, channels)
        self.speaker_embedding = nn.Embedding(n_speakers, channels)
        nn.init.normal_(self.speaker_embedding.weight, std=0.1)
        self.token_convs = nn.Sequential(
            nn.Conv1d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.Conv1d(2 * channels, channels, 1)
        )
        self.mel_convs = nn.Sequential(
            nn.Conv1d(n_mels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(2 * channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 1),
        )
        self.log_sharpness = nn.Parameter(torch.tensor(-2.0))

    def forward(
        self,
        mel: Tensor,
        mel_lengths: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        speaker_id: Tensor,
        prior: Tensor | None = None,
    ) -> Tensor:
        """Return log probabilities (B, T_mel, T_text) of the token that each frame speaks, very low at padding.

        Args:
            mel: (B, D, T_mel). mel_lengths, token_lengths, speaker_id: (B,). tokens: (B, T_text).
            prior: (B, T_mel, T_text) multiplied in, not renormalised.
        """
        token_mask = length_mask(token_lengths, tokens.shape[1])
        mel_mask = length_mask(mel_lengths, mel.shape[2])
        named = self.embedding(tokens) + self.speaker_embedding(speaker_id)[:, None]
        keys = self.token_convs(named.transpose(1, 2) * token_mask[:, None])
        # Log mels lie around -5; the offset brings them near zero, where the convolutions start well.
        queries = mel + 5.0
        for layer in self.mel_convs:
            # Padding is silenced before every convolution, so that batch-mates change nothing.
            queries = layer(queries * mel_mask[:, None])
        keys, queries = keys.float(), queries.float()
        distance = queries.square().sum(1)[:, :, None] + keys.square().sum(1)[:, None]
        # Autocast would round the product, of which a small difference is taken.
        with torch.autocast(keys.device.type, enabled=False):
            distance = distance - 2 * queries.transpose(1, 2) @ keys
        energy = (-self.log_sharpness.exp() * distance).masked_fill(~token_mask[:, None], -1e4)
        log_prob = energy.log_softmax(2)
        if prior is not None:
            log_prob = log_prob + (prior + 1e-8).log()
        return log_prob.masked_fill(~token_mask[:, None], -1e4)


# A predictor that had little to learn from knows little of some tokens, and the mean of a wide log-normal distribution
# runs away from its median: of a token of 9 frames, with a deviation of 2.7, to 400.
MAX_STD = 1.0


class DurationPredictor(nn.Module):
    """Mean and standard deviation of the log duration of every token, given text and speaker."""

    def __init__(self, n_symbols: int, n_speakers: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_symbols, channels)
        self.speaker_embedding = nn.Embedding(n_speakers, channels)
        self.encoder = ConvEncoder(channels, channels, n_convs=2, kernel_size=5, dropout=0.2)
        self.output = nn.Linear(channels, 2)

    def forward(self, tokens: Tensor, token_lengths: Tensor, speaker_id: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation (B, T_text) of log(frames) for tokens (B, T_text)."""
        named = self.embedding(tokens) + beside_tokens(self.speaker_embedding(speaker_id))
        mean, log_std = self.output(self.encoder(named.transpose(1, 2), token_lengths)).unbind(2)
        return mean + 1.0, log_std.clamp(-4.0, 1.0)

    def loss(self, tokens: Tensor, token_lengths: Tensor, speaker_id: Tensor, durations: Tensor) -> Tensor:
        """Negative log-likelihood of durations (B, T_text) in frames, mean over tokens."""
        mean, log_std = self(tokens, token_lengths, speaker_id)
        mask = length_mask(token_lengths, tokens.shape[1])
        error = (durations.clamp(min=1).log() - mean) * (-log_std).exp()
        return ((0.5 * error.square() + log_std) * mask).sum() / mask.sum()

    def sample(
        self,
        tokens: Tensor,
        token_lengths: Tensor,
        speaker_id: Tensor,
        noise: Tensor | None = None,
        sigma: float = 1.0,
        rate: float = 1.0,
    ) -> Tensor:
        """Return durations (B, T_text) in whole frames, at least 1 at tokens and 0 at padding.

        Args:
            noise: (B, T_text) of N(0, 1); None takes the expected duration.
            sigma: scales the noise; whatever it is, the expected duration is the same, and so the speaking rate.
                Standard deviations count for MAX_STD at most.
            rate: speaking rate; 2 halves every duration.
        """
        mean, log_std = self(tokens, token_lengths, speaker_id)
        std = log_std.exp().clamp(max=MAX_STD)
        if noise is None:
            noise, sigma = torch.zeros_like(std), 0.0
        # E[exp(m + s sigma noise)] = exp(m + (s sigma)² / 2)
        log_duration = mean + std * sigma * noise + 0.5 * std.square() * (1 - sigma**2)
        exact = log_duration.exp() / rate
        mask = length_mask(token_lengths, tokens.shape[1])
        # Rounding the ends, not the durations, keeps the sum right.
        ends = (exact.clamp(min=1.0) * mask).cumsum(1).round()
        return torch.diff(ends, prepend=ends.new_zeros(ends.shape[0], 1)).clamp(min=1).long() * mask


@torch.no_grad()
def monotonic_durations(log_prob: Tensor, mel_lengths: Tensor, token_lengths: Tensor) -> Tensor:
    """Durations (B, T_text) in frames of the most probable monotonic path that visits every token.

    Q[t, n] = log_prob[t, n] + max(Q[t−1, n], Q[t−1, n−1]), from (0, 0) to the last frame and token. Where there are
    fewer frames than tokens no such path exists, and the frames go to the first tokens.

    Args:
        log_prob: (B, T_mel, T_text). mel_lengths, token_lengths: (B,).
    """
    B, T_mel, T_text = log_prob.shape
    log_prob = log_prob.detach().float()
    low = torch.finfo(torch.float32).min / 2
    best = log_prob.new_full((B, T_text), low)
    best[:, 0] = log_prob[:, 0, 0]
    moved = torch.zeros(B, T_mel, T_text, dtype=torch.bool, device=log_prob.device)
    for t in range(1, T_mel):
        from_left = torch.nn.functional.pad(best[:, :-1], (1, 0), value=low)
        moved[:, t] = from_left > best
        best = torch.maximum(from_left, best) + log_prob[:, t]
    token = token_lengths - 1
    durations = torch.zeros(B, T_text, dtype=torch.long, device=log_prob.device)
    item = torch.arange(B, device=log_prob.device)
    for t in range(T_mel - 1, -1, -1):
        inside = t < mel_lengths
        durations[item, token] += inside
        token = token - (inside & moved[item, t, token]).long()
    return durations


def path_prior(durations: Tensor, n_frames: int, width: float) -> Tensor:
    """Prior (B, T_mel, T_text) around the path of durations (B, T_text): exp(−gap² / 2 width²).

    The gap is the distance, in frames, from a frame's centre to the stretch of a token: 0 within it.
    """
    ends = durations.cumsum(1)[:, None].float()
    starts = ends - durations[:, None]
    centre = torch.arange(n_frames, device=durations.device)[None, :, None] + 0.5
    gap = (starts - centre).clamp(min=0) + (centre - ends).clamp(min=0)
    return (-gap.square() / (2 * width**2)).exp()
