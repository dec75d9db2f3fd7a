"""Tacotron 2, the baseline that Flowtron is compared with: deterministic frames, variation by pre-net dropout alone.

Its text encoder is Flowtron's with batch norm in place of instance norm, under the same names, so that either can start
from the other's; a speaker stands beside every encoded token, as in Flowtron.

Letters: B batch, T_mel frames, S decoder steps of r frames each, T_text tokens, D mel channels, C channels of the
encoded text with the speaker, A attention channels, H hidden channels.
Source: Shen et al. 2017 (arXiv 1712.05884), with dropout on the LSTMs' states in place of zoneout and the previous
beside the cumulative attention, as in the published PyTorch implementation, whose weights fit. Several frames a step:
Wang et al. 2017 (arXiv 1703.10135).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowtron.config import ModelConfig
from flowtron.errors import InputError
from flowtron.model.attention import AttentionWindow, WindowWalk
from flowtron.model.encoder import TextEncoder, length_mask

PRENET_DROPOUT = 0.5
STATE_DROPOUT = 0.1
POSTNET_DROPOUT = 0.5


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm over valid positions only, so that padding changes nothing."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Normalise x (B, C, T) where mask (B, T) is true."""
        if not self.training:
            return super().forward(x)
        m = mask[:, None].to(x.dtype)
        count = m.sum()
        mean = (x * m).sum((0, 2)) / count
        variance = ((x - mean[:, None]) * m).square().sum((0, 2)) / count
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        normal = (x - mean[:, None]) * torch.rsqrt(variance + self.eps)[:, None]
        return normal * self.weight[:, None] + self.bias[:, None]


class BatchNormTextEncoder(TextEncoder):
    """Flowtron's text encoder with batch norm; the same names of weights."""

    def __init__(self, n_symbols: int, channels: int, dropout: float = 0.5) -> None:
        super().__init__(n_symbols, channels, dropout)
        self.norms = nn.ModuleList(MaskedBatchNorm(channels) for _ in self.convs)
        bound = math.sqrt(3.0) * math.sqrt(2.0 / (n_symbols + channels))
        nn.init.uniform_(self.embedding.weight, -bound, bound)


class LocationSensitiveAttention(nn.Module):
    """e_n = scoreᵀ tanh(W_q query + W_k encoded_n + W_f (F * [previous; cumulative])_n), softmax over the text.

    F are convolutions along the text of the weights so far. The context is the mean of the encoded text itself.
    Source: Chorowski et al. 2015 (arXiv 1506.07503), equation 9.
    """

    def __init__(self, query_dim: int, encoded_dim: int, channels: int, n_filters: int, kernel_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_dim, channels, bias=False)
        self.key = nn.Linear(encoded_dim, channels, bias=False)
        self.filters = nn.Conv1d(2, n_filters, kernel_size, padding=kernel_size // 2, bias=False)
        self.location = nn.Linear(n_filters, channels, bias=False)
        self.score = nn.Linear(channels, 1, bias=False)
        for layer in (self.query, self.key, self.location):
            nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain("tanh"))

    def forward(
        self,
        query: Tensor,
        keys: Tensor,
        encoded: Tensor,
        allowed: Tensor,
        location: Tensor,
        prior: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend at one step.

        Args:
            query: (B, query_dim). keys: (B, T_text, A), projections of encoded (B, T_text, C).
            allowed: (B, T_text), true at tokens that may be attended to.
            location: (B, 2, T_text), weights of the previous step and summed over all before.
            prior: (B, T_text) weights multiplied into the attention, which is then renormalised.

        Returns:
            Context (B, C) and weights (B, T_text).
        """
        where = self.location(self.filters(location).transpose(1, 2))
        energy = self.score(torch.tanh(self.query(query)[:, None] + keys + where))[..., 0]
        if prior is not None:
            energy = energy + (prior + 1e-20).log()
        attention = energy.masked_fill(~allowed, -torch.inf).softmax(1)
        return (attention[:, None] @ encoded)[:, 0], attention


class Prenet(nn.Module):
    """Two bias-free layers with ReLU and dropout, which is on in synthesis too: the only source of variation."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(in_channels, channels, bias=False), nn.Linear(channels, channels, bias=False)]
        )

    def masks(self, shape: Sequence[int], dropout: float, generator: torch.Generator | None = None) -> list[Tensor]:
        """Draw what the outputs of the layers are multiplied with: 0, or 1 / (1 − dropout), which keeps their mean.

        Returns:
            (*shape, channels) for each layer.

        Raises:
            InputError: the dropout is no share below 1.
        """
        if not 0 <= dropout < 1:
            raise InputError(f"prenet_dropout is {dropout}, but it is a share; give at least 0 and less than 1.")
        weight = self.layers[0].weight
        assert isinstance(weight, Tensor)
        size = (*shape, len(weight))
        # Drawn on the CPU, so that a seed means the same everywhere.
        kept = [torch.rand(size, generator=generator) >= dropout for _ in self.layers]
        return [mask.to(weight) / (1 - dropout) for mask in kept]

    def forward(self, frames: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Map frames (..., in_channels) to (..., channels)."""
        for layer, mask in zip(self.layers, masks):
            frames = layer(frames).relu() * mask
        return frames


class Postnet(nn.Module):
    """Five convolutions along time, with batch norm, tanh but for the last, and dropout."""

    def __init__(self, n_mels: int, channels: int, kernel_size: int = 5, n_convs: int = 5) -> None:
        super().__init__()
        widths = [n_mels, *[channels] * (n_convs - 1), n_mels]
        convs = [nn.Conv1d(a, b, kernel_size, padding=kernel_size // 2) for a, b in pairwise(widths)]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(MaskedBatchNorm(width) for width in widths[1:])
        for k, conv in enumerate(convs):
            gain = nn.init.calculate_gain("tanh" if k < n_convs - 1 else "linear")
            nn.init.xavier_uniform_(conv.weight, gain=gain)

    def forward(self, mel: Tensor, mask: Tensor) -> Tensor:
        """Return what to add to mel (B, D, T_mel), valid where mask (B, T_mel) is true."""
        x = mel
        last = len(self.convs) - 1
        for k, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            x = norm(conv(x * mask[:, None]), mask)
            x = F.dropout(x.tanh() if k < last else x, POSTNET_DROPOUT, self.training)
        return x * mask[:, None]


class DecoderState(NamedTuple):
    """Recurrent state: hidden and cell (B, H) of both LSTMs, context (B, C), weights (B, 2, T_text)."""

    attention_lstm: tuple[Tensor, Tensor]
    decoder_lstm: tuple[Tensor, Tensor]
    context: Tensor
    location: Tensor


class Tacotron2Output(NamedTuple):
    """Frames of teacher forcing or of synthesis.

    mel_before, mel: (B, D, T_mel) without and with the post-net, zero at padding. gate_logits: (B, S).
    step_attention: (B, S, T_text). mel_lengths: (B,) frames. frames_per_step: r.
    """

    mel_before: Tensor
    mel: Tensor
    gate_logits: Tensor
    step_attention: Tensor
    mel_lengths: Tensor
    frames_per_step: int = 1

    @property
    def attention(self) -> list[Tensor]:
        """Attention (B, T_mel, T_text) of every frame, as the one of a model of one step of flow."""
        frames = self.step_attention.repeat_interleave(self.frames_per_step, 1)[:, : self.mel.shape[2]]
        return [frames * length_mask(self.mel_lengths, frames.shape[1])[..., None]]


class Tacotron2(nn.Module):
    """Text to mel, step by step, with location-sensitive attention."""

    def __init__(
        self,
        text_encoder: BatchNormTextEncoder,
        speaker_embedding: nn.Embedding | None,
        n_mels: int,
        hidden: int = 1024,
        attention_dim: int = 128,
        prenet_dim: int = 256,
        postnet_dim: int = 512,
        n_location_filters: int = 32,
        location_kernel_size: int = 31,
        frames_per_step: int = 1,
        mel_mean: float = 0.0,
        mel_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.speaker_embedding = speaker_embedding
        encoded_dim = text_encoder.embedding.embedding_dim
        encoded_dim += 0 if speaker_embedding is None else speaker_embedding.embedding_dim
        self.n_mels, self.hidden, self.frames_per_step = n_mels, hidden, frames_per_step
        self.mel_mean, self.mel_std = mel_mean, mel_std
        self.prenet = Prenet(n_mels * frames_per_step, prenet_dim)
        self.attention_lstm = nn.LSTMCell(prenet_dim + encoded_dim, hidden)
        self.attention = LocationSensitiveAttention(
            hidden, encoded_dim, attention_dim, n_location_filters, location_kernel_size
        )
        self.decoder_lstm = nn.LSTMCell(hidden + encoded_dim, hidden)
        self.projection = nn.Linear(hidden + encoded_dim, n_mels * frames_per_step)
        self.gate = nn.Linear(hidden + encoded_dim, 1)
        self.postnet = Postnet(n_mels, postnet_dim)

    @property
    def n_speakers(self) -> int:
        """Rows of the speaker table."""
        return 1 if self.speaker_embedding is None else self.speaker_embedding.num_embeddings

    def encode(self, tokens: Tensor, token_lengths: Tensor, speaker_id: Tensor) -> Tensor:
        """Encode tokens (B, T_text) of speakers (B,) to (B, T_text, C)."""
        encoded: Tensor = self.text_encoder(tokens, token_lengths)
        if self.speaker_embedding is None:
            return encoded
        speaker = self.speaker_embedding(speaker_id).to(encoded.dtype)
        return torch.cat([encoded, speaker[:, None].expand(-1, tokens.shape[1], -1)], 2)

    def start(self, encoded: Tensor) -> DecoderState:
        """State before the first step, for encoded text (B, T_text, C)."""
        B, T_text, C = encoded.shape
        hidden = encoded.new_zeros(B, self.hidden)
        return DecoderState(
            (hidden, hidden), (hidden, hidden), encoded.new_zeros(B, C), encoded.new_zeros(B, 2, T_text)
        )

    def step(
        self,
        seen: Tensor,
        state: DecoderState,
        encoded: Tensor,
        keys: Tensor,
        allowed: Tensor,
        prior: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, DecoderState]:
        """Decode one step.

        Args:
            seen: (B, prenet_dim), the frames before, through the pre-net.
            state: where the last step ended.
            encoded, keys, allowed, prior: see `LocationSensitiveAttention.forward`.

        Returns:
            What the projection and the gate read (B, H + C), attention (B, T_text), and the next state.
        """
        h, c = self.attention_lstm(torch.cat([seen, state.context], 1), state.attention_lstm)
        h = F.dropout(h, STATE_DROPOUT, self.training)
        context, attention = self.attention(h, keys, encoded, allowed, state.location, prior)
        location = torch.stack([attention, state.location[:, 1] + attention], 1)
        decoded, cell = self.decoder_lstm(torch.cat([h, context], 1), state.decoder_lstm)
        decoded = F.dropout(decoded, STATE_DROPOUT, self.training)
        # The states go on with their dropout, as in the published implementation.
        return torch.cat([decoded, context], 1), attention, DecoderState((h, c), (decoded, cell), context, location)

    def _finish(self, decoded: Tensor, attention: Tensor, lengths: Tensor, n_frames: int) -> Tacotron2Output:
        """Bring decoded steps (B, S, H + C) to log mels, with the post-net, zero at padding."""
        mask = length_mask(lengths, n_frames)
        frames = self.projection(decoded).reshape(len(decoded), -1, self.n_mels)[:, :n_frames]
        before = frames.transpose(1, 2) * mask[:, None]
        after = before + self.postnet(before, mask)
        mels = [(x * self.mel_std + self.mel_mean) * mask[:, None] for x in (before, after)]
        gate = self.gate(decoded)[..., 0]
        return Tacotron2Output(mels[0], mels[1], gate, attention, lengths, self.frames_per_step)

    def forward(
        self,
        mel: Tensor,
        mel_lengths: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        speaker_id: Tensor,
        attention_prior: Tensor | None = None,
        dropout: float = PRENET_DROPOUT,
    ) -> Tacotron2Output:
        """Predict all frames, those of each step from the true frames before it.

        Args:
            mel: (B, D, T_mel). mel_lengths, token_lengths, speaker_id: (B,). tokens: (B, T_text).
            attention_prior: (B, S, T_text).
            dropout: of the pre-net.
        """
        encoded = self.encode(tokens, token_lengths, speaker_id)
        keys, allowed = self.attention.key(encoded), length_mask(token_lengths, tokens.shape[1])
        T_mel, r = mel.shape[2], self.frames_per_step
        mask = length_mask(mel_lengths, T_mel)[..., None]
        x = F.pad((mel.transpose(1, 2) - self.mel_mean) / self.mel_std * mask, (0, 0, 0, -T_mel % r))
        groups = x.reshape(len(x), -1, r * self.n_mels)
        previous = torch.cat([torch.zeros_like(groups[:, :1]), groups[:, :-1]], 1)
        seen = self.prenet(previous, self.prenet.masks(previous.shape[:2], dropout))
        state = self.start(encoded)
        decoded, attention = [], []
        for s in range(groups.shape[1]):
            prior = None if attention_prior is None else attention_prior[:, s]
            each, weights, state = self.step(seen[:, s], state, encoded, keys, allowed, prior)
            decoded.append(each)
            attention.append(weights)
        return self._finish(torch.stack(decoded, 1), torch.stack(attention, 1), mel_lengths, T_mel)

    @torch.inference_mode()
    def infer(
        self,
        tokens: Tensor,
        token_lengths: Tensor,
        speaker_id: Tensor,
        seeds: Sequence[int],
        max_frames: int = 1000,
        gate_threshold: float = 0.5,
        dropout: float = PRENET_DROPOUT,
        window: AttentionWindow | None = None,
    ) -> Tacotron2Output:
        """Speak: each step from the frames before it, until the gate or the limit.

        Args:
            tokens: (B, T_text). token_lengths, speaker_id: (B,).
            seeds: of the pre-net's dropout, one for each item, so that batch-mates change nothing.
            max_frames: limit.
            gate_threshold: probability that ends an utterance; its step is the last.
            dropout: of the pre-net.
            window: keeps the attention monotonic; its patience and tail are in steps here. None leaves it free.
        """
        encoded = self.encode(tokens, token_lengths, speaker_id)
        keys, token_mask = self.attention.key(encoded), length_mask(token_lengths, tokens.shape[1])
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        walk = None if window is None else WindowWalk(window, token_mask)
        state = self.start(encoded)
        frames = encoded.new_zeros(len(tokens), self.n_mels * self.frames_per_step)
        limit = max(1, math.ceil(max_frames / self.frames_per_step))
        steps = torch.full_like(token_lengths, limit)
        decoded, attention = [], []
        for s in range(limit):
            each = [self.prenet.masks((), dropout, generator) for generator in generators]
            seen = self.prenet(frames, [torch.stack(rows) for rows in zip(*each)])
            allowed = token_mask if walk is None else walk.allowed()
            joined, weights, state = self.step(seen, state, encoded, keys, allowed)
            frames = self.projection(joined)
            decoded.append(joined)
            attention.append(weights)
            stops = self.gate(joined)[:, 0].sigmoid() > gate_threshold
            if walk is not None:
                walk.move(weights)
                stops = (stops & walk.is_near_end()) | walk.is_complete()
            steps = torch.where(stops & (steps > s), s + 1, steps)
            if int(steps.max()) <= s + 1:
                break
        lengths = steps * self.frames_per_step
        return self._finish(torch.stack(decoded, 1), torch.stack(attention, 1), lengths, int(lengths.max()))


def build_tacotron2(config: ModelConfig) -> Tacotron2:
    """Build the untrained Tacotron 2 that a config describes."""
    return Tacotron2(
        BatchNormTextEncoder(config.n_text, config.n_text_dim, config.text_dropout),
        nn.Embedding(config.n_speakers, config.n_speaker_dim) if config.n_speaker_dim else None,
        config.n_mel_channels,
        config.n_hidden,
        config.n_attn_channels,
        config.prenet_dim,
        config.postnet_dim,
        config.n_location_filters,
        config.location_kernel_size,
        config.n_frames_per_step,
        config.mel_mean,
        config.mel_std,
    )
