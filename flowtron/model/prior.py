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

    def forward(self, embedding: Tensor) -> Mixture:
        """Return the mixture of utterances with mel embeddings (B, C)."""
        prob = self.prob(embedding).softmax(1)
        if isinstance(self.mean, Tensor):
            assert isinstance(self.log_var, Tensor)
            return Mixture(self.mean, self.log_var, prob)
        assert isinstance(self.log_var, nn.Linear)
        shape = (-1, self.n_mels, self.n_components)
        return Mixture(self.mean(embedding).reshape(shape), self.log_var(embedding).reshape(shape), prob)
