"""Every recorded case of the original model: analysis, losses, gradients, synthesis."""

import math

import pytest
import torch
from parity import CASES, Case, load_case

from flowtron.loss import attention_ctc_loss, gate_loss, nll_loss
from flowtron.model import FlowtronOutput
from flowtron.model.flow import reverse_frames
from flowtron.names import to_original

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
DTYPES = list(TOLERANCE)
PADDING_LEAKS = {"flowtron_cumm", "flowtron_gmm_fixed", "flowtron_gmm_learned"}


def load_as_original(name, dtype):
    """Load a case, with the padding leaks of the original where its batched numbers show them."""
    return load_case(name, dtype, **({"original_padding": True} if name in PADDING_LEAKS else {}))


def close(ours, recorded, dtype):
    torch.testing.assert_close(ours.double(), recorded.double(), atol=TOLERANCE[dtype], rtol=0)


def losses(case: Case, output: FlowtronOutput, token_lengths, settings) -> dict[str, torch.Tensor]:
    named = {
        "nll": nll_loss(output, settings.get("sigma", 1.0)),
        "ctc_loss": attention_ctc_loss(output.steps, token_lengths, settings["blank_logprob"]),
    }
    if output.gate_logits is not None:
        named["gate_loss"] = gate_loss(output.gate_logits, output.mel_lengths)
    return named


def frames_first(recorded, lengths, reverse):
    """Recorded (T, B, ...) or (B, T, N) as (B, T, ...) in natural time, padded frames zeroed by the caller."""
    return reverse_frames(recorded, lengths) if reverse else recorded


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_forward(name, dtype):
    case = load_as_original(name, dtype)
    batch = case.sorted_batch()
    lengths = batch["mel_lengths"]
    output = case.model(**batch)
    mask = torch.arange(batch["mel"].shape[2]) < lengths[:, None]
    close(output.z.transpose(1, 2)[mask], case.outputs["z"].transpose(0, 1)[mask], dtype)
    for k, step in enumerate(output.steps):
        token_mask = torch.arange(batch["tokens"].shape[1]) < batch["token_lengths"][:, None]
        valid = mask[:, :, None] & token_mask[:, None]
        odd = k % 2 == 1
        log_s = frames_first(case.outputs[f"log_s_{k}"].transpose(0, 1), lengths, odd)
        close(step.log_scale[mask], log_s[mask], dtype)
        close(step.attention[valid], frames_first(case.outputs[f"attn_{k}"], lengths, odd)[valid], dtype)
        logprob = frames_first(case.outputs[f"attn_logprob_{k}"], lengths, odd)
        close(step.attention_logprob[valid], logprob[valid], dtype)
    if output.gate_logits is not None:
        close(output.gate_logits[mask], case.outputs["gate"][..., 0].transpose(0, 1)[mask], dtype)
    else:
        assert "gate" not in case.outputs
    if output.mixture is not None:
        close(output.mixture.mean, case.outputs["gmm_mean"], dtype)
        close(output.mixture.log_var, case.outputs["gmm_log_var"], dtype)
        close(output.mixture.prob, case.outputs["gmm_prob"], dtype)
    for key, value in losses(case, output, batch["token_lengths"], case.config["loss"]).items():
        close(value, case.outputs[key][0], dtype)
    alternative = losses(case, output, batch["token_lengths"], case.config["loss_alt"])
    close(alternative["nll"], case.outputs["nll_sigma0.7"][0], dtype)
    close(alternative["ctc_loss"], case.outputs["ctc_loss_blank-1"][0], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_batch_of_one_without_the_padding_leaks(name, dtype):
    case = load_case(name, dtype)
    batch = case.single()
    output = case.model(**batch)
    last = len(output.steps) - 1
    recorded = case.outputs[f"b1_attn_{last}"]
    n_frames, n_tokens = output.z.shape[2], batch["tokens"].shape[1]
    recorded = recorded[:, :n_frames, :n_tokens]
    close(
        output.steps[last].attention,
        reverse_frames(recorded, batch["mel_lengths"]) if last % 2 else recorded,
        dtype,
    )
    for key, value in losses(case, output, batch["token_lengths"], case.config["loss"]).items():
        close(value, case.outputs[f"b1_{key}"][0], dtype)
    if output.gate_logits is not None:
        close(output.gate_logits[0], case.outputs["b1_gate"][:n_frames, 0, 0], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_gradients(name, dtype):
    case = load_as_original(name, dtype)
    batch = case.sorted_batch()
    output = case.model(**batch)
    named = losses(case, output, batch["token_lengths"], case.config["loss"])
    (named["nll"] + named.get("gate_loss", 0) + 0.01 * named["ctc_loss"]).backward()
    ours = {key: p.grad if p.grad is not None else torch.zeros_like(p) for key, p in case.model.named_parameters()}
    ours = to_original(ours)
    compared = 0
    for key, recorded in case.grads.items():
        if key not in ours:
            continue
        gradient = ours[key].double().flatten()
        projection = (gradient * torch.cos(torch.arange(1.0, len(gradient) + 1, dtype=torch.float64))).sum()
        for value, expected in ((gradient.norm(), "norm_f64"), (projection, "cosproj_f64")):
            scale = recorded["norm_f64"]
            # Where the true gradient is zero (biases before a norm), rounding is all there is.
            atol = 1e-4 * scale + (1e-10 if dtype == torch.float64 else 1e-6)
            assert math.isclose(value.item(), recorded[expected], rel_tol=1e-4, abs_tol=atol), key
        compared += 1
    assert compared >= 30


def infer_variants():
    return [(name, variant) for name in CASES for variant in load_case(name).config["infer"]["variants"]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "variant"), infer_variants())
def test_inference(name, variant, dtype):
    case = load_case(name, dtype)
    inputs, settings = case.inputs, case.config["infer"]["variants"][variant]
    model = case.model
    n_flows = len(model.flows)
    if settings["gate_bias"] == "gate_bias_never":
        gate = model.flows[-1].conditioner.gate
        if gate is not None:
            gate.bias.data.copy_(inputs["gate_bias_never"])
    z = inputs["infer_residual"]
    lengths = torch.tensor([z.shape[2]])
    attention = None
    if settings["attns"] is not None:
        rows = inputs[settings["attns"]][:, None]
        attention = [reverse_frames(rows[k], lengths) if k % 2 else rows[k] for k in range(n_flows)]
    prior = None if settings["attn_prior"] is None else inputs[settings["attn_prior"]]
    sample = model.inverse(
        z,
        lengths,
        inputs["infer_text"],
        torch.tensor([inputs["infer_text"].shape[1]]),
        inputs["infer_speaker_id"].reshape(1),
        attention_prior=prior,
        attention=attention,
        temperature=settings["temperature"],
        gate_threshold=case.config["infer"]["gate_threshold"],
    )
    assert int(sample.mel_lengths) == settings["frames_out"]
    close(sample.mel, case.outputs[f"infer_{variant}_mel"], dtype)
    for executed in range(n_flows):
        k = n_flows - 1 - executed
        natural = sample.attention[k]
        processed = reverse_frames(natural, sample.mel_lengths) if k % 2 else natural
        close(processed[0], case.outputs[f"infer_{variant}_attn_{executed}"], dtype)


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_a_batch_does_not_matter(name):
    """The original wants texts by decreasing length."""
    case = load_as_original(name, torch.float64)
    batch = case.sorted_batch()
    order = torch.arange(len(batch["mel_lengths"])).flip(0)
    turned = {key: value[order] if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    output, turned_output = case.model(**batch), case.model(**turned)
    torch.testing.assert_close(turned_output.z, output.z[order], atol=1e-10, rtol=0)
    torch.testing.assert_close(turned_output.log_det, output.log_det[order], atol=1e-10, rtol=0)
