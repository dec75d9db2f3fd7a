"""Import of the original's files: each gives the recorded outputs, and goes back bit for bit."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import CASES
from parity import DATA as PARITY
from safetensors.torch import load_file
from tiny import write_corpus

from flowtron.checkpoint import load_model, load_training_state, load_weights, read_vocoder
from flowtron.cli import main
from flowtron.config import Config, ModelConfig, parse_config
from flowtron.convert import convert, export
from flowtron.errors import InputError
from flowtron.loss import attention_ctc_loss, gate_loss, nll_loss
from flowtron.model import build_model
from flowtron.model.flow import reverse_frames
from flowtron.names import architecture_of, from_original, to_original
from flowtron.optim import build_optimizer
from flowtron.text import SYMBOLS
from flowtron.torchfile import read_file
from flowtron.train import train

DATA = Path(__file__).parent / "data" / "legacy"
LISTS = {"training": "train.txt", "validation": "val.txt"}
PUBLISHED = ["flowtron_published", "flowtron_published_oldzip", "flowtron_training", "flowtron_training_oldzip"]


def arrays(name):
    return {key: torch.from_numpy(value) for key, value in np.load(DATA / name).items()}


def close(ours, recorded, atol=1e-4):
    torch.testing.assert_close(ours, recorded, atol=atol, rtol=0)


def batch(inputs):
    return {
        "mel": inputs["mel"],
        "mel_lengths": inputs["out_lens"],
        "tokens": inputs["text"],
        "token_lengths": inputs["in_lens"],
        "speaker_id": inputs["speaker_ids"],
        "attention_prior": inputs.get("attn_prior"),
    }


def synthesize(model, inputs, speaker):
    residual, tokens = inputs["infer_residual"], inputs["infer_text"]
    n_frames, n_tokens = torch.tensor([residual.shape[2]]), torch.tensor([tokens.shape[1]])
    return model.inverse(residual, n_frames, tokens, n_tokens, inputs[speaker].reshape(1)).mel


@pytest.mark.parametrize("name", PUBLISHED)
def test_flowtron_files_give_the_recorded_outputs(name, tmp_path):
    convert(DATA / f"{name}.pt", tmp_path / "voice")
    model = load_model(tmp_path / "voice").model
    inputs, recorded = arrays("flowtron_inputs.npz"), arrays("flowtron_expected.npz")
    which = name.removesuffix("_oldzip").removeprefix("flowtron_")
    with torch.no_grad():
        output = model(**batch(inputs))
        mel = synthesize(model, inputs, "infer_speaker_id")
    lengths = inputs["out_lens"]
    mask = torch.arange(inputs["mel"].shape[2]) < lengths[:, None]
    close(output.z.transpose(1, 2)[mask], recorded[f"{which}_z"].transpose(0, 1)[mask])
    for k, step in enumerate(output.steps):
        log_s, attention = recorded[f"{which}_log_s_{k}"].transpose(0, 1), recorded[f"{which}_attn_{k}"]
        if k % 2:
            log_s, attention = reverse_frames(log_s, lengths), reverse_frames(attention, lengths)
        close(step.log_scale[mask], log_s[mask])
        close(step.attention[mask], attention[mask])
    close(output.gate_logits[mask], recorded[f"{which}_gate"][..., 0].transpose(0, 1)[mask])
    close(nll_loss(output, 1.0), recorded[f"{which}_nll"][0])
    close(gate_loss(output.gate_logits, lengths), recorded[f"{which}_gate_loss"][0])
    close(attention_ctc_loss(output.steps, inputs["in_lens"], -8), recorded[f"{which}_ctc_loss"][0])
    close(mel, recorded[f"{which}_infer_mel"])


def test_another_published_flowtron_gives_the_recorded_outputs(tmp_path):
    convert(DATA / "flowtron_published_2.pt", tmp_path / "voice")
    model = load_model(tmp_path / "voice").model
    data = arrays("flowtron_expected_2.npz")
    with torch.no_grad():
        output = model(**batch(data))
        mel = synthesize(model, data, "infer_speaker")
    mask = torch.arange(data["mel"].shape[2]) < data["out_lens"][:, None]
    close(output.z.transpose(1, 2)[mask], data["z"].transpose(0, 1)[mask])
    close(mel, data["infer_mel_gate_never"])


@pytest.mark.parametrize("name", ["flowtron_training", "flowtron_training_oldzip"])
def test_training_goes_on_as_the_original_would(name, tmp_path):
    report = convert(DATA / f"{name}.pt", tmp_path / "voice")
    assert "training.pt" in report
    loaded = load_model(tmp_path / "voice")
    state = load_training_state(tmp_path / "voice" / "training.pt")
    original = read_file(DATA / f"{name}.pt")
    assert state["iteration"] == loaded.step == original["iteration"] > 0
    config, model = loaded.config, loaded.model
    assert config.train.optim_algo == "RAdam" and config.train.weight_decay == 1e-6
    model.load_state_dict(state["model"])
    optimizer = build_optimizer(model.parameters(), config.train)
    optimizer.load_state_dict(state["optimizer"])
    assert optimizer.param_groups[0]["lr"] == config.train.learning_rate == 1e-3
    inputs = arrays("flowtron_inputs.npz")
    output = model(**batch(inputs))
    ctc = attention_ctc_loss(output.steps, inputs["in_lens"], -8)
    loss = nll_loss(output, 1.0) + gate_loss(output.gate_logits, inputs["out_lens"]) + 0.01 * ctc
    third = json.loads((DATA / "flowtron_config.json").read_text())["steps"][2]
    close(loss.detach(), torch.tensor(third["loss"]), 1e-4)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    close(norm, torch.tensor(third["grad_norm_before_clip"]), 1e-3)
    optimizer.step()
    after = to_original(model.state_dict())
    recorded = {k.partition("/")[2]: v for k, v in arrays("flowtron_expected.npz").items() if "after_step3/" in k}
    assert recorded.keys() == after.keys()
    # A step moves a weight by about its learning rate, 1e-3; a lost moment would show at that scale.
    assert max(float((after[key] - value).abs().max()) for key, value in recorded.items()) < 1e-5


def test_state_of_adam_is_carried_over_and_a_broken_one_is_said(tmp_path):
    published = read_file(DATA / "flowtron_published.pt")["state_dict"]
    parameters = [torch.nn.Parameter(value.clone()) for value in published.values()]
    adam = torch.optim.Adam(parameters, lr=2e-4, weight_decay=1e-5)
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, float(index))
    adam.step()
    checkpoint = {"state_dict": published, "iteration": 12, "optimizer": adam.state_dict(), "learning_rate": 2e-4}
    torch.save(checkpoint, tmp_path / "adam.pt")
    convert(tmp_path / "adam.pt", tmp_path / "voice")
    loaded = load_model(tmp_path / "voice")
    state = load_training_state(tmp_path / "voice" / "training.pt")
    assert loaded.config.train.optim_algo == "Adam" and loaded.config.train.learning_rate == 2e-4
    ours = [name for name, _ in loaded.model.named_parameters()]
    index = list(published).index("flows.1.ar_step.gate_layer.linear_layer.bias")
    moment = state["optimizer"]["state"][ours.index("flows.1.flow.conditioner.gate.bias")]["exp_avg"]
    torch.testing.assert_close(moment, adam.state_dict()["state"][index]["exp_avg"])
    del checkpoint["optimizer"]["param_groups"][0]["params"][-1]
    torch.save(checkpoint, tmp_path / "broken.pt")
    assert "not carried over" in convert(tmp_path / "broken.pt", tmp_path / "other")
    assert not (tmp_path / "other" / "training.pt").exists()


@pytest.mark.parametrize("name", [*PUBLISHED, "flowtron_published_2"])
def test_there_and_back_is_bit_identical(name, tmp_path):
    convert(DATA / f"{name}.pt", tmp_path / "voice")
    assert main(["export", str(tmp_path / "voice"), str(tmp_path / "back.pt")]) == 0
    which = "flowtron_published_2" if name.endswith("_2") else name.removesuffix("_oldzip")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["state_dict"]
    if "published" in name:
        original = torch.load(DATA / f"{which}.pt", weights_only=True)["state_dict"]
    else:
        original = load_weights(DATA / f"{name}.pt")
        back = from_original(back)
    assert back.keys() == original.keys()
    assert all(torch.equal(back[key], original[key]) and back[key].dtype == original[key].dtype for key in back)


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_flowtron_goes_there_and_back(case, tmp_path):
    original = load_file(PARITY / case / "weights.safetensors")
    settings = json.loads((PARITY / case / "config.json").read_text())["model_config"]
    assert {key: settings[key] for key in architecture_of(original)} == architecture_of(original)
    convert(PARITY / case / "weights.safetensors", tmp_path / "voice")
    export(tmp_path / "voice", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["state_dict"]
    assert back.keys() == original.keys() and all(torch.equal(back[key], original[key]) for key in original)
    build_model(ModelConfig(**settings)).load_state_dict(from_original(back))


def test_half_precision_weights_go_there_and_back(tmp_path):
    original = {key: value.half() for key, value in load_file(PARITY / "flowtron_cumm" / "weights.safetensors").items()}
    torch.save({"state_dict": {f"module.{key}": value for key, value in original.items()}}, tmp_path / "half.pt")
    convert(tmp_path / "half.pt", tmp_path / "voice")
    export(tmp_path / "voice", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["state_dict"]
    assert all(back[key].dtype == torch.float16 and torch.equal(back[key], original[key]) for key in original)
    assert {parameter.dtype for parameter in load_model(tmp_path / "voice").model.parameters()} == {torch.float32}


def test_the_parts_that_the_original_has_not_are_left_out_of_an_export(tmp_path):
    from flowtron.checkpoint import save_model

    config = Config(model_config=ModelConfig(n_text_dim=8, n_hidden=8, n_attn_channels=8, aligner_dim=4))
    save_model(tmp_path / "own", build_model(config.model), config, symbols=SYMBOLS[::-1], speakers=["a"])
    report = export(tmp_path / "own", tmp_path / "own.pt")
    assert "left out" in report and "symbols" in report
    assert "left out" not in convert(tmp_path / "own.pt", tmp_path / "back")
    assert load_model(tmp_path / "back").model.aligner is None


def test_the_config_tells_what_weights_cannot(tmp_path):
    config = {
        "model_config": {"dummy_speaker_embedding": True, "n_flows": 1},
        "data_config": {"sampling_rate": 24000, "mel_fmax": 12000.0},
        "steps": [],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = convert(DATA / "flowtron_published.pt", tmp_path / "voice", tmp_path / "config.json")
    assert "n_flows is 2 by the weights, not 1" in report and "not used: steps" in report
    assert "hop_length 256" in report and "sample_rate" not in report and "dummy" not in report
    loaded = load_model(tmp_path / "voice")
    assert loaded.config.audio_settings().sample_rate == 24000 and loaded.model.dummy_speaker
    plain = convert(DATA / "flowtron_published.pt", tmp_path / "plain")
    assert "sample_rate 22050" in plain and "dummy_speaker_embedding" in plain
    (tmp_path / "config.json").write_text('{"model_config": {"n_flow": 1}}')
    with pytest.raises(InputError, match=r"model_config\.n_flow.*did you mean"):
        convert(DATA / "flowtron_published.pt", tmp_path / "voice", tmp_path / "config.json")


def test_converted_checkpoints_read_text_as_the_original_does(tmp_path):
    report = convert(DATA / "flowtron_published.pt", tmp_path / "voice")
    assert load_model(tmp_path / "voice").config.data.text_cleaners == ["flowtron_original_cleaners"]
    assert "flowtron_original_cleaners" in report
    (tmp_path / "config.json").write_text('{"data_config": {"text_cleaners": ["english_cleaners"]}}')
    convert(DATA / "flowtron_published.pt", tmp_path / "english", tmp_path / "config.json")
    assert load_model(tmp_path / "english").config.data.text_cleaners == ["english_cleaners"]


def test_unknown_symbols_are_asked_for(tmp_path):
    state = read_file(DATA / "flowtron_published.pt")["state_dict"]
    state["embedding.weight"] = state["embedding.weight"][:148].clone()
    torch.save({"state_dict": state}, tmp_path / "small.pt")
    with pytest.raises(InputError, match=r"148 rows.*model_config\.symbols"):
        convert(tmp_path / "small.pt", tmp_path / "voice")
    (tmp_path / "config.json").write_text(json.dumps({"model_config": {"symbols": list(SYMBOLS[:148])}}))
    convert(tmp_path / "small.pt", tmp_path / "voice", tmp_path / "config.json")
    assert load_model(tmp_path / "voice").symbols == list(SYMBOLS[:148])


@pytest.mark.parametrize("name", ["waveglow_published", "waveglow_published_oldzip", "waveglow_published_nowm"])
def test_waveglow_files_hold_the_recorded_weights(name, tmp_path):
    convert(DATA / f"{name}.pt", tmp_path / "vocoder")
    vocoder = read_vocoder(tmp_path / "vocoder")
    recorded = json.loads((DATA / "waveglow_weights.json").read_text())
    recorded = recorded["weights_nowm" if name.endswith("nowm") else "weights"]
    hashes = {k: hashlib.sha256(v.numpy().tobytes()).hexdigest()[:32] for k, v in vocoder.state.items()}
    assert {k: [list(v.shape), hashes[k]] for k, v in vocoder.state.items()} == recorded
    assert vocoder.kind == "waveglow"
    assert vocoder.architecture == {
        "n_mel_channels": 6,
        "n_flows": 4,
        "n_group": 8,
        "n_early_every": 2,
        "n_early_size": 2,
        "upsample_kernel": 1024,
        "upsample_stride": 256,
        "WN_config": {"n_layers": 2, "n_channels": 16, "kernel_size": 3},
        "weight_norm": not name.endswith("nowm"),
        "alternating_halves": False,
    }
    assert main(["info", str(tmp_path / "vocoder")]) == 0


def test_a_converted_training_is_gone_on_with(tmp_path, capsys):
    convert(DATA / "flowtron_training.pt", tmp_path / "voice")
    write_corpus(tmp_path / "corpus")
    values = load_model(tmp_path / "voice").config.to_json()
    files = {f"{part}_files": str(tmp_path / "corpus" / name) for part, name in LISTS.items()}
    values["data_config"] |= {**files, "feature_cache_path": ""}
    values["train_config"] |= {"checkpoint_path": str(tmp_path / "voice" / "training.pt"), "max_iters": 8}
    values["train_config"] |= {"output_directory": str(tmp_path / "run"), "batch_size": 2, "with_tensorboard": False}
    values["dist_config"] |= {"dist_backend": "gloo"}
    path = train(parse_config(values))
    assert "training.pt at iteration 7" in capsys.readouterr().out
    assert path.name == "00000008" and load_model(path).step == 8
