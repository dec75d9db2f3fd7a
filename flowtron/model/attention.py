"""Additive attention of mel frames over text (Bahdanau et al. 2014; temperature, prior and mask as in the original).

Letters: B batch, T_mel frames, T_text tokens, A attention channels, C channels of the encoded text.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowtron.kernels.attention import additive_scores


class Attended(NamedTuple):
    """Result of attending.

    context: (B, T_mel, A) mean of the values under the attention.
    attention: (B, T_mel, T_text) weights, rows summing to 1.
    attention_logprob: (B, T_mel, T_text) log weights before masking and renormalising, the CTC loss's input.
    """

    context: Tensor
    attention: Tensor
    attention_logprob: Tensor


class AttentionWindow(NamedTuple):
    """Keeps attention walking through the text, once and in order.

    A frame may attend to tokens from `back` before an item's position to `ahead` after it. The position starts at the
    first token (the last, for a step that runs backward in time), follows the strongest token, never turns back, and
    moves on by itself after `patience_frames`. The gate counts once the last token is in the window; an item ends
    without it after `tail_frames` at its last token, 0 for never. Steps of flow that come after attend near the path of
    this one, within about `path_width` frames. The defaults skipped fewest words of a trained voice whose durations
    were left out (docs/INFERENCE.md). Source: monotonic windows, Chorowski et al. 2015, section 3.
    """

    back: int = 0
    ahead: int = 1
    patience_frames: int = 25
    tail_frames: int = 25
    backward: bool = False
    path_width: float = 3.0


class WindowWalk:
    """The positions (B,) of a batch in its texts, tokens counted from where the reading starts."""

    def __init__(self, window: AttentionWindow, token_mask: Tensor) -> None:
        self.window, self.token_mask = window, token_mask
        self.tokens = token_mask.sum(1)
        index = torch.arange(token_mask.shape[1], device=token_mask.device)
        self.order = self.tokens[:, None] - 1 - index if window.backward else index.expand(token_mask.shape)
        self.position = torch.zeros_like(self.tokens)
        self.still = torch.zeros_like(self.tokens)

    def allowed(self) -> Tensor:
        """Return the tokens (B, T_text) that the next frame may attend to."""
        ahead = self.order - self.position[:, None]
        return self.token_mask & (ahead >= -self.window.back) & (ahead <= self.window.ahead)

    def move(self, attention: Tensor) -> None:
        """Follow the attention (B, T_text) of a frame."""
        peak = self.order.gather(1, attention.argmax(1, keepdim=True))[:, 0]
        waits = (self.still + 1 < self.window.patience_frames) | (self.position == self.tokens - 1)
        moved = torch.where(peak > self.position, peak, torch.where(waits, self.position, self.position + 1))
        self.still = torch.where(moved > self.position, 0, self.still + 1)
        self.position = moved

    def is_near_end(self) -> Tensor:
        """Whether each item (B,) may end: its last token is in the window."""
        return self.position + self.window.ahead >= self.tokens - 1

    def is_complete(self) -> Tensor:
        """Whether each item (B,) has said its last token."""
        at_end = self.position == self.tokens - 1
        return at_end & (self.still >= self.window.tail_frames) & (self.window.tail_frames > 0)


class AdditiveAttention(nn.Module):
    """e = scoreᵀ tanh(W_q query + W_k encoded), softmax over the text, context = attention · W_v encoded."""

    def __init__(self, query_dim: int, encoded_dim: int, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_dim, channels, bias=False)
        self.key = nn.Linear(encoded_dim, channels, bias=False)
        self.value = nn.Linear(encoded_dim, channels, bias=False)
        self.score = nn.Linear(channels, 1, bias=False)
        gain = nn.init.calculate_gain("tanh")
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight, gain=gain)
        nn.init.xavier_uniform_(self.score.weight)

    def forward(
        self,
        hidden: Tensor,
        keys: Tensor,
        values: Tensor,
        token_mask: Tensor,
        prior: Tensor | None = None,
        temperature: float = 1.0,
        given: Tensor | None = None,
    ) -> Attended:
        """Attend.

        Args:
            hidden: (B, T_mel, query_dim) state that asks.
            keys, values: (B, T_text, A), projections of the encoded text.
            token_mask: (B, T_text), true at tokens.
            prior: (B, T_mel, T_text) weights multiplied into the attention, which is then renormalised.
            temperature: divides the energies, before the prior acts.
            given: (B, T_mel, T_text) weights to use in place of computed ones.
        """
        if given is not None:
            return Attended(given @ values, given, (given + 1e-8).log())
        energy = additive_scores(self.query(hidden), keys, self.score.weight[0]) / temperature
        wide = torch.promote_types(energy.dtype, torch.float32)
        energy = energy.to(wide).masked_fill(~token_mask[:, None], -torch.inf)
        attention = energy.softmax(2)
        if prior is None:
            logprob = (attention + 1e-8).log()
        else:
            logprob = (attention + 1e-20).log() + (prior.to(wide) + 1e-20).log()
            attention = logprob.masked_fill(~token_mask[:, None], -torch.inf).softmax(2)
        return Attended(attention.to(values.dtype) @ values, attention, logprob)


class LocationGate(nn.Module):
    """Gate on the encoded text from where the attention has been (the original's cumulative attention).

    σ(conv₃(ReLU(conv₅([cumulative; previous weights])))) multiplies what the keys are computed from.
    """

    def __init__(self, encoded_dim: int, original_padding: bool = False) -> None:
        super().__init__()
        hidden, out = nn.Conv1d(2, 32, 5, padding=2), nn.Conv1d(32, encoded_dim, 3, padding=1)
        self.convs = nn.ModuleList([hidden, out])
        self.original_padding = original_padding
        nn.init.xavier_uniform_(hidden.weight, gain=nn.init.calculate_gain("relu"))
        nn.init.xavier_uniform_(out.weight, gain=nn.init.calculate_gain("sigmoid"))

    def forward(self, cumulative: Tensor, previous: Tensor, token_mask: Tensor) -> Tensor:
        """Return the gate (B, T_text, C) from weights (B, T_text) summed so far and of the last frame.

        The hidden layer is zero at padding, so that batch-mates change nothing; `original_padding` leaves it be.
        """
        hidden = self.convs[0](torch.stack([cumulative, previous], 1)).relu()
        if not self.original_padding:
            hidden = hidden * token_mask[:, None]
        return self.convs[1](hidden).sigmoid().transpose(1, 2)
