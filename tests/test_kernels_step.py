"""The compiled loop of a step against the flow's own inverse in float64."""

import pytest
import torch

from flowtron.kernels.step import run_step
from flowtron.kernels.step_weights import StepWeights, by_gate, by_unit, pack
from flowtron.model.attention import AttentionWindow
from flowtron.model.encoder import length_mask
from flowtron.model.flow import AffineFlow, Conditioner, Context


def conditioner(hidden=48, attention=20, encoded=13, layers=2, gate=True, n_mels=10, seed=0):
    torch.manual_seed(seed)
    made = Conditioner(n_mels, encoded, hidden, attention, layers, gate).eval()
    torch.nn.init.normal_(made.output.weight, std=0.3 / hidden**0.5)
    torch.nn.init.normal_(made.output.bias, std=0.1)
    return made.requires_grad_(False)


def inputs(batch, frames, tokens, encoded=13, n_mels=10, seed=1):
    torch.manual_seed(seed)
    token_lengths = torch.randint(1, tokens + 1, (batch,))
    token_lengths[0] = tokens
    lengths = torch.randint(1, frames + 1, (batch,))
    lengths[-1] = frames
    mask = torch.arange(tokens) < token_lengths[:, None]
    z, text = torch.randn(batch, frames, n_mels), torch.randn(batch, tokens, encoded)
    return z, text, mask, lengths, torch.rand(batch, frames, tokens)


def reference(made, z, text, mask, lengths, prior, temperature, threshold=None):
    exact = conditioner_in_float64(made)
    context = Context(text.double(), mask, lengths, None if prior is None else prior.double(), None, temperature)
    return AffineFlow(exact).inverse(z.double(), context, gate_threshold=threshold)


def conditioner_in_float64(made):
    exact = Conditioner(
        made.attention_lstm.input_size,
        made.attention.key.in_features,
        made.attention_lstm.hidden_size,
        made.attention.key.out_features,
        made.lstm.num_layers,
        made.gate is not None,
    ).double()
    exact.load_state_dict(made.state_dict())
    return exact.requires_grad_(False)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 16, 17])
@pytest.mark.parametrize("with_prior", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_float32_equals_the_inverse_in_float64(batch, with_prior, threads, monkeypatch):
    monkeypatch.setattr("flowtron.kernels.step.WEIGHTS_PER_THREAD", 1)  # or so small a model would run on one
    made = conditioner()
    z, text, mask, lengths, prior = inputs(batch, 30, 9)
    prior = prior if with_prior else None
    wanted, aux = reference(made, z, text, mask, lengths, prior, 0.8)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        weights = StepWeights.from_conditioner(made)
        result = run_step(weights, z, *made.memory(text), mask, prior, None, lengths, temperature=0.8)
    finally:
        torch.set_num_threads(before)
    valid = torch.arange(30) < lengths[:, None]
    torch.testing.assert_close(result.x.double(), wanted, atol=2e-5, rtol=0)
    torch.testing.assert_close(result.attention.double(), aux.attention, atol=2e-6, rtol=0)
    torch.testing.assert_close(result.gate_logits.double(), aux.gate_logits * valid, atol=2e-5, rtol=0)
    assert result.lengths.tolist() == lengths.tolist()


def test_200_frames_stay_within_1e_4_of_float64():
    made = conditioner(hidden=64, n_mels=80)
    z, text, mask, lengths, _ = inputs(1, 200, 20, n_mels=80)
    wanted, _ = reference(made, z, text, mask, lengths, None, 1.0)
    result = run_step(StepWeights.from_conditioner(made), z, *made.memory(text), mask)
    assert (result.x - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("batch", [2, 17])
@pytest.mark.parametrize(("layers", "hidden", "attention", "gate"), [(1, 40, 7, False), (3, 8, 33, True)])
def test_other_sizes(layers, hidden, attention, gate, batch):
    made = conditioner(hidden, attention, layers=layers, gate=gate)
    z, text, mask, lengths, _ = inputs(batch, 12, 6)
    wanted, _ = reference(made, z, text, mask, lengths, None, 1.0)
    result = run_step(StepWeights.from_conditioner(made), z, *made.memory(text), mask, None, None, lengths)
    torch.testing.assert_close(result.x.double(), wanted, atol=2e-5, rtol=0)
    assert (result.gate_logits is not None) == gate


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.int8, 0.05)])
@pytest.mark.parametrize("batch", [1, 5, 17])
def test_narrow_weights_stay_near(dtype, tolerance, batch):
    made = conditioner()
    z, text, mask, lengths, _ = inputs(batch, 20, 9)
    wanted, _ = reference(made, z, text, mask, lengths, None, 1.0)
    weights = StepWeights.from_conditioner(made, dtype)
    error = (run_step(weights, z, *made.memory(text), mask, None, None, lengths).x - wanted).abs().max()
    assert 1e-6 < error < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("batch", [1, 2, 3, 16, 17])
def test_narrow_weights_are_those_of_the_rounded_conditioner(dtype, batch):
    made = conditioner(hidden=40)
    z, text, mask, lengths, _ = inputs(batch, 20, 9)
    weights = StepWeights.from_conditioner(made, dtype)
    layers = [(made.attention_lstm, 0, weights.attention_lstm)]
    layers += [(made.lstm, i, layer) for i, layer in enumerate(weights.lstm)]
    for module, index, layer in layers:
        parts = [layer.below, *([] if layer.context is None else [layer.context])]
        getattr(module, f"weight_ih_l{index}").data = by_gate(torch.cat([part.dense() for part in parts], 1))
        getattr(module, f"weight_hh_l{index}").data = by_gate(layer.recurrent.dense())
    made.attention.query.weight.data = weights.query.dense()
    for module, matrix in zip(made.dense, weights.dense):
        module.weight.data = matrix.dense()
    wanted, _ = reference(made, z, text, mask, lengths, None, 1.0)
    result = run_step(weights, z, *made.memory(text), mask, None, None, lengths)
    torch.testing.assert_close(result.x.double(), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("tail", [0, 3])
def test_window_and_given_attention_equal_the_inverse(backward, tail):
    made = conditioner()
    z, text, mask, lengths, given = inputs(4, 40, 9)
    context = Context(text, mask, lengths, window=AttentionWindow(1, 2, 4, tail, backward))
    made.gate.bias += 20.0  # fires at once, and counts near the end of the text alone
    weights = StepWeights.from_conditioner(made)
    for threshold in (None, 0.5):
        wanted, aux = AffineFlow(made).inverse(z, context, threshold)
        made_here, here = AffineFlow(made).inverse(z, context, threshold, weights)
        assert here.lengths.tolist() == aux.lengths.tolist()
        assert (tail > 0 or threshold is not None) == bool((aux.lengths < lengths).any())
    torch.testing.assert_close(made_here, wanted, atol=2e-5, rtol=0)
    context = Context(text, mask, lengths, attention=given * mask[:, None])
    wanted, aux = AffineFlow(made).inverse(z, context)
    made_here, here = AffineFlow(made).inverse(z, context, weights=weights)
    torch.testing.assert_close(made_here, wanted, atol=2e-5, rtol=0)
    torch.testing.assert_close(here.gate_logits, aux.gate_logits * length_mask(lengths, 40), atol=2e-5, rtol=0)


def test_gate_stops_each_item_after_its_frame():
    made = conditioner()
    z, text, mask, _, _ = inputs(4, 40, 9)
    lengths = torch.full((4,), 40)
    _, free = reference(made, z, text, mask, lengths, None, 1.0)
    threshold = free.gate_logits.sigmoid().flatten().quantile(0.95).item() + 1e-4
    wanted, aux = reference(made, z, text, mask, lengths, None, 1.0, threshold)
    assert aux.lengths.min() < 40
    result = run_step(
        StepWeights.from_conditioner(made), z, *made.memory(text), mask, None, None, lengths, gate_threshold=threshold
    )
    assert result.lengths.tolist() == aux.lengths.tolist()
    torch.testing.assert_close(result.x[:, : wanted.shape[1]].double(), wanted, atol=2e-5, rtol=0)
    assert (result.x[:, wanted.shape[1] :] == 0).all()
    assert lengths.tolist() == [40] * 4


@pytest.mark.parametrize("batch", [2, 3, 16, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_items_are_the_same_alone_to_the_last_bit(dtype, batch):
    made = conditioner(hidden=136)
    z, text, mask, lengths, prior = inputs(batch, 12, 9)
    weights = StepWeights.from_conditioner(made, dtype)
    keys, values = made.memory(text)
    together = run_step(weights, z, keys, values, mask, prior, None, lengths)
    for i in range(batch):
        one, n = slice(i, i + 1), int(mask[i].sum())
        memory = keys[one, :n], values[one, :n], mask[one, :n]
        alone = run_step(weights, z[one], *memory, prior[one, :, :n], None, lengths[one])
        assert alone.x.equal(together.x[one])
        assert alone.gate_logits.equal(together.gate_logits[one])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_packing_and_back(dtype):
    weight = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    step = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.int8: 1 / 254}[dtype]
    assert (pack(weight, dtype).dense() - weight).abs().max() <= step * weight.abs().max() * 1.001
    assert pack(weight, dtype).n_bytes == 64 * 7 * dtype.itemsize + (64 * 4 if dtype == torch.int8 else 0)
    order = torch.arange(4 * 24)
    assert by_gate(by_unit(order)).equal(order)


def test_a_large_weight_costs_only_its_own_group_in_int8():
    weight = torch.full((32, 70), 0.01)
    weight[:, 40] = 1.0
    error = (pack(weight, torch.int8).dense() - weight).abs().amax(0)
    assert error[:32].max() < 1e-6 and error[64:].max() < 1e-6 and error[32:64].max() > 1e-3


def test_refuses_what_it_cannot_run():
    with pytest.raises(ValueError, match="not known to the step kernel"):
        StepWeights.from_conditioner(conditioner(), torch.float16)
    with pytest.raises(ValueError, match="multiple of 8"):
        StepWeights.from_conditioner(conditioner(hidden=12))


def test_says_when_it_is_not_available(monkeypatch):
    made = conditioner()
    z, text, mask, _, _ = inputs(1, 3, 9)
    monkeypatch.setattr("flowtron.kernels.step.load_library", lambda name: None)
    with pytest.raises(RuntimeError, match="C\\+\\+ compiler"):
        run_step(StepWeights.from_conditioner(made), z, *made.memory(text), mask)
