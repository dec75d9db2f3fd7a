"""The compiled LSTM layer against torch's in float64."""

import pytest
import torch
from torch import nn

from flowtron.kernels import lstm as module
from flowtron.kernels.lstm import LSTM, lstm
from flowtron.model.encoder import run_both_ways


@pytest.fixture(params=["kernel", "fallback"])
def path(request, monkeypatch):
    """Run a test with the compiled kernel and without it."""
    if request.param == "fallback":
        monkeypatch.setattr(module, "load_library", lambda name: None)
    else:
        assert module.load_library("lstm") is not None


@pytest.mark.parametrize("shape", [(1, 1, 3, 16), (3, 9, 5, 32), (7, 20, 80, 48), (17, 4, 8, 16)])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("with_state", [True, False])
def test_output_state_and_gradients_equal_torch(path, shape, threads, with_state):
    batch, frames, inputs, hidden = shape
    torch.manual_seed(0)
    reference = nn.LSTM(inputs, hidden, batch_first=True).double()
    x = torch.randn(batch, frames, inputs, dtype=torch.float64, requires_grad=True)
    state = [torch.randn(batch, hidden, dtype=torch.float64, requires_grad=True) for _ in range(2)] * with_state
    wanted, (h, c) = reference(x, tuple(s[None] for s in state) or None)
    wanted = [wanted, h[0], c[0]]
    weights = [torch.randn_like(w) for w in wanted]
    leaves = [x, *state, *reference.parameters()]
    gradients = torch.autograd.grad(sum((w * y).sum() for w, y in zip(weights, wanted)), leaves)

    ours = [leaf.detach().float().requires_grad_() for leaf in leaves]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        output, last = lstm(ours[0], *ours[1 + len(state) :], tuple(ours[1 : 1 + len(state)]) or None)
        loss = sum((w.float() * y).sum() for w, y in zip(weights, (output, *last)))
        our_gradients = torch.autograd.grad(loss, ours)
    finally:
        torch.set_num_threads(before)
    for got, exact in zip((output, *last), wanted):
        torch.testing.assert_close(got.double(), exact, atol=2e-6, rtol=1e-5)
    for got, exact in zip(our_gradients, gradients):
        torch.testing.assert_close(got.double(), exact, atol=1e-5 * exact.abs().max().item(), rtol=1e-5)


def test_a_layer_without_biases(path):
    torch.manual_seed(0)
    reference = nn.LSTM(5, 32, batch_first=True, bias=False)
    x = torch.randn(3, 9, 5)
    exact, _ = reference(x)
    output, _ = lstm(x, reference.weight_ih_l0, reference.weight_hh_l0, None, None)
    torch.testing.assert_close(output, exact, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(output.square().sum(), list(reference.parameters())),
        torch.autograd.grad(exact.square().sum(), list(reference.parameters())),
        atol=1e-4,
        rtol=1e-4,
    )


def test_layers_of_the_module_equal_torch(path):
    torch.manual_seed(0)
    ours = LSTM(12, 32, 2)
    reference = nn.LSTM(12, 32, 2, batch_first=True)
    reference.load_state_dict(ours.state_dict())
    x = torch.randn(3, 14, 12)
    first, state = ours(x[:, :6])
    second, state = ours(x[:, 6:], state)
    wanted, wanted_state = reference(x)
    torch.testing.assert_close(torch.cat([first, second], 1), wanted, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(state, wanted_state, atol=2e-6, rtol=1e-5)


def test_saturated_gates_stay_finite(path):
    layer = LSTM(2, 16)
    x = torch.tensor([[[1e4, -1e4], [-1e4, 1e4]]], requires_grad=True)
    output, _ = layer(x)
    output.sum().backward()
    assert output.isfinite().all() and x.grad.isfinite().all()


def test_backward_twice_gives_the_same_gradients():
    layer = LSTM(8, 16)
    x = torch.randn(2, 5, 8, requires_grad=True)
    loss = layer(x)[0].square().sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], first, rtol=0, atol=0)


@pytest.mark.parametrize("batch", [1, 3, 13])
@pytest.mark.parametrize("hidden", [16, 48])
def test_autocast_stays_near_float32_over_many_frames(batch, hidden):
    """Products are rounded, but neither their sums nor the cell, so that errors do not grow with the frames."""
    torch.manual_seed(0)
    layer = LSTM(24, hidden)
    x = torch.randn(batch, 200, 24)
    exact, _ = layer(x)
    exact.square().sum().backward()
    gradients = [weight.grad.clone() for weight in layer.parameters()]
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        got, (h, c) = layer(x)
    got.float().square().sum().backward()
    assert (got.dtype, h.dtype, c.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    torch.testing.assert_close(got.float(), exact, atol=2e-2, rtol=0)
    for weight, gradient in zip(layer.parameters(), gradients):
        assert weight.grad.dtype == torch.float32
        torch.testing.assert_close(weight.grad, gradient, atol=2e-2 * gradient.abs().max().item(), rtol=0)


def test_autocast_is_exact_where_rounding_takes_nothing():
    """Weights and states that bfloat16 holds: what differs is the rounding of inputs' products and outputs alone."""
    torch.manual_seed(0)
    layer = LSTM(5, 32)
    for weight in layer.parameters():
        weight.data = weight.data.bfloat16().float()
    x, state = torch.randn(2, 1, 5).bfloat16().float(), torch.randn(2, 1, 2, 32).bfloat16().float()
    _, (h, c) = nn.LSTM.forward(layer.to(torch.float64), x.double(), (state[0].double(), state[1].double()))
    with torch.autocast("cpu", torch.bfloat16):
        got, (our_h, our_c) = layer.float()(x, (state[0], state[1]))
    torch.testing.assert_close(our_h.double(), h, atol=4e-3, rtol=0)
    torch.testing.assert_close(our_c.double(), c, atol=4e-3, rtol=0)
    assert got[:, 0].equal(our_h[0].bfloat16())


def test_not_a_number_stays_one_in_bfloat16():
    layer = LSTM(2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = layer(torch.tensor([[[0.0, float("nan")]] * 3]))
    assert output.isnan().all()


def test_both_ways_without_packing_equal_a_packed_bidirectional_layer(path):
    torch.manual_seed(0)
    module = nn.LSTM(12, 16, batch_first=True, bidirectional=True)
    x, lengths = torch.randn(3, 9, 12), torch.tensor([9, 4, 1])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    wanted, _ = nn.utils.rnn.pad_packed_sequence(module(packed)[0], batch_first=True)
    torch.testing.assert_close(run_both_ways(module, x, lengths), wanted, atol=2e-6, rtol=1e-5)
