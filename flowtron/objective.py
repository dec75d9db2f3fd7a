"""What training minimises: the losses of a batch, with the attention prior of the moment.

Letters: B batch, T_mel frames, T_text tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowtron.config import TrainConfig
from flowtron.data import Batch, beta_binomial_prior
from flowtron.loss import attention_ctc_loss, forward_sum_loss, gate_loss, nll_loss
from flowtron.model import Flowtron, FlowtronOutput
from flowtron.model.aligner import monotonic_durations, path_prior


def beta_binomial_priors(
    mel_lengths: Sequence[int], token_lengths: Sequence[int], scaling_factor: float, device: torch.device
) -> Tensor:
    """Stack the beta-binomial priors of a batch to (B, T_mel, T_text), zero at padding."""
    priors = torch.zeros(len(mel_lengths), max(mel_lengths), max(token_lengths))
    for row, n_frames, n_tokens in zip(priors, mel_lengths, token_lengths):
        row[:n_frames, :n_tokens] = torch.as_tensor(beta_binomial_prior(n_tokens, n_frames, scaling_factor))
    return priors.to(device)


class Losses(NamedTuple):
    """total: what is minimised. named: each part by the log's key. output: of the flows, or None before they start."""

    total: Tensor
    named: dict[str, Tensor]
    output: FlowtronOutput | None


class Objective(nn.Module):
    """The model together with its losses, as one module, so that it can be distributed as one.

    Stages, by iteration: the aligner alone (`aligner_iters`), then the steps of flow, each from its
    `flow_start_iters`. With an aligner the flows attend under the prior around its path; without, under the
    beta-binomial prior, which fades out after `attn_prior_full_iters`.
    """

    def __init__(
        self, model: Flowtron, config: TrainConfig, scaling_factor: float = 1.0, use_prior: bool = True
    ) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.scaling_factor, self.use_prior = scaling_factor, use_prior

    def n_active(self, iteration: int) -> int:
        """Steps of flow that take part in an iteration."""
        starts = self.config.flow_start_iters
        return max(1, sum(1 for k in range(len(self.model.flows)) if k >= len(starts) or iteration >= starts[k]))

    def prior_weight(self, iteration: int) -> float:
        """Exponent of the beta-binomial prior: 1, then falling to 0 where a fade is configured."""
        config = self.config
        if not self.use_prior:
            return 0.0
        if not config.attn_prior_full_iters:
            return 1.0
        past = iteration - config.attn_prior_full_iters
        return float(min(1.0, max(0.0, 1 - past / max(1, config.attn_prior_fade_iters))))

    def _beta_binomial(self, batch: Batch) -> Tensor:
        return beta_binomial_priors(
            batch.mel_lengths.tolist(), batch.token_lengths.tolist(), self.scaling_factor, batch.mel.device
        )

    def align(self, batch: Batch) -> Tensor:
        """Log probabilities (B, T_mel, T_text) of the aligner under the beta-binomial prior."""
        assert self.model.aligner is not None
        return self.model.aligner(
            batch.mel,
            batch.mel_lengths,
            batch.tokens,
            batch.token_lengths,
            batch.speaker_id,
            self._beta_binomial(batch),
        )

    def durations(self, batch: Batch) -> Tensor:
        """Durations (B, T_text) in frames of the aligner's best path."""
        with torch.no_grad():
            return monotonic_durations(self.align(batch), batch.mel_lengths, batch.token_lengths)

    def _corrupt(self, frames: Tensor) -> Tensor:
        config = self.config
        if config.input_noise:
            frames = frames + config.input_noise * torch.randn_like(frames)
        if config.input_dropout:
            kept = torch.rand(frames.shape[:2], device=frames.device) >= config.input_dropout
            frames = frames * kept[..., None]
        return frames

    def forward(self, batch: Batch, iteration: int) -> Losses:
        """Compute the losses of a batch at an iteration."""
        config, model = self.config, self.model
        if model.aligner is not None and iteration < config.aligner_iters:
            loss = forward_sum_loss(self.align(batch), batch.mel_lengths, batch.token_lengths, blank_logprob=-1.0)
            return Losses(loss, {"aligner": loss.detach()}, None)
        named: dict[str, Tensor] = {}
        total = batch.mel.new_zeros(())
        prior = None
        if model.aligner is not None and model.duration_predictor is not None:
            durations = self.durations(batch)
            prior = path_prior(durations, batch.mel.shape[2], config.path_width)
            named["duration"] = model.duration_predictor.loss(
                batch.tokens, batch.token_lengths, batch.speaker_id, durations
            )
            total = total + named["duration"]
        elif (weight := self.prior_weight(iteration)) > 0:
            prior = self._beta_binomial(batch) ** weight
        output = model(
            batch.mel,
            batch.mel_lengths,
            batch.tokens,
            batch.token_lengths,
            batch.speaker_id,
            attention_prior=prior,
            n_active=self.n_active(iteration),
            corrupt=self._corrupt if self.training and (config.input_noise or config.input_dropout) else None,
        )
        named["nll"] = nll_loss(output, config.sigma)
        total = total + named["nll"]
        if config.gate_loss and output.gate_logits is not None:
            named["gate"] = gate_loss(output.gate_logits, output.mel_lengths, config.gate_positive_weight)
            total = total + named["gate"]
        if config.use_ctc_loss and model.aligner is None:
            named["ctc"] = attention_ctc_loss(output.steps, batch.token_lengths, config.blank_logprob)
            if iteration >= config.ctc_loss_start_iter:
                total = total + config.ctc_loss_weight * named["ctc"]
        return Losses(total, {key: value.detach() for key, value in named.items()}, output)
