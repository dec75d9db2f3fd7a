"""Optimizers, learning rate schedules and averaged weights, by the names of the config."""

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.radam import radam

from flowtron.config import TrainConfig
from flowtron.errors import InputError


class RAdam(torch.optim.RAdam):
    """torch's RAdam with decoupled weight decay, by AdamW's fused kernel from the sixth step on.

    Once the variance can be rectified, RAdam's step is AdamW's with the rate times r_t (Liu et al. 2019, arXiv
    1908.03265, algorithm 2).
    """

    found_inf: Tensor | None = None

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, decoupled_weight_decay=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step; there is nothing to compute anew for it."""
        for group in self.param_groups:
            # Parameters that are trained later, as a second step of flow, have taken fewer steps.
            by_count: dict[int, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if not (state := self.state[parameter]):
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                by_count.setdefault(int(state["step"]), []).append(parameter)
            for count, parameters in by_count.items():
                self._step_together(group, count + 1, parameters)

    def _step_together(self, group: dict[str, Any], number: int, parameters: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        states = [self.state[parameter] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        steps = [state["step"] for state in states]
        numbers = {"beta1": beta1, "beta2": beta2, "maximize": group["maximize"]}
        longest = 2 / (1 - beta2) - 1
        correction = 1 - beta2**number
        length = longest - 2 * number * beta2**number / correction
        if length <= 5:
            if self.found_inf is None or not bool(self.found_inf):  # a GPU is waited for in these few steps
                numbers |= {"lr": group["lr"], "weight_decay": group["weight_decay"], "eps": group["eps"]}
                radam(parameters, gradients, means, squares, steps, decoupled_weight_decay=True, **numbers)
            return
        rectification = math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
        # The kernel counts steps on the parameters' device; ours stay where nobody waits for them.
        counts = torch.full((len(parameters),), number - 1.0, device=parameters[0].device).unbind()
        adamw(
            parameters,
            gradients,
            means,
            squares,
            [],
            list(counts),
            fused=True,
            found_inf=self.found_inf,
            amsgrad=False,
            lr=group["lr"] * rectification,
            weight_decay=group["weight_decay"] / rectification,
            eps=group["eps"] / math.sqrt(correction),  # RAdam adds it to √v before the correction of v
            **numbers,
        )
        torch._foreach_add_(steps, 1)


def build_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Build the configured optimizer.

    RAdam has decoupled weight decay, which makes torch's step equal to the original's: a plain momentum step until the
    variance can be rectified.
    """
    parameters = list(parameters)
    rate, decay = config.learning_rate, config.weight_decay
    if config.optim_algo == "RAdam":
        return RAdam(parameters, lr=rate, weight_decay=decay)
    # The fused kernels exist for floating CPU and CUDA parameters, which is all there is here. Beside being fast they
    # leave out a step by a flag on the device (`skip_unless`).
    if config.optim_algo == "AdamW":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=True)


def skip_unless(optimizer: torch.optim.Optimizer, finite: Tensor) -> bool:
    """Make the next step do nothing unless `finite` (a boolean of no dimensions) is true.

    A fused optimizer looks at the flag itself, so that nobody waits for the device. The caller does for another one,
    and for RAdam on a CPU, where a step that was left out is not counted.

    Returns:
        Whether to take the step at all.
    """
    if optimizer.defaults.get("fused") or (isinstance(optimizer, RAdam) and finite.device.type != "cpu"):
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
