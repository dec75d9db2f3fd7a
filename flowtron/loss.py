"""The losses: negative log-likelihood of the mel, gate, and alignment.

Letters: B batch, T_mel frames, T_text tokens, D mel channels, K mixture components.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from flowtron.model.encoder import length_mask
from flowtron.model.flow import FlowAux
from flowtron.model.flowtron import FlowtronOutput
from flowtron.model.tacotron2 import Tacotron2Output

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)  # nats per dimension that the likelihoods below leave out


def nll_loss(output: FlowtronOutput, sigma: float = 1.0) -> Tensor:
    """Negative log-likelihood of the mel, in nats per valid frame and channel, without its constant.

    Gaussian: Σ z² / 2σ² − log|det|. Mixture, for every channel: −log Σ_k p_k N(z; mean_k, var_k), then the same.
    As in the original the constants log σ + ½ log 2π are left out; see `nats_per_dim`. Source: Valle et al. 2020,
    section 3.

    Args:
        output: of `Flowtron.forward`.
        sigma: standard deviation of z; a mixture has its own.
    """
    mask = length_mask(output.mel_lengths, output.z.shape[2])[:, None]
    if output.mixture is None:
        energy = (output.z.square() * mask).sum() / (2 * sigma**2)
    else:
        energy = (output.mixture.energy(output.z) * mask).sum()
    return (energy - output.log_det.sum()) / (mask.sum() * output.z.shape[1])


def nats_per_dim(nll: Tensor, sigma: float = 1.0, is_mixture: bool = False) -> Tensor:
    """Add to `nll_loss` the constant it leaves out, giving the true −log p(mel) per frame and channel."""
    return nll + HALF_LOG_TAU + (0.0 if is_mixture else math.log(sigma))


def gate_loss(gate_logits: Tensor, mel_lengths: Tensor, positive_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy of the gate, mean over valid frames; the target is 1 at the last processed frame.

    Args:
        gate_logits: (B, T_mel) in order of processing.
        mel_lengths: (B,).
        positive_weight: weight of the one positive frame.
    """
    position = torch.arange(gate_logits.shape[1], device=gate_logits.device)
    target = (position == mel_lengths[:, None] - 1).to(gate_logits.dtype)
    weight = gate_logits.new_full((), positive_weight)  # a tensor made of a number would wait for a GPU
    each = F.binary_cross_entropy_with_logits(gate_logits, target, pos_weight=weight, reduction="none")
    return (each * length_mask(mel_lengths, gate_logits.shape[1])).sum() / mel_lengths.sum()


def frame_errors(output: Tacotron2Output, mel: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared errors before and after a Tacotron 2's post-net, over valid frames and channels.

    Args:
        output: of teacher forcing.
        mel: (B, D, T_mel) true frames.
    """
    mask = length_mask(output.mel_lengths, mel.shape[2])[:, None]
    count = mask.sum() * mel.shape[1]
    before, after = (((x - mel).square() * mask).sum() / count for x in (output.mel_before, output.mel))
    return before, after


def alignment_nats(
    logprob: Tensor,
    mel_lengths: Tensor,
    token_lengths: Tensor,
    blank_logprob: float = -8.0,
    lengths: tuple[Sequence[int], Sequence[int]] | None = None,
    zero_infinity: bool = False,
) -> Tensor:
    """−log of the likelihood of all monotonic paths that visit every token in turn (B,): the CTC loss of each item.

    A blank of constant log weight stands beside the tokens; rows are normalised over both.

    Args:
        logprob: (B, T_mel, T_text) log weights, normalised or not.
        mel_lengths, token_lengths: (B,).
        blank_logprob: log weight of the blank.
        lengths: mel_lengths and token_lengths as plain numbers, where they are known: no GPU need be waited for.
        zero_infinity: 0 instead of infinity where there are fewer frames than tokens, and no gradient.
    """
    T_text = logprob.shape[2]
    mask = length_mask(token_lengths, T_text)[:, None]
    columns = F.pad(logprob.masked_fill(~mask, -1e9), (1, 0), value=blank_logprob)
    targets = torch.arange(1, T_text + 1, device=logprob.device).expand(logprob.shape[0], -1)
    n_frames, n_tokens = (mel_lengths, token_lengths) if lengths is None else map(torch.tensor, lengths)
    return F.ctc_loss(
        columns.log_softmax(2).transpose(0, 1),
        targets,
        n_frames,
        n_tokens,
        reduction="none",
        zero_infinity=zero_infinity,
    )


def forward_sum_loss(
    logprob: Tensor,
    mel_lengths: Tensor,
    token_lengths: Tensor,
    blank_logprob: float = -8.0,
    lengths: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Tensor:
    """Mean over items of `alignment_nats` per token; items with fewer frames than tokens count as 0.

    Args: as in `alignment_nats`. Source: Badlani et al. 2021 (arXiv 2108.10447), equation 4.
    """
    each = alignment_nats(logprob, mel_lengths, token_lengths, blank_logprob, lengths, zero_infinity=True)
    return (each / token_lengths).mean()


def attention_ctc_loss(
    steps: list[FlowAux],
    token_lengths: Tensor,
    blank_logprob: float = -8.0,
    lengths: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Tensor:
    """Mean of `forward_sum_loss` over the steps of flow; arguments as there."""
    each = [forward_sum_loss(s.attention_logprob, s.lengths, token_lengths, blank_logprob, lengths) for s in steps]
    return torch.stack(each).mean()
