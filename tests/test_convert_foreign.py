"""Import of WaveGlow's first layouts, HiFi-GAN generators and Tacotron 2's text encoder, from files made here."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from flowtron.checkpoint import load_model, load_weights, read_vocoder
from flowtron.cli import main
from flowtron.config import ModelConfig
from flowtron.convert import convert, export
from flowtron.errors import InputError
from flowtron.foreign import read_foreign
from flowtron.model import build_model
from flowtron.torchfile import read_file
from flowtron.unpickle import module_state
from flowtron.warmstart import warm_start

DATA = Path(__file__).parent / "data" / "legacy"


def waveglow_weights():
    return module_state(read_file(DATA / "waveglow_published.pt")["model"])


def first_layout(state):
    """Split the fused layers of a WaveGlow into those of its first version."""
    first = {}
    for name, value in state.items():
        wn, dot, rest = name.partition(".res_skip_layers.")
        if dot:
            layer, leaf = rest.split(".")
            channels = state[f"{wn}.start.bias"].shape[0]
            if len(value) == 2 * channels:
                first[f"{wn}.res_layers.{layer}.{leaf}"] = value[:channels].clone()
            first[f"{wn}.skip_layers.{layer}.{leaf}"] = value[-channels:].clone()
        elif ".cond_layer." in name:
            parts = value.chunk(2)
            first |= {name.replace("cond_layer.", f"cond_layers.{i}."): part.clone() for i, part in enumerate(parts)}
        else:
            first[name] = value
    return first


def test_the_first_layout_of_waveglow_becomes_the_later_one(tmp_path):
    state = waveglow_weights()
    old = first_layout(state)
    assert any("res_layers" in name for name in old) and any("cond_layers.1" in name for name in old)
    torch.save({"state_dict": old, "iteration": 580_000}, tmp_path / "old.pt")
    convert(tmp_path / "old.pt", tmp_path / "vocoder")
    vocoder = read_vocoder(tmp_path / "vocoder")
    assert vocoder.step == 580_000 and vocoder.state.keys() == state.keys()
    assert all(torch.equal(vocoder.state[name], state[name]) for name in state)
    del old["WN.0.skip_layers.0.bias"]
    torch.save({"state_dict": old}, tmp_path / "broken.pt")
    with pytest.raises(InputError, match=r"WN\.0\.res_skip_layers\.0\.bias"):
        convert(tmp_path / "broken.pt", tmp_path / "other")


def test_modules_of_the_first_waveglow_are_marked(tmp_path):
    # In the first version odd flows change the other half of the channels; only the pickled module's name tells.
    content = (DATA / "waveglow_published_oldzip.pt").read_bytes()
    assert content.count(b"cglow\n") == 3
    (tmp_path / "old.pt").write_bytes(content.replace(b"cglow\n", b"cglow_old\n"))
    report = convert(tmp_path / "old.pt", tmp_path / "vocoder")
    assert read_vocoder(tmp_path / "vocoder").architecture["alternating_halves"] and "odd flows" in report


def test_audio_settings_of_a_waveglow_come_from_its_config(tmp_path):
    config = {"data_config": {"sampling_rate": 16000, "segment_length": 8000}, "waveglow_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    convert(DATA / "waveglow_published.pt", tmp_path / "vocoder", tmp_path / "config.json")
    audio = read_vocoder(tmp_path / "vocoder").audio
    assert (audio.sample_rate, audio.n_mels, audio.hop_length) == (16000, 6, 256)
    (tmp_path / "config.json").write_text('{"data_config": {"hop_length": "256"}}')
    with pytest.raises(InputError, match="hop_length is '256', expected a whole number"):
        convert(DATA / "waveglow_published.pt", tmp_path / "vocoder", tmp_path / "config.json")


def test_wrong_shapes_of_a_waveglow_are_refused(tmp_path):
    for name, value in {
        "WN.1.end.weight": torch.zeros(2, 2, 1),
        "extra": torch.zeros(1),
        "upsample.bias": None,
    }.items():
        state = waveglow_weights()
        state[name] = value
        state = {key: tensor for key, tensor in state.items() if tensor is not None}
        torch.save({"state_dict": state}, tmp_path / "wrong.pt")
        with pytest.raises(InputError, match=rf"wrong\.pt: weight '{name}'"):
            convert(tmp_path / "wrong.pt", tmp_path / "vocoder")


def hifigan(rates=(8, 8, 4), kernels=(16, 16, 8), blocks=(3, 5), kind="2", depth=2, channels=32, parametrized=False):
    """Weights of a HiFi-GAN generator, from torch's own layers."""
    norm = nn.utils.parametrizations.weight_norm if parametrized else nn.utils.weight_norm
    layers = {"conv_pre": nn.Conv1d(80, channels, 7), "conv_post": nn.Conv1d(channels // 2 ** len(rates), 1, 7)}
    for i, (rate, kernel) in enumerate(zip(rates, kernels)):
        n_in, n_out = channels // 2**i, channels // 2 ** (i + 1)
        layers[f"ups.{i}"] = nn.ConvTranspose1d(n_in, n_out, kernel, rate)
        for j, width in enumerate(blocks):
            for conv in ("convs1", "convs2") if kind == "1" else ("convs",):
                for d in range(depth):
                    layers[f"resblocks.{i * len(blocks) + j}.{conv}.{d}"] = nn.Conv1d(n_out, n_out, width)
    return {f"{name}.{key}": v for name, layer in layers.items() for key, v in norm(layer).state_dict().items()}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("parametrized", [False, True], ids=["weight_g", "parametrized"])
def test_hifigan_generators(parametrized, tmp_path):
    state = hifigan(parametrized=parametrized)
    torch.save({"generator": state}, tmp_path / "generator")
    report = convert(tmp_path / "generator", tmp_path / "vocoder")
    vocoder = read_vocoder(tmp_path / "vocoder")
    assert "strides" in report and "dilations" in report and "weight norm is kept" in report
    assert vocoder.kind == "hifigan" and vocoder.architecture == {
        "resblock": "2",
        "upsample_rates": [8, 8, 4],
        "upsample_kernel_sizes": [16, 16, 8],
        "upsample_initial_channel": 32,
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 2], [2, 6]],
        "num_mels": 80,
        "weight_norm": True,
    }
    leaf = "parametrizations.weight.original1" if parametrized else "weight_v"
    assert torch.equal(vocoder.state["ups.1.weight_v"], state[f"ups.1.{leaf}"])


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_config_of_a_hifigan_tells_strides_and_dilations(tmp_path):
    torch.save({"generator": hifigan((5, 5, 3), (11, 11, 7), (3, 7, 11), "1", 3)}, tmp_path / "g")
    with pytest.raises(InputError, match="75 samples a frame, not 256"):
        convert(tmp_path / "g", tmp_path / "vocoder")
    config = {"upsample_rates": [5, 5, 3], "resblock_dilation_sizes": [[1, 2, 3]] * 3, "hop_size": 75, "fmax": 11025}
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = convert(tmp_path / "g", tmp_path / "vocoder", tmp_path / "config.json")
    vocoder = read_vocoder(tmp_path / "vocoder")
    assert math.prod(vocoder.architecture["upsample_rates"]) == vocoder.audio.hop_length == 75
    assert vocoder.audio.f_max == 11025 and vocoder.architecture["resblock"] == "1" and "strides" not in report
    (tmp_path / "config.json").write_text(json.dumps(config | {"upsample_rates": [5, 15]}))
    with pytest.raises(InputError, match="do not fit 3 upsamplings"):
        convert(tmp_path / "g", tmp_path / "other", tmp_path / "config.json")


def tacotron2(n_symbols=148, channels=16):
    """Weights as a Tacotron 2 names them: its text encoder, and one layer more."""
    lstm = nn.LSTM(channels, channels // 2, bidirectional=True)
    state = {
        "embedding.weight": torch.randn(n_symbols, channels),
        "decoder.gate_layer.linear_layer.bias": torch.ones(1),
    }
    state |= {f"encoder.lstm.{name}": value for name, value in lstm.state_dict().items()}
    for i in range(3):
        layers = {"0.conv": nn.Conv1d(channels, channels, 5), "1": nn.BatchNorm1d(channels)}
        for name, layer in layers.items():
            state |= {
                f"encoder.convolutions.{i}.{name}.{k}": torch.rand_like(v.float())
                for k, v in layer.state_dict().items()
            }
    return state


def test_a_tacotron2_gives_its_text_encoder(tmp_path, capsys):
    state = tacotron2()
    torch.save({"state_dict": state, "iteration": 9, "optimizer": {}, "learning_rate": 1e-3}, tmp_path / "taco.pt")
    assert main(["convert", str(tmp_path / "taco.pt"), str(tmp_path / "taco")]) == 0
    assert "148 symbols" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "taco")]) == 0
    assert "Tacotron 2" in capsys.readouterr().out
    ours = load_weights(tmp_path / "taco")
    assert ours.keys() == load_weights(tmp_path / "taco.pt").keys()
    assert torch.equal(ours["text_encoder.norms.2.weight"], state["encoder.convolutions.2.1.weight"])
    model = build_model(ModelConfig(n_text_dim=16, n_hidden=8, n_attn_channels=8))
    table = warm_start(model, str(tmp_path / "taco"), None, [])
    assert "loaded: 148 of 185 rows" in table
    assert {name for name in model.state_dict() if name.startswith("text_encoder.")} == set(ours)
    assert torch.equal(model.text_encoder.convs[1].weight, state["encoder.convolutions.1.0.conv.weight"])
    with pytest.raises(InputError, match="not a voice"):
        load_model(tmp_path / "taco")
    with pytest.raises(InputError, match="not a Flowtron"):
        export(tmp_path / "taco", tmp_path / "back.pt")


def test_files_of_several_layouts_are_recognised(tmp_path):
    state = waveglow_weights()
    for held in ({"state_dict": state}, {"model": state}, {"generator": state}, state):
        torch.save(held, tmp_path / "file.pt")
        assert read_foreign(tmp_path / "file.pt").kind == "waveglow"
    with pytest.raises(InputError, match="a WaveGlow, which has no weights of a Flowtron"):
        load_weights(tmp_path / "file.pt")


def test_info_describes_files_too(capsys):
    assert main(["info", str(DATA / "flowtron_training_oldzip.pt")]) == 0
    shown = capsys.readouterr().out
    assert "to be converted" in shown and "n_hidden 12" in shown and "step" in shown


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_configs_of_odd_values_are_refused(tmp_path):
    torch.save({"generator": hifigan()}, tmp_path / "hifigan.pt")
    state = {name: value for name, value in waveglow_weights().items() if not name.startswith(("WN.2", "convinv.2"))}
    torch.save({"state_dict": state}, tmp_path / "waveglow.pt")
    for source, config in (
        (tmp_path / "hifigan.pt", {"upsample_rates": [8, 8, None]}),
        (tmp_path / "hifigan.pt", {"resblock_dilation_sizes": [[1, 2], [2, "x"]]}),
        (tmp_path / "hifigan.pt", {"resblock_dilation_sizes": 3}),
        (tmp_path / "waveglow.pt", {"waveglow_config": {"n_early_every": "x"}}),
        (tmp_path / "waveglow.pt", {"waveglow_config": {"n_early_every": 0}}),
        (DATA / "waveglow_published.pt", {"data_config": {"hop_length": 300}}),
        (DATA / "flowtron_published.pt", {"model_config": None}),
        (DATA / "flowtron_published.pt", {"train_config": 3}),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=r"^[^\n]*\.$"):
            convert(source, tmp_path / "out", tmp_path / "config.json")
        assert not (tmp_path / "out").exists()
