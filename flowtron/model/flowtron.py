"""Flowtron: encode the text, run the flows, score z under the prior.

Letters: B batch, T_mel frames, T_text tokens, D mel channels, C channels of the encoded text with the speaker.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowtron.config import ModelConfig
from flowtron.errors import InputError
from flowtron.kernels.step_weights import StepWeights
from flowtron.model.aligner import Aligner, DurationPredictor, monotonic_durations, path_prior
from flowtron.model.attention import AttentionWindow
from flowtron.model.encoder import MelEncoder, TextEncoder, beside_tokens, length_mask, stack_padded
from flowtron.model.flow import AffineFlow, Conditioner, Context, FlowAux, TimeReversed
from flowtron.model.prior import Mixture, MixturePrior


class FlowtronOutput(NamedTuple):
    """Result of analysis.

    z: (B, D, T_mel), zero at padding. log_det: (B,). steps: one FlowAux per step of flow. gate_logits: (B, T_mel) in
    the last step's order of processing, or None. mixture: of the prior, or None for N(0, sigma²). mel_lengths: (B,).
    """

    z: Tensor
    log_det: Tensor
    steps: list[FlowAux]
    gate_logits: Tensor | None
    mixture: Mixture | None
    mel_lengths: Tensor

    @property
    def attention(self) -> list[Tensor]:
        """Attention (B, T_mel, T_text) of each step of flow, in natural order of time."""
        return [step.attention for step in self.steps]


class FlowtronSample(NamedTuple):
    """Result of synthesis.

    mel: (B, D, T_mel), zero at padding. mel_lengths: (B,). attention: one (B, T_mel, T_text) per step of flow, in
    natural order of time, indexed like the steps (0 is next to the mel). gate_logits: (B, T_mel) or None.
    """

    mel: Tensor
    mel_lengths: Tensor
    attention: list[Tensor]
    gate_logits: Tensor | None


class Flowtron(nn.Module):
    """Text-to-speech as a stack of autoregressive flows between mel and z (Valle et al. 2020, arXiv 2005.05957)."""

    def __init__(
        self,
        text_encoder: TextEncoder,
        speaker_embedding: nn.Embedding,
        flows: Sequence[AffineFlow | TimeReversed],
        mel_encoder: MelEncoder | None = None,
        mixture: MixturePrior | None = None,
        aligner: Aligner | None = None,
        duration_predictor: DurationPredictor | None = None,
        dummy_speaker: bool = False,
        mel_mean: float = 0.0,
        mel_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.speaker_embedding = speaker_embedding
        self.flows = nn.ModuleList(flows)
        self.n_mels = flows[0].conditioner.attention_lstm.input_size
        self.mel_encoder = mel_encoder
        self.mixture = mixture
        self.aligner = aligner
        self.duration_predictor = duration_predictor
        self.dummy_speaker = dummy_speaker
        self.mel_mean, self.mel_std = mel_mean, mel_std

    @property
    def n_speakers(self) -> int:
        """Rows of the speaker table."""
        return self.speaker_embedding.num_embeddings

    @property
    def reads_backward_first(self) -> bool:
        """Whether synthesis starts at the end of the utterance: the step next to z is a reversed one."""
        return isinstance(self.flows[-1], TimeReversed)

    def encode(self, tokens: Tensor, token_lengths: Tensor, speaker_id: Tensor) -> Tensor:
        """Encode tokens (B, T_text) of speakers (B,) to (B, T_text, C), the speaker beside every token."""
        encoded = self.text_encoder(tokens, token_lengths)
        if self.dummy_speaker:
            speaker_id = torch.zeros_like(speaker_id)
        speaker = self.speaker_embedding(speaker_id).to(encoded.dtype)
        return torch.cat([encoded, beside_tokens(speaker).expand(-1, tokens.shape[1], -1)], 2)

    def forward(
        self,
        mel: Tensor,
        mel_lengths: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        speaker_id: Tensor,
        attention_prior: Tensor | None = None,
        temperature: float = 1.0,
        n_active: int | None = None,
        corrupt: Callable[[Tensor, int], Tensor] | None = None,
    ) -> FlowtronOutput:
        """Analyse: z = f_K(... f_1(mel)), with its exact log-determinant.

        Args:
            mel: (B, D, T_mel), padded at the end; it is not changed.
            mel_lengths, token_lengths, speaker_id: (B,). tokens: (B, T_text).
            attention_prior: (B, T_mel, T_text).
            temperature: divides attention energies.
            n_active: use only the first steps of flow, in staged training; None uses all.
            corrupt: applied to the frames (B, T_mel, D) that a step is teacher-forced with, and its index, in training.
        """
        encoded = self.encode(tokens, token_lengths, speaker_id)
        context = Context(
            encoded,
            length_mask(token_lengths, tokens.shape[1]),
            mel_lengths,
            attention_prior=attention_prior,
            temperature=temperature,
        )
        mask = length_mask(mel_lengths, mel.shape[2])
        mixture = None
        if self.mixture is not None and self.mel_encoder is not None:
            mixture = self.mixture(self.mel_encoder(mel, mel_lengths))
        # A fixed affine map before the first step: recurrent layers learn faster from numbers near zero.
        x = (mel.transpose(1, 2) - self.mel_mean) / self.mel_std * mask[..., None]
        log_det = -math.log(self.mel_std) * mel.shape[1] * mel_lengths.to(x.dtype)
        steps: list[FlowAux] = []
        for index, flow in enumerate(self.flows[:n_active]):
            x, step_log_det, aux = flow(x, context, None if corrupt is None else corrupt(x, index))
            log_det = log_det + step_log_det
            steps.append(aux)
        return FlowtronOutput(x.transpose(1, 2), log_det, steps, steps[-1].gate_logits, mixture, mel_lengths)

    def inverse(
        self,
        z: Tensor,
        z_lengths: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        speaker_id: Tensor,
        attention_prior: Tensor | None = None,
        attention: Sequence[Tensor] | None = None,
        temperature: float = 1.0,
        gate_threshold: float | None = None,
        window: AttentionWindow | None = None,
        weights: Sequence[StepWeights] | None = None,
    ) -> FlowtronSample:
        """Synthesise: mel = f_1⁻¹(... f_K⁻¹(z)).

        Args:
            z: (B, D, T_mel) latent frames, of which item b uses the first z_lengths[b].
            z_lengths, token_lengths, speaker_id: (B,). tokens: (B, T_text).
            attention_prior: (B, T_mel, T_text).
            attention: one (B, T_mel, T_text) per step of flow to use in place of computed ones, in natural order.
            temperature: divides attention energies.
            gate_threshold: probability above which the gate of the step next to z ends an utterance; None never.
            window: keeps the attention of the step next to z monotonic, and that of the others near its path.
            weights: one per step of flow, from `pack`, for the compiled loop over frames; None runs it in torch.
        """
        if weights is None:
            encoded = self.encode(tokens, token_lengths, speaker_id)
        else:  # one by one, so that an item's numbers do not depend on its batch-mates at all
            alone = [
                self.encode(tokens[b : b + 1, :n], token_lengths[b : b + 1], speaker_id[b : b + 1])[0]
                for b, n in enumerate(token_lengths.tolist())
            ]
            encoded = stack_padded(alone, tokens.shape[1])
        token_mask = length_mask(token_lengths, tokens.shape[1])
        x, lengths, gate_logits = z.transpose(1, 2), z_lengths, None
        attentions: list[Tensor] = []
        for index in reversed(range(len(self.flows))):
            is_last = index == len(self.flows) - 1
            size = x.shape[1]
            context = Context(
                encoded,
                token_mask,
                lengths,
                attention_prior=None if attention_prior is None else attention_prior[:, :size],
                attention=None if attention is None else attention[index][:, :size],
                temperature=temperature,
                window=window if is_last else None,
            )
            flow = self.flows[index]
            assert isinstance(flow, AffineFlow | TimeReversed)
            x, aux = flow.inverse(
                x, context, gate_threshold if is_last else None, None if weights is None else weights[index]
            )
            lengths = aux.lengths
            gate_logits = aux.gate_logits if is_last else gate_logits
            attentions.insert(0, aux.attention)
            if is_last and window is not None:
                durations = monotonic_durations((aux.attention + 1e-8).log(), lengths, token_lengths)
                attention_prior = path_prior(durations, x.shape[1], window.path_width)
        mel = (x * self.mel_std + self.mel_mean) * length_mask(lengths, x.shape[1])[..., None]
        return FlowtronSample(mel.transpose(1, 2), lengths, attentions, gate_logits)

    def pack(self, dtype: torch.dtype = torch.float32) -> list[StepWeights]:
        """Lay out the steps' weights for the compiled loop over frames, once for any number of calls of `inverse`.

        In int8 the step that runs first, of several, stays bfloat16.

        Raises:
            ValueError: a step is location-sensitive, or its hidden channels are no multiple of 8.
        """
        # The steps that run later make more of what the first one rounds than of their own.
        first = torch.bfloat16 if dtype == torch.int8 and len(self.flows) > 1 else dtype
        dtypes = [*[dtype] * (len(self.flows) - 1), first]
        return [StepWeights.from_conditioner(flow.conditioner, each) for flow, each in zip(self.flows, dtypes)]


def build_model(config: ModelConfig) -> Flowtron:
    """Build the untrained model that a config describes.

    Raises:
        InputError: there are more fixed mixture components than mel channels.
    """
    encoded_dim = config.n_text_dim + config.n_speaker_dim
    if config.is_mixture and config.fixed_gaussian and config.n_components > config.n_mel_channels:
        raise InputError(
            f"model_config.n_components is {config.n_components}, but fixed components need a mel channel each and "
            f"there are {config.n_mel_channels}; lower it or set fixed_gaussian to false."
        )

    def step(index: int) -> AffineFlow | TimeReversed:
        flow = AffineFlow(
            Conditioner(
                config.n_mel_channels,
                encoded_dim,
                config.n_hidden,
                config.n_attn_channels,
                config.n_lstm_layers,
                has_gate=config.use_gate_layer and index == config.n_flows - 1,
                location_sensitive=config.use_cumm_attention,
                original_padding=config.original_padding,
            )
        )
        return TimeReversed(flow) if index % 2 else flow

    mel_encoder, mixture = None, None
    if config.is_mixture:
        width = config.mel_encoder_n_hidden
        mel_encoder = MelEncoder(config.n_mel_channels, width, config.original_padding)
        mixture = MixturePrior(
            config.n_mel_channels, width, config.n_components, config.mean_scale, config.fixed_gaussian
        )
    aligner, durations = None, None
    if config.aligner_dim:
        aligner = Aligner(config.n_text, config.n_speakers, config.n_mel_channels, config.aligner_dim)
        durations = DurationPredictor(config.n_text, config.n_speakers, config.aligner_dim)
    return Flowtron(
        TextEncoder(config.n_text, config.n_text_dim, config.text_dropout),
        nn.Embedding(config.n_speakers, config.n_speaker_dim),
        [step(index) for index in range(config.n_flows)],
        mel_encoder,
        mixture,
        aligner,
        durations,
        config.dummy_speaker_embedding,
        config.mel_mean,
        config.mel_std,
    )
