"""The Gaussian mixture prior of z, with fixed or predicted components.

Letters: B batch, D mel channels, K components, C channels of the mel embedding.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Mixture(NamedTuple):
    """Parameters of a mixture over each mel channel: mean and log_var (1 or B, D, K), prob (B, K)."""

    mean: Tensor
    log_var: Tensor
    prob: Tensor

    def energy(self, z: Tensor) -> Tensor:
        """−log density of every channel and frame of z (B, D, T_mel), without its constant ½ log 2π."""
        deviation = (z[..., None] - self.mean[:, :, None]).square() * (-self.log_var[:, :, None]).exp()
        return -(self.prob.log()[:, None, None] - 0.5 * (deviation + self.log_var[:, :, None])).logsumexp(3)


class MixturePrior(nn.Module):
    """Σ_k prob_k N(mean_k, exp(log_var_k)) for every channel, prob from the utterance (Valle et al. 2020, sec. 4.5).

    Fixed components have variance 1, and mean `mean_scale` in one mel channel of their own, 0 in the others.
    """

    mean: Tensor | nn.Linear
    log_var: Tensor | nn.Linear

    def __init__(self, n_mels: int, embedding_dim: int, n_components: int, mean_scale: float, fixed: bool) -> None:
        super().__init__()
        if fixed and n_components > n_mels:
            raise ValueError(f"n_components is {n_components}, but fixed means need at most one per mel, {n_mels}.")
        self.n_mels, self.n_components, self.fixed = n_mels, n_components, fixed
        self.prob = nn.Linear(embedding_dim, n_components)
        if fixed:
            mean = torch.zeros(1, n_mels, n_components)
            mean[0, torch.randperm(n_mels)[:n_components], torch.arange(n_components)] = mean_scale
            self.register_buffer("mean", mean)
            self.register_buffer("log_var", torch.zeros(1, n_mels, n_components))
        else:
            self.mean = nn.Linear(embedding_dim, n_mels * n_components)
            self.log_var = nn.Linear(embedding_dim, n_mels * n_components)

    def unconditional(self) -> Mixture:
        """Return the mixture of an utterance nothing is known of: that of the embedding 0, the centre of its range."""
        return self(self.prob.weight.new_zeros(1, self.prob.in_features))

    def forward(self, embedding: Tensor) -> Mixture:
        """Return the mixture of utterances with mel embeddings (B, C)."""
        prob = self.prob(embedding).softmax(1)
        if isinstance(self.mean, Tensor):
            assert isinstance(self.log_var, Tensor)
            return Mixture(self.mean, self.log_var, prob)
        assert isinstance(self.log_var, nn.Linear)
        shape = (-1, self.n_mels, self.n_components)
        return Mixture(self.mean(embedding).reshape(shape), self.log_var(embedding).reshape(shape), prob)


def sample_mixture(
    mixture: Mixture, noise: Tensor, uniform: Tensor, sigma: float | Tensor = 1.0, component: int | None = None
) -> Tensor:
    """Draw from a mixture: mean_k + sigma · std_k · noise, with k of every frame and channel, as its density has it.

    Args:
        mixture: of one utterance.
        noise: (T_mel, D) of N(0, 1).
        uniform: (T_mel, D) in [0, 1], which decide k.
        sigma: factor on the components' standard deviations, or one for each frame (T_mel, 1).
        component: k of all frames and channels; None draws it by the mixture's probabilities.

    Returns:
        (T_mel, D).
    """
    mean, log_var, prob = mixture.mean[0], mixture.log_var[0], mixture.prob[0]
    if component is None:
        chosen = (uniform[..., None] > prob.cumsum(0)).sum(2).clamp(max=len(prob) - 1)
    else:
        chosen = torch.full(noise.shape, component, dtype=torch.long, device=noise.device)
    channel = torch.arange(mean.shape[0], device=noise.device)
    return mean[channel, chosen] + sigma * (0.5 * log_var[channel, chosen]).exp() * noise
