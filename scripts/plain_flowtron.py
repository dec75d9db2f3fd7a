"""A plain Flowtron, for the benchmarks to compare with: it computes as the original does.

Frames first, packed sequences, the whole (B, T_mel, T_text, A) tensor of the attention, float32; free running in a
Python loop that projects keys and values again for every frame. Parameter names are the package's, so that weights
can be exchanged and results compared. Letters: B batch, T_mel frames, T_text tokens, D mel channels, C channels of the
encoded text, H hidden channels, A attention channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from flowtron.config import ModelConfig


def run_packed(lstm: nn.LSTM, x: Tensor, lengths: Tensor) -> Tensor:
    """Run an LSTM over x (T, B, channels), sorted by length and packed."""
    order = lengths.argsort(descending=True)
    packed = pack_padded_sequence(x[:, order], lengths[order].cpu())
    output, _ = pad_packed_sequence(lstm(packed)[0], total_length=x.shape[0])
    return output[:, order.argsort()]


def turned(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse the valid frames of x (T_mel, B, ...): flip everything, then roll each item's padding to the end."""
    flipped = x.flip(0)
    return torch.stack([flipped[:, b].roll(int(n), 0) for b, n in enumerate(lengths)], 1)


class PlainEncoder(nn.Module):
    """Embedding, three convolutions with masked instance norm, bidirectional LSTM."""

    def __init__(self, n_text: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_text, channels)
        self.convs = nn.ModuleList([nn.Conv1d(channels, channels, 5, padding=2) for _ in range(3)])
        self.norms = nn.ModuleList([nn.InstanceNorm1d(channels, affine=True) for _ in range(3)])
        self.lstm = nn.LSTM(channels, channels // 2, bidirectional=True)
        self.dropout = dropout

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Encode tokens (B, T_text) to (T_text, B, channels)."""
        x = self.embedding(tokens).transpose(1, 2)
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None])[:, None]
        for conv, norm in zip(self.convs, self.norms):
            x = conv(x * mask)
            mean = (x * mask).sum(2, keepdim=True) / lengths[:, None, None]
            variance = ((x - mean).square() * mask).sum(2, keepdim=True) / lengths[:, None, None]
            x = (x - mean) / (variance + norm.eps).sqrt() * norm.weight[:, None] + norm.bias[:, None]
            x = functional.dropout(x.relu(), self.dropout, self.training)
        return run_packed(self.lstm, (x * mask).permute(2, 0, 1), lengths)


class PlainAttention(nn.Module):
    """Additive attention that holds all pairs at once."""

    def __init__(self, query_dim: int, encoded_dim: int, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_dim, channels, bias=False)
        self.key = nn.Linear(encoded_dim, channels, bias=False)
        self.value = nn.Linear(encoded_dim, channels, bias=False)
        self.score = nn.Linear(channels, 1, bias=False)

    def forward(self, hidden: Tensor, encoded: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Attend with hidden (T, B, H) to encoded (T_text, B, C): context (T, B, A) and weights (B, T, T_text)."""
        query = self.query(hidden).transpose(0, 1)[:, :, None]
        key = self.key(encoded).transpose(0, 1)[:, None]
        value = self.value(encoded).transpose(0, 1)
        energy = self.score(torch.tanh(query + key))[..., 0]
        attention = energy.masked_fill(padding[:, None], -torch.inf).softmax(2)
        return torch.bmm(attention, value).transpose(0, 1), attention


class PlainStep(nn.Module):
    """One step of flow."""

    def __init__(self, config: ModelConfig, has_gate: bool) -> None:
        super().__init__()
        hidden, channels = config.n_hidden, config.n_attn_channels
        self.attention_lstm = nn.LSTM(config.n_mel_channels, hidden)
        self.attention = PlainAttention(hidden, config.n_text_dim + config.n_speaker_dim, channels)
        self.lstm = nn.LSTM(hidden + channels, hidden, config.n_lstm_layers)
        self.dense = nn.ModuleList([nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)])
        self.output = nn.Linear(hidden, 2 * config.n_mel_channels)
        self.gate = nn.Linear(hidden + channels, 1) if has_gate else None

    def couple(self, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """Return log_scale and shift of decoder states (T, B, H)."""
        for layer in self.dense:
            decoded = layer(decoded).tanh()
        log_scale, shift = self.output(decoded).chunk(2, 2)
        return log_scale, shift

    def forward(
        self, mel: Tensor, encoded: Tensor, padding: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Map mel (T_mel, B, D) to z, log_scale and the gate's logits (T_mel, B)."""
        previous = torch.cat([torch.zeros_like(mel[:1]), mel[:-1]])
        hidden = run_packed(self.attention_lstm, previous, lengths)
        context, _ = self.attention(hidden, encoded, padding)
        joined = torch.cat([hidden, context], 2)
        gate_logits = None if self.gate is None else self.gate(joined)[..., 0]
        log_scale, shift = self.couple(run_packed(self.lstm, joined, lengths))
        return log_scale.exp() * mel + shift, log_scale, gate_logits

    def infer(self, z: Tensor, encoded: Tensor, padding: Tensor) -> Tensor:
        """Map z (T_mel, B, D) to mel, frame by frame."""
        frame, attention_state, state = torch.zeros_like(z[:1]), None, None
        frames = []
        for t in range(z.shape[0]):
            hidden, attention_state = self.attention_lstm(frame, attention_state)
            context, _ = self.attention(hidden, encoded, padding)
            joined = torch.cat([hidden, context], 2)
            if self.gate is not None:
                self.gate(joined).sigmoid()
            decoded, state = self.lstm(joined, state)
            log_scale, shift = self.couple(decoded)
            frame = (z[t : t + 1] - shift) / log_scale.exp()
            frames.append(frame)
        return torch.cat(frames)


class _Named(nn.Module):
    """Holds a module under the name that the package gives it."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class PlainFlowtron(nn.Module):
    """Text encoder, speaker table and alternating steps of flow, with a Gaussian prior."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.text_encoder = PlainEncoder(config.n_text, config.n_text_dim, config.text_dropout)
        self.speaker_embedding = nn.Embedding(config.n_speakers, config.n_speaker_dim)
        self.flows = nn.ModuleList()
        for index in range(config.n_flows):
            step = _Named(conditioner=PlainStep(config, index == config.n_flows - 1))
            self.flows.append(_Named(flow=step) if index % 2 else step)

    @property
    def steps(self) -> list[PlainStep]:
        """The steps of flow, the one next to the mel first."""
        return [module for module in self.modules() if isinstance(module, PlainStep)]

    def encode(self, tokens: Tensor, token_lengths: Tensor, speaker_id: Tensor) -> Tensor:
        """Encode tokens (B, T_text) with the speaker to (T_text, B, C)."""
        encoded = self.text_encoder(tokens, token_lengths)
        speaker = self.speaker_embedding(speaker_id)[None].expand(encoded.shape[0], -1, -1)
        return torch.cat([encoded, speaker], 2)

    def forward(
        self, mel: Tensor, mel_lengths: Tensor, tokens: Tensor, token_lengths: Tensor, speaker_id: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Map mel (B, D, T_mel) to z (B, D, T_mel), the log_scales (T_mel, B, D), the gate's logits (T_mel, B)."""
        encoded = self.encode(tokens, token_lengths, speaker_id)
        padding = torch.arange(tokens.shape[1]) >= token_lengths[:, None]
        x, log_scales, gate_logits = mel.permute(2, 0, 1), [], None
        for index, step in enumerate(self.steps):
            if index % 2:
                x, log_scale, gate_logits = step(turned(x, mel_lengths), encoded, padding, mel_lengths)
                x = turned(x, mel_lengths)
            else:
                x, log_scale, gate_logits = step(x, encoded, padding, mel_lengths)
            log_scales.append(log_scale)
        return x.permute(1, 2, 0), log_scales, gate_logits

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Negative log-likelihood per frame and channel, plus the gate's cross-entropy."""
        z, log_scales, gate_logits = self(**batch)
        lengths = batch["mel_lengths"]
        mask = (torch.arange(z.shape[2]) < lengths[:, None]).float()
        total = 0.5 * (z.square() * mask[:, None]).sum()
        total = total - sum((log_scale * mask.t()[..., None]).sum() for log_scale in log_scales)
        loss = total / (mask.sum() * z.shape[1])
        if gate_logits is not None:
            target = (torch.arange(z.shape[2]) == lengths[:, None] - 1).float()
            each = functional.binary_cross_entropy_with_logits(gate_logits.t(), target, reduction="none")
            loss = loss + (each * mask).sum() / mask.sum()
        return loss

    @torch.no_grad()
    def infer(self, z: Tensor, tokens: Tensor, speaker_id: Tensor) -> Tensor:
        """Map z (B, D, T_mel) to mel, all items as long as z and all tokens valid."""
        encoded = self.encode(tokens, torch.full(tokens.shape[:1], tokens.shape[1]), speaker_id)
        padding = torch.zeros(tokens.shape, dtype=torch.bool)
        x = z.permute(2, 0, 1)
        for index, step in reversed(list(enumerate(self.steps))):
            x = step.infer(x.flip(0), encoded, padding).flip(0) if index % 2 else step.infer(x, encoded, padding)
        return x.permute(1, 2, 0)
