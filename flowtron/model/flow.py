"""One step of flow: an autoregressive affine coupling of mel frames, and its reversal in time.

Letters: B batch, T_mel frames, T_text tokens, D mel channels, C channels of the encoded text, H hidden channels.
Inside the flows frames come before channels: (B, T_mel, D).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowtron.kernels.lstm import LSTM
from flowtron.kernels.step import run_step
from flowtron.kernels.step_weights import StepWeights
from flowtron.model.attention import AdditiveAttention, Attended, AttentionWindow, LocationGate, WindowWalk
from flowtron.model.encoder import length_mask, reverse_frames, stack_padded
from flowtron.model.graph import StaticStep

FRAMES_PER_QUESTION = 16


@dataclass(frozen=True)
class Context:
    """What a step of flow is conditioned on.

    encoded: (B, T_text, C) encoded text with the speaker. token_mask: (B, T_text), true at tokens.
    mel_lengths: (B,) valid frames. attention_prior: (B, T_mel, T_text). attention: (B, T_mel, T_text) to use in place
    of computed weights. temperature: divides attention energies. window: of the attention, in `inverse` alone.
    allowed: (B, T_text), the tokens within the window; None for all.
    """

    encoded: Tensor
    token_mask: Tensor
    mel_lengths: Tensor
    attention_prior: Tensor | None = None
    attention: Tensor | None = None
    temperature: float = 1.0
    window: AttentionWindow | None = None
    allowed: Tensor | None = None

    @property
    def attended(self) -> Tensor:
        """Tokens (B, T_text) that may be attended to."""
        return self.token_mask if self.allowed is None else self.allowed


class State(NamedTuple):
    """Recurrent state of a conditioner: the two LSTMs', and (cumulative, previous) attention (B, T_text) each."""

    attention_lstm: tuple[Tensor, Tensor] | None = None
    lstm: tuple[Tensor, Tensor] | None = None
    location: tuple[Tensor, Tensor] | None = None


class Conditioning(NamedTuple):
    """What the conditioner says of T frames.

    log_scale, shift: (B, T, D). attention, attention_logprob: (B, T, T_text). gate_logits: (B, T) or None.
    """

    log_scale: Tensor
    shift: Tensor
    attention: Tensor
    attention_logprob: Tensor
    gate_logits: Tensor | None


class FlowAux(NamedTuple):
    """What a step of flow hands back beside its result.

    log_scale: (B, T_mel, D), zero at padding (None from `inverse`). attention, attention_logprob:
    (B, T_mel, T_text), in natural order of time. gate_logits: (B, T_mel) in the order of processing, so that the stop
    is always at the last processed frame. lengths: (B,) valid frames.
    """

    log_scale: Tensor | None
    attention: Tensor
    attention_logprob: Tensor
    gate_logits: Tensor | None
    lengths: Tensor


class Conditioner(nn.Module):
    """(log_scale_t, shift_t) = NN(x_{<t}, text, speaker): attention LSTM, attention, decoder LSTM, dense layers.

    Source: Valle et al. 2020, fig. 1 and section 3; the gate reads what the decoder LSTM reads.
    """

    def __init__(
        self,
        n_mels: int,
        encoded_dim: int,
        hidden: int,
        attention_dim: int,
        n_lstm_layers: int,
        has_gate: bool = False,
        location_sensitive: bool = False,
        original_padding: bool = False,
    ) -> None:
        super().__init__()
        self.attention_lstm = LSTM(n_mels, hidden)
        self.attention = AdditiveAttention(hidden, encoded_dim, attention_dim)
        self.location = LocationGate(encoded_dim, original_padding) if location_sensitive else None
        self.lstm = LSTM(hidden + attention_dim, hidden, n_lstm_layers)
        dense = [nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)]
        self.dense = nn.ModuleList(dense)
        self.output = nn.Linear(hidden, 2 * n_mels)
        self.gate = nn.Linear(hidden + attention_dim, 1) if has_gate else None
        for layer in dense:
            nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain("tanh"))
        # Zero output means log_scale = shift = 0: an untrained flow is the identity.
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        if self.gate is not None:
            nn.init.xavier_uniform_(self.gate.weight, gain=nn.init.calculate_gain("sigmoid"))

    def memory(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Project encoded text (B, T_text, C) to keys and values (B, T_text, A), once for all frames."""
        return self.attention.key(encoded), self.attention.value(encoded)

    def _attend_by_location(
        self, hidden: Tensor, values: Tensor, context: Context, location: tuple[Tensor, Tensor]
    ) -> tuple[Attended, tuple[Tensor, Tensor]]:
        assert self.location is not None
        cumulative, previous = location
        frames = []
        for t in range(hidden.shape[1]):
            gate = self.location(cumulative, previous, context.token_mask)
            attended = self.attention(
                hidden[:, t : t + 1],
                self.attention.key(context.encoded * gate),
                values,
                context.attended,
                None if context.attention_prior is None else context.attention_prior[:, t : t + 1],
                context.temperature,
                None if context.attention is None else context.attention[:, t : t + 1],
            )
            previous = attended.attention[:, 0].to(cumulative.dtype)
            cumulative = cumulative + previous
            frames.append(attended)
        return Attended(*(torch.cat(parts, 1) for parts in zip(*frames))), (cumulative, previous)

    def forward(
        self,
        previous: Tensor,
        memory: tuple[Tensor, Tensor],
        context: Context,
        state: State | None = None,
    ) -> tuple[Conditioning, State]:
        """Condition T frames on the T frames before each of them.

        Args:
            previous: (B, T, D), frame t − 1 at position t.
            memory: keys and values of the text, from `memory`.
            context: its prior and given attention are those of the same T frames.
            state: where the last call ended; None at the first frame.
        """
        state = state or State()
        hidden, attention_state = self.attention_lstm(previous, state.attention_lstm)
        keys, values = memory
        if self.location is None:
            location = None
            attended = self.attention(
                hidden,
                keys,
                values,
                context.attended,
                context.attention_prior,
                context.temperature,
                context.attention,
            )
        else:
            start = state.location or (previous.new_zeros(context.token_mask.shape),) * 2
            attended, location = self._attend_by_location(hidden, values, context, start)
        joined = torch.cat([hidden, attended.context.to(hidden.dtype)], 2)
        decoded, lstm_state = self.lstm(joined, state.lstm)
        for layer in self.dense:
            decoded = layer(decoded).tanh()
        # Under autocast too: what z and the log-determinant are made of stays in the weights' own type.
        with torch.autocast(decoded.device.type, enabled=False):
            log_scale, shift = self.output(decoded.to(self.output.weight.dtype)).chunk(2, 2)
        gate_logits = None if self.gate is None else self.gate(joined)[..., 0]
        conditioning = Conditioning(log_scale, shift, attended.attention, attended.attention_logprob, gate_logits)
        return conditioning, State(attention_state, lstm_state, location)


class _EagerStep:
    """Computes frame after frame of `AffineFlow.inverse`, with gradients where they are wanted."""

    def __init__(self, conditioner: Conditioner, memory: tuple[Tensor, Tensor], context: Context, z: Tensor) -> None:
        self.conditioner, self.memory, self.context, self.z = conditioner, memory, context, z
        self.frame, self.state = torch.zeros_like(z[:, 0]), State()

    def __call__(self, t: int, allowed: Tensor | None) -> tuple[Tensor, Conditioning]:
        """Return frame t (B, D) and what it was conditioned on; frames come in order."""
        prior, given = (
            None if rows is None else rows[:, t : t + 1]
            for rows in (self.context.attention_prior, self.context.attention)
        )
        here = replace(self.context, attention_prior=prior, attention=given, allowed=allowed)
        conditioning, self.state = self.conditioner(self.frame[:, None], self.memory, here, self.state)
        self.frame = (self.z[:, t] - conditioning.shift[:, 0]) * (-conditioning.log_scale[:, 0]).exp()
        return self.frame, conditioning


class AffineFlow(nn.Module):
    """Autoregressive affine coupling: z_t = exp(log_scale_t) · x_t + shift_t, both functions of x_{<t}.

    log|det ∂z/∂x| = Σ_{t,d} log_scale_{t,d}, since the Jacobian is triangular. Source: Valle et al. 2020, section 3.
    """

    def __init__(self, conditioner: Conditioner) -> None:
        super().__init__()
        self.conditioner = conditioner

    def forward(self, mel: Tensor, context: Context, teacher: Tensor | None = None) -> tuple[Tensor, Tensor, FlowAux]:
        """Map mel (B, T_mel, D) to z, teacher-forced.

        Args:
            mel: (B, T_mel, D) frames, padded at the end.
            context: text, lengths, prior.
            teacher: frames that the conditioner sees in place of `mel`'s (noisy or dropped ones, in training); the
                likelihood stays exact as long as they are a function of nothing but noise and earlier frames.

        Returns:
            z (B, T_mel, D), zero at padding; log_det (B,); aux.
        """
        seen = mel if teacher is None else teacher
        previous = torch.cat([torch.zeros_like(seen[:, :1]), seen[:, :-1]], 1)
        if self.conditioner.location is not None:
            context = replace(context, attention_prior=None)  # as the original, whose weights were trained so
        conditioning, _ = self.conditioner(previous, self.conditioner.memory(context.encoded), context)
        mask = length_mask(context.mel_lengths, mel.shape[1])[..., None]
        log_scale = conditioning.log_scale.to(mel.dtype) * mask
        z = (log_scale.exp() * mel + conditioning.shift.to(mel.dtype)) * mask
        aux = FlowAux(
            log_scale,
            conditioning.attention,
            conditioning.attention_logprob,
            conditioning.gate_logits,
            context.mel_lengths,
        )
        return z, log_scale.sum((1, 2)), aux

    def inverse(
        self,
        z: Tensor,
        context: Context,
        gate_threshold: float | None = None,
        weights: StepWeights | None = None,
    ) -> tuple[Tensor, FlowAux]:
        """Map z (B, T_mel, D) to mel, frame by frame: x_t = (z_t − shift_t) · exp(−log_scale_t).

        Args:
            z: (B, T_mel, D) latent frames, of which each item uses the first mel_lengths.
            context: as in `forward`.
            gate_threshold: an item ends with the first frame whose gate probability exceeds it; None never stops.
            weights: the conditioner's, for the compiled loop over frames; None runs the loop in torch.

        Returns:
            mel (B, T, D) and aux, T the longest length, with the lengths after stopping.
        """
        if weights is not None:
            return self._inverse_compiled(z, context, gate_threshold, weights)
        memory = self.conditioner.memory(context.encoded)
        lengths = context.mel_lengths.clone()
        walk = None if context.window is None else WindowWalk(context.window, context.token_mask)
        graphed = z.is_cuda and not torch.is_grad_enabled()
        step = (StaticStep if graphed else _EagerStep)(self.conditioner, memory, context, z)
        frames: list[Tensor] = []
        steps: list[Conditioning] = []
        for t in range(int(lengths.max())):
            frame, conditioning = step(t, None if walk is None else walk.allowed())
            frames.append(frame)
            steps.append(conditioning)
            stops = torch.zeros_like(lengths, dtype=torch.bool)
            if walk is not None:
                walk.move(conditioning.attention[:, 0])
                stops |= walk.is_complete()
            if gate_threshold is not None and conditioning.gate_logits is not None:
                fires = conditioning.gate_logits[:, 0].sigmoid() > gate_threshold
                stops |= fires if walk is None else fires & walk.is_near_end()
            if walk is not None or gate_threshold is not None:
                lengths = torch.where(stops & (lengths > t), t + 1, lengths)
                # Asking a GPU makes it wait, so it is asked seldom, and frames too many are cut off.
                if (not z.is_cuda or t % FRAMES_PER_QUESTION == 0) and int(lengths.max()) <= t + 1:
                    break
        T = int(lengths.max())
        frames, steps = frames[:T], steps[:T]
        mask = length_mask(lengths, T)[..., None]
        gates = [step.gate_logits for step in steps if step.gate_logits is not None]
        aux = FlowAux(
            None,
            torch.cat([step.attention for step in steps], 1) * mask,
            torch.cat([step.attention_logprob for step in steps], 1),
            torch.cat(gates, 1) if gates else None,
            lengths,
        )
        return torch.stack(frames, 1) * mask, aux

    def _inverse_compiled(
        self, z: Tensor, context: Context, gate_threshold: float | None, weights: StepWeights
    ) -> tuple[Tensor, FlowAux]:
        # One by one, since matrix products round differently in batches, and an item must not hear of its batch-mates.
        memories = [
            self.conditioner.memory(encoded[None, :n])
            for encoded, n in zip(context.encoded, context.token_mask.sum(1).tolist())
        ]
        keys, values = (stack_padded([x[0] for x in parts], context.encoded.shape[1]) for parts in zip(*memories))
        window = context.window
        result = run_step(
            weights,
            z,
            keys,
            values,
            context.token_mask,
            context.attention_prior,
            context.attention,
            context.mel_lengths,
            gate_threshold,
            context.temperature,
            None if window is None else (-1 if window.backward else 1, *window[:4]),
        )
        T = int(result.lengths.max())
        attention = result.attention[:, :T].to(z.dtype)
        gate_logits = None if result.gate_logits is None else result.gate_logits[:, :T].to(z.dtype)
        aux = FlowAux(None, attention, (attention + 1e-8).log(), gate_logits, result.lengths)
        return result.x[:, :T].to(z.dtype), aux


class TimeReversed(nn.Module):
    """A flow run backward in time; what it hands back is in natural order, but for the gate (see FlowAux)."""

    def __init__(self, flow: AffineFlow) -> None:
        super().__init__()
        self.flow = flow

    @property
    def conditioner(self) -> Conditioner:
        """The wrapped flow's conditioner."""
        return self.flow.conditioner

    @staticmethod
    def _reversed_context(context: Context) -> Context:
        prior, given = (
            None if rows is None else reverse_frames(rows, context.mel_lengths)
            for rows in (context.attention_prior, context.attention)
        )
        window = context.window and context.window._replace(backward=not context.window.backward)
        return replace(context, attention_prior=prior, attention=given, window=window)

    @staticmethod
    def _natural(aux: FlowAux) -> FlowAux:
        return aux._replace(
            log_scale=None if aux.log_scale is None else reverse_frames(aux.log_scale, aux.lengths),
            attention=reverse_frames(aux.attention, aux.lengths),
            attention_logprob=reverse_frames(aux.attention_logprob, aux.lengths),
        )

    def forward(self, mel: Tensor, context: Context, teacher: Tensor | None = None) -> tuple[Tensor, Tensor, FlowAux]:
        """As `AffineFlow.forward`, from the last frame to the first."""
        lengths = context.mel_lengths
        z, log_det, aux = self.flow(
            reverse_frames(mel, lengths),
            self._reversed_context(context),
            None if teacher is None else reverse_frames(teacher, lengths),
        )
        return reverse_frames(z, lengths), log_det, self._natural(aux)

    def inverse(
        self,
        z: Tensor,
        context: Context,
        gate_threshold: float | None = None,
        weights: StepWeights | None = None,
    ) -> tuple[Tensor, FlowAux]:
        """As `AffineFlow.inverse`, from the last frame to the first; a stop keeps the last frames of z."""
        mel, aux = self.flow.inverse(
            reverse_frames(z, context.mel_lengths), self._reversed_context(context), gate_threshold, weights
        )
        return reverse_frames(mel, aux.lengths), self._natural(aux)
