"""Numbers at the edges: reduced precision, extreme settings and lengths, any number of threads."""

import pytest
import torch

from flowtron.config import ModelConfig
from flowtron.inference import SamplingOptions, Utterance, pack_weights, synthesize_mels
from flowtron.loss import attention_ctc_loss, gate_loss, nll_loss
from flowtron.model import build_model
from flowtron.model.aligner import Aligner

SMALL = {"n_text": 20, "n_text_dim": 16, "n_speaker_dim": 4, "n_hidden": 16, "n_attn_channels": 8, "n_mel_channels": 10}


def small_model(**values):
    """A small float32 model whose output layers are random, as after training."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(**{**SMALL, **values})).eval()
    for flow in model.flows:
        torch.nn.init.normal_(flow.conditioner.output.weight, std=0.2)
        torch.nn.init.normal_(flow.conditioner.output.bias, std=0.2)
    return model


def batch(mel_lengths=(30, 22), token_lengths=(8, 5)):
    draw = torch.Generator().manual_seed(1)
    B = len(mel_lengths)
    return {
        "mel": 2 * torch.randn(B, 10, max(mel_lengths), generator=draw) - 4,
        "mel_lengths": torch.tensor(mel_lengths),
        "tokens": torch.randint(0, 20, (B, max(token_lengths)), generator=draw),
        "token_lengths": torch.tensor(token_lengths),
        "speaker_id": torch.zeros(B, dtype=torch.long),
    }


def losses(output, token_lengths):
    gate = gate_loss(output.gate_logits, output.mel_lengths)
    return {"nll": nll_loss(output), "ctc": attention_ctc_loss(output.steps, token_lengths), "gate": gate}


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("values", [{}, {"n_components": 3, "fixed_gaussian": False}, {"use_cumm_attention": True}])
def test_what_sums_and_exponentiates_stays_in_single_precision_under_autocast(values, with_prior):
    model, given = small_model(**values), batch()
    prior = torch.rand(2, 30, 8) if with_prior else None
    exact = model(**given, attention_prior=prior)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**given, attention_prior=prior)
        named = losses(output, given["token_lengths"])
    assert output.z.dtype == output.log_det.dtype == torch.float32
    for step in output.steps:
        assert step.log_scale.dtype == step.attention.dtype == step.attention_logprob.dtype == torch.float32
        torch.testing.assert_close(step.attention.sum(2), torch.ones(2, 30), atol=1e-5, rtol=0)
    # bfloat16 has 8 bits: an error of a few hundredths in each of ten channels and thirty frames, not one that grows.
    torch.testing.assert_close(output.log_det, exact.log_det, atol=3.0, rtol=0.02)
    for name, value in losses(exact, given["token_lengths"]).items():
        assert named[name].dtype == torch.float32
        torch.testing.assert_close(named[name], value, atol=0.05, rtol=0.05)


def test_distances_of_the_aligner_do_not_lose_digits_under_autocast():
    aligner = Aligner(5, 1, 16, 16)
    aligner.token_convs, aligner.mel_convs = torch.nn.Identity(), torch.nn.ModuleList()
    tokens = torch.arange(5)[None]
    with torch.no_grad():
        aligner.embedding.weight.mul_(20)
    # Frames that are their tokens' keys, far from zero.
    keys = aligner.embedding(tokens) + aligner.speaker_embedding.weight
    given = ((keys - 5).transpose(1, 2), torch.tensor([5]), tokens, torch.tensor([5]), torch.tensor([0]))
    with torch.no_grad():
        exact = aligner(*given)
        with torch.autocast("cpu", torch.bfloat16):
            half = aligner(*given)
    torch.testing.assert_close(half, exact, atol=1e-3, rtol=1e-3)


def test_log_determinant_of_a_long_utterance_does_not_lose_digits():
    """A sum over 10,000 frames and 10 channels, against float64."""
    model, given = small_model(), batch((10_000,), (40,))
    single = model(**given).log_det
    double = model.double()(**{**given, "mel": given["mel"].double()}).log_det
    torch.testing.assert_close(single.double(), double, atol=0, rtol=1e-5)


@pytest.mark.parametrize("n_flows", [1, 2])
def test_one_frame_and_ten_thousand_are_spoken(n_flows):
    model = small_model(n_flows=n_flows)
    weights = pack_weights(model)
    for n_frames, n_tokens in ((1, 1), (10_000, 60)):
        options = SamplingOptions(sigma=0.5, max_frames=n_frames, gate_threshold=1.0, guided=False)
        (spoken,) = synthesize_mels(model, [Utterance([1] * n_tokens, 0, 3)], options, weights=weights)
        assert spoken.mel.shape == (10, n_frames) and bool(spoken.mel.isfinite().all())
        torch.testing.assert_close(spoken.attention.sum(2), torch.ones(n_flows, n_frames), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sigma", [0.0, 1e-6, 1.0, 100.0])
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_extreme_sigma_and_temperature_give_finite_speech(sigma, temperature):
    model = small_model()
    options = SamplingOptions(sigma=sigma, temperature=temperature, max_frames=40, guided=False)
    for weights in (None, pack_weights(model)):
        utterances = [Utterance([1, 2, 3, 4], 0, 3), Utterance([5], 0, 4)]
        for spoken in synthesize_mels(model, utterances, options, weights=weights):
            assert bool(spoken.mel.isfinite().all()) and bool(spoken.attention.isfinite().all())
            assert bool((spoken.durations >= 0).all()) and int(spoken.durations.sum()) == spoken.mel.shape[1]


def test_losses_are_finite_when_attention_is_certain_of_the_wrong_token():
    """Rows of the attention that are one on a single token, as after a collapse."""
    model, given = small_model(), batch((12,), (6,))
    given["mel"].requires_grad_()
    for temperature in (1e-6, 1.0):
        output = model(**given, temperature=temperature)
        named = losses(output, given["token_lengths"])
        assert all(bool(value.isfinite()) for value in named.values())
        sum(named.values()).backward()
        assert bool(given["mel"].grad.isfinite().all())
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_fewer_frames_than_tokens_cost_nothing_in_the_alignment():
    model, given = small_model(), batch((3, 20), (8, 5))
    ctc = losses(model(**given), given["token_lengths"])["ctc"]
    assert bool(ctc.isfinite())
    ctc.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_any_number_of_threads_gives_the_same_results():
    before = torch.get_num_threads()
    found = []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            model, given = small_model(), batch((200, 150), (40, 30))
            named = losses(model(**given), given["token_lengths"])
            sum(named.values()).backward()
            norms = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])
            options = SamplingOptions(max_frames=100, guided=False)
            utterances = [Utterance([1, 2, 3], 0, 1), Utterance([4, 5], 0, 2)]
            spoken = [
                each.mel
                for weights in (None, pack_weights(model))
                for each in synthesize_mels(model, utterances, options, weights=weights)
            ]
            found.append((named, norms, spoken))
    finally:
        torch.set_num_threads(before)
    named, norms, spoken = found[0]
    for other_named, other_norms, other_spoken in found[1:]:
        for name, value in named.items():
            torch.testing.assert_close(other_named[name], value, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other_norms, norms, atol=1e-5, rtol=1e-4)
        for other, mel in zip(other_spoken, spoken):
            torch.testing.assert_close(other, mel, atol=1e-4, rtol=1e-4)
