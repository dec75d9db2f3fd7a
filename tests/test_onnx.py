"""The ONNX export against torch, and the runner without torch."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from flowtron.audio import AudioSettings, log_mel
from flowtron.audio import mel_filters as filters_of_torch
from flowtron.checkpoint import load_model, save_model
from flowtron.cli import main
from flowtron.config import Config, ModelConfig
from flowtron.errors import InputError
from flowtron.inference import DEFAULT_SIGMA, DURATION_SHARE, SamplingOptions, draw_latent, draw_noise
from flowtron.model import build_model
from flowtron.model.aligner import path_prior
from flowtron.onnx_runner import OnnxFlowtron, mel_filters
from flowtron.onnx_runner import main as run
from flowtron.text import SYMBOLS

pytest.importorskip("onnx")
SMALL = {"n_text_dim": 16, "n_speaker_dim": 4, "n_hidden": 24, "n_attn_channels": 12, "n_speakers": 2}


def checkpoint(folder, speakers=("ann", "bob"), **values):
    torch.manual_seed(0)
    config = Config(model=ModelConfig(**{**SMALL, **values}))
    model = build_model(config.model).eval()
    for flow in model.flows:
        torch.nn.init.normal_(flow.conditioner.output.weight, std=0.05)
    if model.mixture is not None:
        torch.nn.init.normal_(model.mixture.prob.bias)
    save_model(folder, model, config, symbols=SYMBOLS, speakers=speakers)
    return folder


VARIANTS = [{"aligner_dim": 8, "mel_mean": -5.0, "mel_std": 2.0}, {"n_flows": 3, "n_lstm_layers": 1}]


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def folders(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    source = checkpoint(folder / "model", **request.param)
    assert main(["export", "--format", "onnx", str(source), str(folder / "onnx")]) == 0
    return source, folder / "onnx"


@pytest.fixture(scope="module")
def exported(folders):
    source, folder = folders
    return load_model(source).model.eval().requires_grad_(False), OnnxFlowtron(folder)


@pytest.mark.parametrize("n_tokens", [1, 9])
def test_mels_equal_torchs(exported, n_tokens):
    model, runner = exported
    tokens = torch.arange(60, 60 + n_tokens)
    texts = (tokens[None], torch.tensor([n_tokens]), torch.tensor([1]))
    encoded = runner.encode(tokens.tolist(), 1)
    prior = None
    if model.duration_predictor is not None:
        noise = draw_noise(n_tokens, 1, 3)[:, 0]
        durations = model.duration_predictor.sample(*texts, noise[None], 0.5)
        assert runner.durations(encoded, noise.numpy(), 0.5).tolist() == durations[0].tolist()
        prior = path_prior(durations, int(durations.sum()), SamplingOptions.path_width)
        np.testing.assert_allclose(runner.prior(durations[0].numpy()), prior[0], atol=1e-6)
    T = 60 if prior is None else prior.shape[1]
    z = 0.7 * draw_noise(T, 80, 5).T
    wanted = model.inverse(z[None], torch.tensor([T]), *texts, attention_prior=prior, temperature=0.8)
    result = runner.inverse(encoded, z.numpy(), None if prior is None else prior[0].numpy(), 0.8)
    assert np.abs(result.mel - wanted.mel[0].numpy()).max() < 1e-4
    for here, there in zip(result.attention, wanted.attention, strict=True):
        assert np.abs(here - there[0].numpy()).max() < 1e-4


def test_gate_ends_at_the_same_frame(exported):
    model, runner = exported
    tokens, z = torch.arange(60, 66), draw_noise(50, 80, 5).T
    texts = (tokens[None], torch.tensor([6]), torch.tensor([0]))
    free = model.inverse(z[None], torch.tensor([50]), *texts).gate_logits[0].sigmoid()
    threshold = float(free[:40].max()) - 1e-4
    wanted = model.inverse(z[None], torch.tensor([50]), *texts, gate_threshold=threshold)
    result = runner.inverse(runner.encode(tokens.tolist()), z.numpy(), gate_threshold=threshold)
    assert result.mel.shape[1] == int(wanted.mel_lengths) <= 40
    assert np.abs(result.mel - wanted.mel[0].numpy()).max() < 1e-4


def test_filters_equal_torchs():
    settings = AudioSettings()
    np.testing.assert_allclose(mel_filters(**settings.fingerprint()), filters_of_torch(settings).numpy(), atol=1e-7)


def test_the_sound_has_the_mel_it_is_made_of(exported):
    seconds = torch.arange(22050) / 22050
    wav = sum(torch.sin(2 * torch.pi * 150 * k * seconds) / k for k in range(1, 20)) / 4
    mel = log_mel(wav[None])[0]
    sound = exported[1].sound(mel.numpy())
    assert sound.shape == (256 * mel.shape[1],) and np.abs(sound).max() <= 1
    again = log_mel(torch.from_numpy(sound)[None])[0, :, : mel.shape[1]]
    assert (again - mel).abs().mean() < 0.5


def test_the_runner_speaks_without_torch(tmp_path):
    source = checkpoint(tmp_path / "model", aligner_dim=8)
    main(["export", "--format", "onnx", str(source), str(tmp_path / "onnx")])
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from flowtron.onnx_runner import main\n"
        f"assert main([{str(tmp_path / 'onnx')!r}, 'One two.', '-i', 'bob', '-o', {str(tmp_path / 'a.wav')!r}]) == 0\n"
        f"assert main([{str(tmp_path / 'onnx')!r}, 'One.', '-i', 'eve']) == 2\n"
        f"assert main([{str(tmp_path)!r}, 'One.']) == 2\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no exported model" in done.stderr and "'eve' is not one" in done.stderr
    assert (tmp_path / "a.wav").stat().st_size > 1000


def test_the_runner_draws_as_the_synthesizer_does(tmp_path):
    source = checkpoint(tmp_path / "model", aligner_dim=8)
    main(["export", "--format", "onnx", str(source), str(tmp_path / "onnx")])
    runner = OnnxFlowtron(tmp_path / "onnx")
    assert (runner.about["sigma"], runner.about["duration_share"]) == (DEFAULT_SIGMA, DURATION_SHARE)
    text = "One [[tuː]] three."
    np.testing.assert_array_equal(runner(text).mel, runner(text, sigma=DEFAULT_SIGMA).mel)
    tokens = runner.tokenizer.encode("One {T UW1} three.").tokens
    noise = np.random.default_rng(1234).standard_normal(len(tokens))
    wanted = runner.durations(runner.encode(tokens), noise, DURATION_SHARE * 2.0).sum()
    assert runner(text, sigma=2.0).mel.shape[1] == wanted


def test_speakers_without_names_go_by_number(tmp_path):
    source = checkpoint(tmp_path / "model", speakers=[])
    main(["export", "--format", "onnx", str(source), str(tmp_path / "onnx")])
    runner = OnnxFlowtron(tmp_path / "onnx")
    assert [runner.speaker_id(None), runner.speaker_id("1")] == [0, 1]
    with pytest.raises(InputError, match="numbers below 2"):
        runner.speaker_id(2)


@pytest.mark.parametrize("fixed", [True, False])
def test_a_mixture_is_drawn_from_as_torch_does(tmp_path, fixed):
    values = {"n_components": 3, "mean_scale": 2.0, "fixed_gaussian": fixed, "mel_encoder_n_hidden": 8}
    source = checkpoint(tmp_path / "model", **values)
    mixture = load_model(source).model.mixture
    main(["export", "--format", "onnx", str(source), str(tmp_path / "onnx")])
    runner = OnnxFlowtron(tmp_path / "onnx")
    for sigma in (0.0, 0.7):
        here = runner.latent(4000, sigma, np.random.default_rng(0))
        there = draw_latent(4000, 80, 0, sigma, mixture.unconditional()).T.numpy()
        assert here.shape == there.shape
        np.testing.assert_allclose(here.mean(1), there.mean(1), atol=0.15)
        np.testing.assert_allclose(here.std(1), there.std(1), atol=0.15)


@pytest.mark.parametrize(
    "wrong",
    [
        ["One.", "--rate", "0"],
        ["One.", "--rate", "-1"],
        ["One.", "--seed", "-1"],
        ["One.", "-s", "nan"],
        ["?!"],
        ["One.", "-o", "missing/a.wav"],
    ],
    ids=str,
)
def test_mistakes_are_one_sentence(folders, tmp_path, monkeypatch, capsys, wrong):
    monkeypatch.chdir(tmp_path)
    assert run([str(folders[1]), *wrong]) == 2
    error = capsys.readouterr().err
    assert error.endswith(".\n") and error.count("\n") == 1
    assert not list(tmp_path.glob("*.wav"))


def test_incomplete_exports_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders[1], tmp_path / "onnx")
    (folder / "step_1.onnx").unlink()
    with pytest.raises(InputError, match=r"step_1\.onnx: missing"):
        OnnxFlowtron(folder)
    about = json.loads((folder / "onnx.json").read_text())
    del about["n_speakers"]
    (folder / "onnx.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="older version"):
        OnnxFlowtron(folder)


def test_what_cannot_be_exported(tmp_path, capsys):
    source = checkpoint(tmp_path / "model", use_cumm_attention=True)
    assert main(["export", "--format", "onnx", str(source), str(tmp_path / "onnx")]) == 2
    assert "location-sensitive" in capsys.readouterr().err
    with pytest.raises(InputError, match="no exported model"):
        OnnxFlowtron(tmp_path)
