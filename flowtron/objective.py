"""What training minimises: the losses of a batch, with the attention prior of the moment.

Letters: B batch, T_mel frames, T_text tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowtron.config import DataConfig, TrainConfig
from flowtron.data import Batch, beta_binomial_prior
from flowtron.loss import attention_ctc_loss, forward_sum_loss, frame_errors, gate_loss, nll_loss
from flowtron.model import AcousticModel, Flowtron, FlowtronOutput, Tacotron2, Tacotron2Output
from flowtron.model.aligner import monotonic_durations, path_prior
from flowtron.model.flow import FlowAux

# Wider than the distance of two harmonics of a high voice, so that they vanish.
BINOMIAL = (1, 6, 15, 20, 15, 6, 1)
BLUR_SPAN_FRAMES = 24


def beta_binomial_priors(
    mel_lengths: Sequence[int], token_lengths: Sequence[int], scaling_factor: float, device: torch.device
) -> Tensor:
    """Stack the beta-binomial priors of a batch to (B, T_mel, T_text), zero at padding."""
    priors = torch.zeros(len(mel_lengths), max(mel_lengths), max(token_lengths))
    for row, n_frames, n_tokens in zip(priors, mel_lengths, token_lengths):
        row[:n_frames, :n_tokens] = torch.as_tensor(beta_binomial_prior(n_tokens, n_frames, scaling_factor))
    return priors.to(device, non_blocking=True)


def blur_spans(frames: Tensor, share: float) -> Tensor:
    """Blur a share of the spans of mel frames (B, T_mel, D) over their channels, as free-running frames may become.

    The harmonics of a voice are lost where its pitch is not yet clear, and a model that only ever saw sharp frames
    goes on as blurred as it began. How little this changed for the bundled voice is told in docs/VOICE.md.
    """
    n, T = frames.shape[:2]
    weights = frames.new_tensor(BINOMIAL)[None, None] / sum(BINOMIAL)
    half = len(BINOMIAL) // 2
    rows = nn.functional.pad(frames.reshape(n * T, 1, -1), (half, half), mode="replicate")
    blurred = nn.functional.conv1d(rows, weights).reshape(frames.shape)
    n_spans = -(-T // BLUR_SPAN_FRAMES)
    strength = torch.rand(n, n_spans, device=frames.device) * (torch.rand(n, n_spans, device=frames.device) < share)
    strength = strength.repeat_interleave(BLUR_SPAN_FRAMES, 1)[:, :T, None].to(frames)
    return frames + strength * (blurred - frames)


class Losses(NamedTuple):
    """total: what is minimised. named: each part by the log's key. output: None before the steps of flow start.

    Only `total` carries gradients.
    """

    total: Tensor
    named: dict[str, Tensor]
    output: FlowtronOutput | Tacotron2Output | None


def counts(batch: Batch) -> list[int]:
    """What the losses are means over: frames, utterances and tokens of a batch."""
    return [sum(batch.n_frames), len(batch.n_frames), sum(batch.n_tokens)]


class HelpedObjective(nn.Module):
    """A model with its losses, whose attention is helped by the beta-binomial prior until that has faded out."""

    def __init__(
        self,
        model: AcousticModel,
        config: TrainConfig,
        scaling_factor: float = 1.0,
        use_prior: bool = True,
        threshold: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.scaling_factor, self.use_prior, self.threshold = scaling_factor, use_prior, threshold

    def guidance(self, iteration: int) -> float:
        """Share of the help with the alignment that remains: 1, then falling to 0 where a fade is configured."""
        config = self.config
        if not config.attn_prior_full_iters:
            return 1.0
        past = iteration - config.attn_prior_full_iters
        return float(min(1.0, max(0.0, 1 - past / max(1, config.attn_prior_fade_iters))))


class Objective(HelpedObjective):
    """The model together with its losses, as one module, so that it can be distributed as one.

    Stages, by iteration: the aligner alone (`aligner_iters`), then the steps of flow, each from its
    `flow_start_iters`. With an aligner the flows attend under the prior around its path; without, under the
    beta-binomial prior and with the CTC loss, which fade out together after `attn_prior_full_iters`.
    """

    model: Flowtron

    def n_active(self, iteration: int) -> int:
        """Steps of flow that take part in an iteration."""
        starts = self.config.flow_start_iters
        return max(1, sum(1 for k in range(len(self.model.flows)) if k >= len(starts) or iteration >= starts[k]))

    def ctc_weight(self, iteration: int) -> float:
        """Weight of the CTC loss of attention."""
        if iteration < self.config.ctc_loss_start_iter:
            return 0.0
        return self.config.ctc_loss_weight * self.guidance(iteration)

    def _beta_binomial(self, batch: Batch) -> Tensor:
        if batch.attention_prior is not None:
            return batch.attention_prior
        priors = beta_binomial_priors(batch.n_frames, batch.n_tokens, self.scaling_factor, batch.mel.device)
        return priors.masked_fill(priors < self.threshold, 0.0)

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

    def _corrupt(self, frames: Tensor, step: int) -> Tensor:
        config = self.config
        if config.input_blur and step == 0:
            frames = blur_spans(frames, config.input_blur)
        if config.input_noise:
            frames = frames + config.input_noise * torch.randn_like(frames)
        if config.input_dropout:
            kept = torch.rand(frames.shape[:2], device=frames.device) >= config.input_dropout
            frames = frames * kept[..., None]
        return frames

    def forward(self, batch: Batch, iteration: int, shares: Tensor | None = None) -> Losses:
        """Compute the losses of a batch at an iteration.

        Args:
            batch: the utterances.
            iteration: decides on the stage.
            shares: (3,) weights of the means over frames, utterances and tokens, by which the batches of one
                optimizer step add up to the means over all of them; 1 when None.
        """
        config, model = self.config, self.model
        lengths = batch.n_frames, batch.n_tokens
        by_frame, by_item, by_token = (1.0, 1.0, 1.0) if shares is None else shares.unbind()
        if model.aligner is not None and iteration < config.aligner_iters:
            log_prob = self.align(batch)
            loss = by_item * forward_sum_loss(log_prob, batch.mel_lengths, batch.token_lengths, -1.0, lengths)
            return Losses(loss, {"aligner": loss.detach()}, None)
        named: dict[str, Tensor] = {}
        total = batch.mel.new_zeros(())
        prior = None
        if model.aligner is not None and model.duration_predictor is not None:
            durations = self.durations(batch)
            prior = path_prior(durations, batch.mel.shape[2], config.path_width)
            named["duration"] = by_token * model.duration_predictor.loss(
                batch.tokens, batch.token_lengths, batch.speaker_id, durations
            )
            total = total + named["duration"]
        elif self.use_prior and (weight := self.guidance(iteration)) > 0:
            prior = self._beta_binomial(batch)
            prior = prior if weight == 1 else prior**weight
        corrupts = self.training and (config.input_noise or config.input_dropout or config.input_blur)
        output = model(
            batch.mel,
            batch.mel_lengths,
            batch.tokens,
            batch.token_lengths,
            batch.speaker_id,
            attention_prior=prior,
            n_active=self.n_active(iteration),
            corrupt=self._corrupt if corrupts else None,
        )
        named["nll"] = by_frame * nll_loss(output, config.sigma)
        total = total + named["nll"]
        if config.gate_loss and output.gate_logits is not None:
            gate = gate_loss(output.gate_logits, output.mel_lengths, config.gate_positive_weight)
            named["gate"] = by_frame * gate
            total = total + named["gate"]
        if config.use_ctc_loss and model.aligner is None:
            ctc = attention_ctc_loss(output.steps, batch.token_lengths, config.blank_logprob, lengths)
            named["ctc"] = by_item * ctc
            if (weight := self.ctc_weight(iteration)) > 0:
                total = total + weight * named["ctc"]
        return Losses(total, {key: value.detach() for key, value in named.items()}, _detached(output))


def _detached(output: FlowtronOutput) -> FlowtronOutput:
    """Cut the output off the graph: what has a gradient there must also get one, when processes share them."""
    steps = [FlowAux(*(None if x is None else x.detach() for x in step)) for step in output.steps]  # type: ignore[arg-type]
    gate_logits = None if output.gate_logits is None else output.gate_logits.detach()
    mixture = None if output.mixture is None else type(output.mixture)(*(part.detach() for part in output.mixture))
    return FlowtronOutput(output.z.detach(), output.log_det.detach(), steps, gate_logits, mixture, output.mel_lengths)


class Tacotron2Objective(HelpedObjective):
    """A Tacotron 2 together with its losses: squared errors before and after the post-net, and the gate.

    Its attention may be helped as a Flowtron's is, by the beta-binomial prior, which fades out.
    """

    model: Tacotron2

    def _prior(self, batch: Batch, iteration: int) -> Tensor | None:
        weight = self.guidance(iteration) if self.use_prior else 0.0
        if weight == 0:
            return None
        steps = [-(-n // self.model.frames_per_step) for n in batch.n_frames]
        prior = beta_binomial_priors(steps, batch.n_tokens, self.scaling_factor, batch.mel.device)
        return prior.masked_fill(prior < self.threshold, 0.0) ** weight

    def forward(self, batch: Batch, iteration: int, shares: Tensor | None = None) -> Losses:
        """Compute the losses of a batch at an iteration; arguments as in `Objective.forward`."""
        config = self.config
        by_frame = 1.0 if shares is None else shares[0]
        output: Tacotron2Output = self.model(
            batch.mel,
            batch.mel_lengths,
            batch.tokens,
            batch.token_lengths,
            batch.speaker_id,
            attention_prior=self._prior(batch, iteration),
        )
        before, after = frame_errors(output, batch.mel)
        named = {"mel_before": by_frame * before, "mel": by_frame * after}
        if config.gate_loss:
            n_steps = -(-batch.mel_lengths // self.model.frames_per_step)
            named["gate"] = by_frame * gate_loss(output.gate_logits, n_steps, config.gate_positive_weight)
        total = torch.stack(list(named.values())).sum()
        detached = Tacotron2Output(
            output.mel_before.detach(),
            output.mel.detach(),
            output.gate_logits.detach(),
            output.step_attention.detach(),
            output.mel_lengths,
            output.frames_per_step,
        )
        return Losses(total, {key: value.detach() for key, value in named.items()}, detached)


def build_objective(model: AcousticModel, train: TrainConfig, data: DataConfig) -> Objective | Tacotron2Objective:
    """Put a model together with the losses of its kind."""
    arguments = train, data.betab_scaling_factor, data.use_attn_prior, data.attn_prior_threshold
    return Tacotron2Objective(model, *arguments) if isinstance(model, Tacotron2) else Objective(model, *arguments)
