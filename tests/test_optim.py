"""The optimizers against twelve recorded steps of the original's RAdam."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flowtron.config import TrainConfig
from flowtron.optim import build_optimizer

DATA = Path(__file__).parent / "data" / "radam"


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_radam_steps_like_the_original(weight_decay):
    inputs, recorded = np.load(DATA / "inputs.npz"), np.load(DATA / "outputs.npz")
    parameters = [torch.nn.Parameter(torch.from_numpy(inputs[f"p{j}"])) for j in range(2)]
    config = TrainConfig(optim_algo="RAdam", learning_rate=0.01, weight_decay=weight_decay)
    optimizer = build_optimizer(parameters, config)
    for i in range(12):
        for j, parameter in enumerate(parameters):
            parameter.grad = torch.from_numpy(inputs[f"g{j}_{i}"])
        optimizer.step()
        for j, parameter in enumerate(parameters):
            expected = recorded[f"wd{weight_decay}_p{j}_{i}"]
            np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-6, atol=1e-6)
