"""Optimizers, learning rate schedules and averaged weights, by the names of the config."""

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flowtron.config import TrainConfig
from flowtron.errors import InputError


def build_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Build the configured optimizer.

    RAdam has decoupled weight decay, which makes torch's step equal to the original's (Liu et al. 2019,
    arXiv 1908.03265): a plain momentum step until the variance can be rectified.
    """
    parameters = list(parameters)
    rate, decay = config.learning_rate, config.weight_decay
    if config.optim_algo == "RAdam":
        return torch.optim.RAdam(parameters, lr=rate, weight_decay=decay, decoupled_weight_decay=True)
    # The fused kernels exist for floating CPU and CUDA parameters, which is all there is here. Beside being fast they
    # leave out a step by a flag on the device (`skip_unless`).
    if config.optim_algo == "AdamW":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=True)


def skip_unless(optimizer: torch.optim.Optimizer, finite: Tensor) -> bool:
    """Make the next step do nothing unless `finite` (a boolean of no dimensions) is true.

    A fused optimizer looks at the flag itself, so that nobody waits for the device. For another one the caller does.

    Returns:
        Whether to take the step at all.
    """
    if optimizer.defaults.get("fused"):
        optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()  # type: ignore[attr-defined]
        return True
    return bool(finite)


class Schedule:
    """Learning rate over iterations: warm-up, then constant, cosine to the last iteration, or plateau halving."""

    def __init__(self, optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
        if config.lr_schedule == "cosine" and not config.max_iters:
            raise InputError(
                "train_config.lr_schedule is cosine, which ends at max_iters, but that is 0; set max_iters."
            )
        self.optimizer, self.config = optimizer, config
        self.plateau_factor = 1.0
        self.best = math.inf
        self.stale = 0

    def rate(self, iteration: int) -> float:
        """Return the learning rate of an iteration (from 0)."""
        config = self.config
        factor = min(1.0, (iteration + 1) / config.lr_warmup_iters) if config.lr_warmup_iters else 1.0
        if config.lr_schedule == "cosine":
            progress = min(1.0, iteration / config.max_iters)
            factor *= config.lr_final_ratio + (1 - config.lr_final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
        return config.learning_rate * factor * self.plateau_factor

    def apply(self, iteration: int) -> float:
        """Set the optimizer's learning rate for an iteration and return it."""
        rate = self.rate(iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def validated(self, loss: float) -> bool:
        """Note a validation loss; return whether it is the best so far. A plateau halves the learning rate."""
        if loss < self.best:
            self.best, self.stale = loss, 0
            return True
        self.stale += 1
        if self.config.lr_schedule == "plateau" and self.stale % self.config.lr_patience == 0:
            self.plateau_factor = max(self.plateau_factor / 2, self.config.lr_final_ratio)
        return False

    @property
    def is_exhausted(self) -> bool:
        """Whether early stopping is due."""
        return 0 < self.config.early_stop_patience <= self.stale

    def state_dict(self) -> dict[str, float]:
        """Return what must be kept to resume."""
        return {"plateau_factor": self.plateau_factor, "best": self.best, "stale": self.stale}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up where `state_dict` left."""
        self.plateau_factor, self.best, self.stale = state["plateau_factor"], state["best"], int(state["stale"])


class Average(nn.Module):
    """Exponential moving average of a model's weights, for inference: w̄ ← decay · w̄ + (1 − decay) · w.

    It starts with the weights of the first update, so that none of the random initial values remain.
    """

    n_updates: Tensor

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def update(self, model: nn.Module, finite: Tensor) -> None:
        """Move towards the present weights of the model, unless `finite` (a boolean of no dimensions) is false.

        A GPU is not waited for: a step that was left out moves the average by nothing.
        """
        averages, weights = [tuple(m.parameters()) for m in (self.module, model)]
        share = torch.where(self.n_updates == 0, 1.0, 1 - self.decay) * finite
        if share.device.type == "cpu":
            if share > 0:
                torch._foreach_lerp_(averages, weights, float(share))
        else:
            towards = torch._foreach_sub(weights, averages)
            torch._foreach_mul_(towards, share)
            torch._foreach_add_(averages, towards)
        for average, value in zip(self.module.buffers(), model.buffers()):
            average.copy_(value)
        self.n_updates += finite

    def get_extra_state(self) -> int:
        """Return the number of updates, to be kept with the weights."""
        return int(self.n_updates)

    def set_extra_state(self, state: int) -> None:
        """Take up the number of updates."""
        self.n_updates.fill_(state)
