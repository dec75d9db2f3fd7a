"""Properties of the model in float64: inverse, log-determinant, padding, causality, identity at the start."""

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowtron.config import ModelConfig
from flowtron.errors import InputError
from flowtron.model import build_model
from flowtron.model.aligner import DurationPredictor, monotonic_durations, path_prior
from flowtron.model.attention import AttentionWindow
from flowtron.model.encoder import Dropout
from flowtron.model.flow import Context
from flowtron.model.graph import StaticStep

SMALL = {"n_text": 20, "n_text_dim": 8, "n_speaker_dim": 4, "n_hidden": 10, "n_attn_channels": 6, "n_mel_channels": 5}


def small_model(**values):
    """A tiny float64 model whose output layers are random, so that every path counts."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(**{**SMALL, "n_speakers": 3, "mel_encoder_n_hidden": 8, **values})).double().eval()
    for flow in model.flows:
        torch.nn.init.normal_(flow.conditioner.output.weight, std=0.3)
        torch.nn.init.normal_(flow.conditioner.output.bias, std=0.3)
    return model


def ragged_batch(mel_lengths=(9, 6, 7), token_lengths=(4, 1, 6), n_mels=5):
    generator = torch.Generator().manual_seed(1)
    B = len(mel_lengths)
    return {
        "mel": torch.randn(B, n_mels, max(mel_lengths), generator=generator, dtype=torch.float64),
        "mel_lengths": torch.tensor(mel_lengths),
        "tokens": torch.randint(0, 20, (B, max(token_lengths)), generator=generator),
        "token_lengths": torch.tensor(token_lengths),
        "speaker_id": torch.arange(B) % 3,
    }


def valid(x, lengths):
    """Zero x (B, D, T) at padding."""
    return x * (torch.arange(x.shape[2]) < lengths[:, None])[:, None]


VARIANTS = [
    {},
    {"use_cumm_attention": True},
    {"n_components": 3, "mean_scale": 2.0},
    {"n_components": 3, "fixed_gaussian": False},
    {"n_components": 1},
    {"use_gate_layer": False},
    {"mel_mean": -5.0, "mel_std": 2.0},
    {"dummy_speaker_embedding": True},
    {"n_lstm_layers": 1},
    {"n_lstm_layers": 3, "use_cumm_attention": True, "n_components": 3, "fixed_gaussian": False},
    {"n_components": 4, "mean_scale": 1.0, "dummy_speaker_embedding": True, "use_gate_layer": False},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("n_flows", [1, 2, 3])
def test_inverse_undoes_forward_and_forward_undoes_inverse(n_flows, variant):
    model, batch = small_model(n_flows=n_flows, **variant), ragged_batch()
    lengths = batch["mel_lengths"]
    texts = (batch["tokens"], batch["token_lengths"], batch["speaker_id"])
    output = model(**batch)
    sample = model.inverse(output.z, lengths, *texts)
    torch.testing.assert_close(sample.mel, valid(batch["mel"], lengths), atol=1e-9, rtol=0)
    z = valid(torch.randn_like(batch["mel"]), lengths)
    again = model(model.inverse(z, lengths, *texts).mel, lengths, *texts).z
    torch.testing.assert_close(again, z, atol=1e-9, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("n_flows", [1, 2, 3])
def test_inverse_with_prior_undoes_forward_with_prior(n_flows, temperature):
    model, batch = small_model(n_flows=n_flows), ragged_batch()
    prior = torch.rand(3, 9, 6, dtype=torch.float64)
    output = model(**batch, attention_prior=prior, temperature=temperature)
    texts = (batch["tokens"], batch["token_lengths"], batch["speaker_id"])
    sample = model.inverse(output.z, batch["mel_lengths"], *texts, attention_prior=prior, temperature=temperature)
    torch.testing.assert_close(sample.mel, valid(batch["mel"], batch["mel_lengths"]), atol=1e-9, rtol=0)
    for ours, theirs in zip(sample.attention, output.attention):
        frames = (torch.arange(9) < batch["mel_lengths"][:, None])[..., None]
        torch.testing.assert_close(ours, theirs * frames, atol=1e-9, rtol=0)


@pytest.mark.parametrize("variant", [{}, {"mel_mean": -5.0, "mel_std": 2.0}], ids=str)
@pytest.mark.parametrize("n_flows", [1, 2, 3])
def test_log_determinant_is_autograds(n_flows, variant):
    model, batch = small_model(n_flows=n_flows, **variant), ragged_batch((5,), (4,))
    rest = {key: value for key, value in batch.items() if key != "mel"}
    jacobian = torch.autograd.functional.jacobian(lambda mel: model(mel, **rest).z, batch["mel"])
    expected = torch.linalg.slogdet(jacobian.reshape(25, 25))[1]
    torch.testing.assert_close(model(**batch).log_det[0], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_padding_and_batch_mates_change_nothing(variant):
    model, batch = small_model(n_flows=2, **variant), ragged_batch()
    together = model(**batch)
    for b in range(3):
        T, N = int(batch["mel_lengths"][b]), int(batch["token_lengths"][b])
        single = {key: value[b : b + 1] for key, value in batch.items()}
        single["mel"], single["tokens"] = single["mel"][:, :, :T], single["tokens"][:, :N]
        alone = model(**single)
        torch.testing.assert_close(together.z[b : b + 1, :, :T], alone.z, atol=1e-10, rtol=0)
        torch.testing.assert_close(together.log_det[b : b + 1], alone.log_det, atol=1e-10, rtol=0)
        for ours, theirs in zip(together.attention, alone.attention):
            torch.testing.assert_close(ours[b : b + 1, :T, :N], theirs, atol=1e-10, rtol=0)
        if alone.mixture is not None:
            torch.testing.assert_close(together.mixture.prob[b : b + 1], alone.mixture.prob, atol=1e-10, rtol=0)


@pytest.mark.parametrize("n_flows", [1, 2])
def test_causality_of_the_last_step(n_flows):
    """Changing what enters the last step at frame 3 leaves its earlier (even) or later (odd) scales alone."""
    model, batch = small_model(n_flows=n_flows), ragged_batch((7,), (4,))
    encoded = model.encode(batch["tokens"], batch["token_lengths"], batch["speaker_id"])
    from flowtron.model.flow import Context

    context = Context(encoded, torch.ones(1, 4, dtype=torch.bool), batch["mel_lengths"])
    frames = batch["mel"].transpose(1, 2)
    changed = frames.clone()
    changed[:, 3] += 1
    before, after = (model.flows[-1](x, context)[2].log_scale for x in (frames, changed))
    differs = (before != after).any(2)[0]
    expected = torch.arange(7) < 3 if n_flows == 2 else torch.arange(7) > 3
    assert torch.equal(differs, expected)


@pytest.mark.parametrize("n_flows", [1, 2, 3])
def test_untrained_model_is_the_identity(n_flows):
    model = build_model(ModelConfig(**SMALL, n_flows=n_flows)).double().eval()
    batch = {**ragged_batch(), "speaker_id": torch.zeros(3, dtype=torch.long)}
    output = model(**batch)
    assert torch.equal(output.z, valid(batch["mel"], batch["mel_lengths"]))
    assert torch.equal(output.log_det, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("n_flows", [1, 2])
def test_sixteen_texts_at_once_equal_sixteen_alone(n_flows):
    """Different lengths, speakers, limits and gate stops."""
    model = small_model(n_flows=n_flows)
    generator = torch.Generator().manual_seed(3)
    token_lengths = torch.randint(1, 12, (16,), generator=generator)
    tokens = torch.randint(0, 20, (16, int(token_lengths.max())), generator=generator)
    z_lengths = torch.randint(5, 30, (16,), generator=generator)
    z = torch.randn(16, 5, int(z_lengths.max()), generator=generator, dtype=torch.float64)
    speaker = torch.arange(16) % 3
    together = model.inverse(z, z_lengths, tokens, token_lengths, speaker, gate_threshold=0.55)
    stopped = 0
    for b in range(16):
        T, N = int(z_lengths[b]), int(token_lengths[b])
        row = slice(b, b + 1)
        alone = model.inverse(
            z[row, :, :T], z_lengths[row], tokens[row, :N], token_lengths[row], speaker[row], gate_threshold=0.55
        )
        length = int(alone.mel_lengths)
        stopped += length < T
        assert int(together.mel_lengths[b]) == length
        torch.testing.assert_close(together.mel[b, :, :length], alone.mel[0], atol=1e-9, rtol=0)
        for ours, theirs in zip(together.attention, alone.attention):
            torch.testing.assert_close(ours[b, :length, :N], theirs[0, :length], atol=1e-9, rtol=0)
    assert 0 < stopped < 16, "the threshold should stop some and not others"


def test_gradients_flow_in_evaluation_mode():
    model, batch = small_model(n_flows=2), ragged_batch()
    mel = batch["mel"].clone()
    model(**batch).z.square().sum().backward()
    assert torch.equal(mel, batch["mel"]), "the caller's mel must not change"
    assert model.text_encoder.convs[0].weight.grad is not None


def test_temperature_is_of_one_call():
    model, batch = small_model(n_flows=2), ragged_batch()
    before = model(**batch).z
    assert not torch.allclose(model(**batch, temperature=0.5).z, before)
    assert torch.equal(model(**batch).z, before)


def test_too_many_fixed_components_are_refused():
    with pytest.raises(InputError, match="n_components is 6"):
        build_model(ModelConfig(**SMALL, n_components=6))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(0, 12), st.integers(0, 2**31))
def test_monotonic_durations_are_the_best_path(n_tokens, extra, seed):
    """Against a search over all ways to cut the frames into stretches."""
    from itertools import combinations

    T = n_tokens + extra % 5
    log_prob = torch.randn(1, T, n_tokens, generator=torch.Generator().manual_seed(seed))
    durations = monotonic_durations(log_prob, torch.tensor([T]), torch.tensor([n_tokens]))[0]
    assert durations.sum() == T and durations.min() >= 1

    def score(cuts):
        edges = [0, *cuts, T]
        return sum(float(log_prob[0, edges[n] : edges[n + 1], n].sum()) for n in range(n_tokens))

    best = max(score(cuts) for cuts in combinations(range(1, T), n_tokens - 1))
    ours = score(durations.cumsum(0)[:-1].tolist())
    assert ours == pytest.approx(best, abs=1e-4)


def test_path_prior_is_one_on_the_path_and_falls_off_it():
    prior = path_prior(torch.tensor([[2, 3, 0]]), n_frames=6, width=1.0)[0]
    assert torch.equal(prior[:2, 0], torch.ones(2)) and torch.equal(prior[2:5, 1], torch.ones(3))
    assert prior[2, 0] == pytest.approx(float(torch.tensor(-0.125).exp()))
    assert prior[4, 0] < prior[3, 0] < prior[2, 0] < 1


@pytest.mark.parametrize("values", [{}, {"use_gate_layer": False}, {"n_components": 1}, {"n_flows": 1}], ids=str)
def test_one_token_and_one_frame(values):
    model = small_model(**values)
    batch = ragged_batch((1, 1), (1, 1))
    output = model(**batch)
    sample = model.inverse(output.z, batch["mel_lengths"], batch["tokens"], batch["token_lengths"], batch["speaker_id"])
    torch.testing.assert_close(sample.mel, batch["mel"], atol=1e-9, rtol=0)
    output.z.sum().backward()


@pytest.mark.parametrize("variant", [{}, {"use_cumm_attention": True}], ids=str)
@pytest.mark.parametrize("windowed", [True, False])
def test_frames_over_static_tensors_are_those_of_the_inverse(variant, windowed, monkeypatch):
    """What a CUDA graph replays, run without one."""
    model = small_model(**variant).requires_grad_(False)
    batch = ragged_batch()
    z = torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    arguments = (z, batch["mel_lengths"], batch["tokens"], batch["token_lengths"], batch["speaker_id"])
    prior = torch.rand(3, 9, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    options = {
        "attention_prior": None if windowed else prior,
        "window": AttentionWindow(patience_frames=2) if windowed else None,
        "gate_threshold": 0.6,
    }
    wanted = model.inverse(*arguments, **options)
    assert wanted.mel_lengths.tolist() != batch["mel_lengths"].tolist()
    monkeypatch.setattr("flowtron.model.flow._EagerStep", StaticStep)
    static = model.inverse(*arguments, **options)
    torch.testing.assert_close(static.mel, wanted.mel)
    assert static.mel_lengths.equal(wanted.mel_lengths)
    for here, there in zip(static.attention, wanted.attention):
        torch.testing.assert_close(here, there)


def test_a_graph_is_captured_on_the_device_of_its_tensors(monkeypatch):
    """Of several GPUs the current one need not be the model's."""
    entered = []

    class Device(contextlib.AbstractContextManager):
        def __init__(self, device):
            entered.append(device)

        def __exit__(self, *exception):
            entered.append("left")

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(StaticStep, "_capture", lambda self: entered.append("captured"))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    model, batch = small_model(), ragged_batch()
    encoded = torch.zeros(3, 6, 5, dtype=torch.float64)
    context = Context(encoded, torch.ones(3, 6, dtype=torch.bool), batch["mel_lengths"])
    z = torch.zeros(3, 9, 5, dtype=torch.float64)
    StaticStep(model.flows[0].conditioner, (encoded, encoded), context, z)
    assert entered == [z.device, "captured", "left"]


def test_a_duration_that_little_is_known_of_does_not_run_away():
    predictor = DurationPredictor(20, 2, 8).eval()
    torch.nn.init.zeros_(predictor.output.weight)
    texts = torch.randint(1, 20, (1, 50)), torch.tensor([50]), torch.tensor([0])
    frames = []
    for log_std in (-2.3, 1.0):
        predictor.output.bias.data = torch.tensor([1.0, log_std])
        frames.append(int(predictor.sample(*texts).sum()))
    assert frames[0] < frames[1] < 2 * frames[0]


@pytest.mark.parametrize("sigma", [0.0, 0.2, 1.0])
def test_the_mean_duration_does_not_depend_on_sigma(sigma):
    torch.manual_seed(0)
    predictor = DurationPredictor(20, 2, 8).eval()
    predictor.output.bias.data = torch.tensor([1.0, -0.7])
    n, draws = 50, 400
    texts = torch.randint(1, 20, (1, n)).expand(draws, n), torch.full((draws,), n), torch.zeros(draws).long()
    expected = float(predictor.sample(*(each[:1] for each in texts)).sum())
    drawn = float(predictor.sample(*texts, torch.randn(draws, n), sigma).sum(1).float().mean())
    # Whole frames, of which every token has one at least, lengthen the shortest a little.
    assert expected * 0.99 < drawn < expected * 1.02


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_a_share_and_keeps_the_mean(p):
    module = Dropout(p)
    x = torch.ones(200, 500, requires_grad=True)
    y = module(x)
    y.sum().backward()
    kept = y != 0
    assert abs(float(kept.float().mean()) - (1 - p)) < 0.01
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)))
    assert torch.equal(x.grad, y)
    assert module(x.detach().bfloat16()).dtype == torch.bfloat16
    assert torch.equal(module.eval()(x), x)
