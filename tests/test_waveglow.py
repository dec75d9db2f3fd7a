"""WaveGlow: numbers recorded from the original, inverse, log-determinant, engine."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flowtron.audio import AudioSettings
from flowtron.vocoder.denoiser import Denoiser
from flowtron.vocoder.glow import Glow
from flowtron.vocoder.glow_engine import GlowEngine
from flowtron.vocoder.layers import fold_weight_norm
from flowtron.vocoder.waveglow import WaveGlow

DATA = Path(__file__).parent / "data" / "waveglow"
CASES = ("small", "80mel")
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}


def arrays(case, file, dtype):
    return {key: torch.from_numpy(value).to(dtype) for key, value in np.load(DATA / case / file).items()}


def weights(case):
    state = load_file(DATA / case / "weights.safetensors")
    if "upsample.weight__factor_k" in state:
        across, along = state.pop("upsample.weight__factor_io"), state.pop("upsample.weight__factor_k")
        state["upsample.weight"] = across[:, :, None] * along
    return state


def load(case, dtype, folded=False):
    config = json.loads((DATA / case / "config.json").read_text())["waveglow_config"]
    state = weights(case)
    if folded:
        state = fold_weight_norm({name: value.to(dtype) for name, value in state.items()})
    model = WaveGlow(**config, weight_norm=not folded)
    model = model.to(dtype).eval()
    model.load_state_dict(state)
    return model


def same(case, dtype, **ours):
    """Compare with what was recorded in this type, else in float32 (not everything was in float64)."""
    single, double = (arrays(case, file, torch.float64) for file in ("outputs.npz", "outputs_f64.npz"))
    for name, value in ours.items():
        exact = dtype == torch.float64 and name in double
        tolerance = TOLERANCE[dtype if exact else torch.float32]
        torch.testing.assert_close(
            value.detach().double(), (double if exact else single)[name], atol=tolerance, rtol=tolerance, msg=name
        )


def recorded_noise(inputs):
    # Recorded in the order drawn: what remains to the last, then each early output, last one first.
    names = sorted((name for name in inputs if name.startswith("infer_noise")), reverse=True)
    return torch.cat([inputs[name] for name in names], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_losses_are_the_recorded_ones(case, dtype):
    inputs = arrays(case, "inputs.npz", dtype)
    model = load(case, dtype)
    output = model(inputs["audio"], inputs["mel"])
    same(case, dtype, z=output.z, log_det=output.log_dets)
    same(case, dtype, **{f"log_s_{k}": log_scale for k, log_scale in enumerate(output.log_scales)})
    same(case, dtype, **{f"loss_sigma{sigma}": output.loss(sigma)[None] for sigma in (1.0, 0.7)})
    same(case, dtype, nowm_z=load(case, dtype, folded=True)(inputs["audio"], inputs["mel"]).z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_sound_of_odd_length_is_the_recorded_one(case, dtype):
    inputs = arrays(case, "inputs.npz", dtype)
    odd = json.loads((DATA / case / "config.json").read_text())["odd_audio_len"]
    output = load(case, dtype)(inputs["audio"][:, :odd], inputs["mel"])
    same(case, dtype, odd_z=output.z, odd_log_det=output.log_dets)
    same(case, dtype, **{"odd_loss_sigma1.0": output.loss()[None]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_inference_with_the_recorded_noise(case, dtype):
    inputs = arrays(case, "inputs.npz", dtype)
    noise = recorded_noise(inputs)
    model = load(case, dtype)
    with torch.no_grad():
        for sigma in (1.0, 0.6):
            same(case, dtype, **{f"infer_sigma{sigma}": model.inverse(sigma * noise, inputs["infer_mel"])})
        folded = load(case, dtype, folded=True)
        same(case, dtype, **{"infer_nowm_sigma1.0": folded.inverse(noise, inputs["infer_mel"])})


@pytest.mark.parametrize("case", CASES)
def test_folding_gives_the_recorded_weights(case):
    folded = fold_weight_norm(weights(case))
    for name, value in load_file(DATA / case / "weights_nowm.safetensors").items():
        torch.testing.assert_close(folded[name], value, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_recorded_ones(case):
    inputs = arrays(case, "inputs.npz", torch.float64)
    model = load(case, torch.float64)
    model(inputs["audio"], inputs["mel"]).loss().backward()
    recorded = json.loads((DATA / case / "grads.json").read_text())["params"]
    parameters = dict(model.named_parameters())
    assert set(recorded) == set(parameters)
    for name, values in recorded.items():
        gradient = parameters[name].grad.flatten()
        projection = gradient @ torch.cos(torch.arange(1, len(gradient) + 1, dtype=torch.float64))
        assert float(gradient.norm()) == pytest.approx(values["norm_f64"], rel=1e-8, abs=1e-10), name
        assert float(projection) == pytest.approx(values["cosproj_f64"], rel=1e-8, abs=1e-8), name


def tiny(alternating_halves=False, **config):
    torch.manual_seed(0)
    architecture = {"n_mel_channels": 3, "n_flows": 4, "n_group": 4, "n_early_every": 2, "n_early_size": 2}
    architecture |= {"upsample_kernel": 16, "upsample_stride": 8, **config}
    network = {"n_layers": 2, "n_channels": 6, "kernel_size": 3}
    model = WaveGlow(**architecture, WN_config=network, alternating_halves=alternating_halves).double()
    for coupling in model.WN:
        torch.nn.init.normal_(coupling.end.weight, std=0.3)
    return model


@pytest.mark.parametrize("alternating_halves", [False, True])
def test_inverse_undoes_forward(alternating_halves):
    model = tiny(alternating_halves)
    audio, mel = torch.randn(2, 48).double(), torch.randn(2, 3, 6).double()
    with torch.no_grad():
        z = model(audio, mel).z
        assert (model.inverse(z, mel) - audio).abs().max() < 1e-8
        assert (model(model.inverse(z, mel), mel).z - z).abs().max() < 1e-8


@pytest.mark.parametrize("alternating_halves", [False, True])
def test_log_determinant_is_that_of_the_jacobian(alternating_halves):
    model = tiny(alternating_halves)
    audio, mel = torch.randn(1, 24).double(), torch.randn(1, 3, 3).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x, mel).z.flatten(), audio)[:, 0]
    output = model(audio, mel)
    expected = torch.linalg.slogdet(jacobian)[1]
    total = sum(each.sum() for each in output.log_scales) + output.log_dets.sum()
    assert total.item() == pytest.approx(float(expected), abs=1e-8)


def test_flows_start_as_mixings_alone():
    model = WaveGlow(n_mel_channels=3, n_flows=2, n_group=4, WN_config={"n_layers": 1, "n_channels": 4})
    output = model(torch.randn(1, 512), torch.randn(1, 3, 2))
    assert all(float(each.abs().max()) == 0 for each in output.log_scales)
    assert float(output.log_dets.abs().max()) < 1e-3
    assert Glow.early_widths(8, 12, 4, 2) == [8, 8, 8, 8, 6, 6, 6, 6, 4, 4, 4, 4]


def engine_outputs(engine, mel, z, sizes):
    state, pieces, at = engine.start(mel.shape[0]), [], 0
    for number, size in enumerate(sizes, 1):
        noise = z[..., at * engine.phases : (at + size) * engine.phases].transpose(1, 2)
        pieces.append(engine.push(state, mel[..., at : at + size], noise, last=number == len(sizes)))
        at += size
    return torch.cat(pieces, 1)


@pytest.mark.parametrize("case", CASES)
def test_engine_gives_the_recorded_sound(case):
    for dtype in (torch.float32, torch.float64):
        inputs = arrays(case, "inputs.npz", dtype)
        with torch.no_grad():
            for fused in (False, True):
                engine = GlowEngine(load(case, dtype), fused=fused)
                sound = engine_outputs(engine, inputs["infer_mel"], recorded_noise(inputs), [3])
                same(case, dtype, **{"infer_sigma1.0": sound})


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("alternating_halves", [False, True])
def test_pieces_equal_the_whole(alternating_halves, fused):
    model = tiny(alternating_halves, n_flows=5, n_early_every=3)
    mel, z = torch.randn(2, 3, 23).double(), torch.randn(2, 4, 46).double()
    with torch.no_grad():
        whole = model.inverse(z, mel)
        engine = GlowEngine(model, fused=fused)
        for sizes in ([23], [1] * 23, [7, 9, 7], [20, 3], [2, 0, 21, 0]):
            assert (engine_outputs(engine, mel, z, sizes) - whole).abs().max() < 1e-10
        state = engine.start(2)
        for _ in range(50):
            engine.push(state, mel[..., :4], z[..., :8].transpose(1, 2), last=False)
        # What a stream keeps is bounded by the reach of its layers, not by what went through it.
        assert state.context.shape[1] < 60
        assert sum(x.pending.shape[1] for x in state.flows.values()) < 60


def test_bfloat16_is_close():
    model = tiny().float()
    mel, z = torch.randn(1, 3, 23), torch.randn(1, 4, 46)
    with torch.no_grad():
        whole = model.inverse(z, mel)
        rough = engine_outputs(GlowEngine(model, torch.bfloat16), mel, z, [23])
    assert rough.dtype == torch.float32
    assert 0 < float((rough - whole).norm() / whole.norm()) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denoiser_gives_the_recorded_sound(dtype):
    inputs = arrays("80mel", "inputs.npz", dtype)
    model = load("80mel", dtype, folded=True)
    denoiser = Denoiser(lambda mel: model.inverse(mel.new_zeros(1, 8, mel.shape[2] * 32), mel), AudioSettings(), dtype)
    same("80mel", dtype, denoiser_bias_spec=denoiser.bias)
    for strength in (0.1, 1.0):
        same("80mel", dtype, **{f"denoised_{strength}": denoiser(inputs["denoiser_audio"], strength)[:, None]})


@pytest.mark.parametrize("name", ["waveglow_published", "waveglow_published_oldzip", "waveglow_published_nowm"])
def test_converted_files_of_the_original_sound_as_recorded(name, tmp_path):
    from flowtron.checkpoint import read_vocoder
    from flowtron.convert import convert
    from flowtron.vocoder.loading import build_vocoder_model

    convert(DATA.parent / "legacy" / f"{name}.pt", tmp_path / "vocoder", None)
    file = read_vocoder(tmp_path / "vocoder")
    model = build_vocoder_model(file.kind, file.architecture, file.audio).eval()
    model.load_state_dict(file.state)
    inputs = arrays("small", "inputs.npz", torch.float32)
    with torch.no_grad():
        sound = model.inverse(recorded_noise(inputs), inputs["infer_mel"])
    same("small", torch.float32, **{"infer_sigma1.0": sound})
