"""The optimizers against twelve recorded steps of the original's RAdam."""

import copy
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


def test_radam_is_torchs_with_steps_counted_for_each_parameter():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.full((40,), float(k))) for k in range(3)] for _ in range(2))
    optimizer = build_optimizer(ours, TrainConfig(learning_rate=0.01, weight_decay=0.1))
    reference = torch.optim.RAdam(theirs, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True)
    for number in range(60):
        for k, (own, other) in enumerate(zip(ours, theirs)):
            if number >= 7 * k:  # a step of flow that begins later
                own.grad = other.grad = torch.randn(40, generator=generator)
        optimizer.step()
        reference.step()
        if number == 30:  # a state of torch's is ours
            optimizer.load_state_dict(copy.deepcopy(reference.state_dict()))
    for own, other in zip(ours, theirs):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-6)
        assert float(optimizer.state[own]["step"]) == float(reference.state[other]["step"])
