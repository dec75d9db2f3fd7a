"""Training of vocoders: segments, losses, resumption, what is written."""

import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from training import last_state, run_on, scale_as_float16

from flowtron.audio import load_wav, log_mel, save_wav
from flowtron.checkpoint import read_vocoder
from flowtron.config import load_config, parse_config
from flowtron.data import read_filelist
from flowtron.errors import InputError
from flowtron.train import train
from flowtron.vocoder import load_vocoder
from flowtron.vocoder.loading import MODELS
from flowtron.vocoder.objective import LikelihoodObjective, spectra, spectral_distance, vocoder_objective
from flowtron.vocoder.training import MAX_SHARP_CHANNELS, Segments, blurred, generators, prepare, step

ARCHITECTURES = {
    "waveglow": {"n_flows": 2, "n_early_every": 4, "WN_config": {"n_layers": 1, "n_channels": 8}},
    "squeezewave": {"n_flows": 2, "n_early_every": 4, "WN_config": {"n_layers": 1, "n_channels": 8}},
    "wavenet": {"n_layers": 2, "n_stacks": 1, "n_residual": 8, "n_skip": 8, "n_mixtures": 2},
    "source_filter": {"n_channels": 8, "n_blocks": 1, "n_pitch_channels": 8, "n_pitch_blocks": 1},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    torch.manual_seed(0)
    lines = []
    for number in range(3):
        phase = torch.arange(12000 + 500 * number) * (2 * math.pi * (110 + 30 * number) / 22050)
        wav = sum(torch.cos(k * phase) / k for k in range(1, 8)) * 0.1 + 0.01 * torch.randn(len(phase))
        save_wav(folder / f"{number}.wav", wav, 22050)
        lines.append(f"{folder / f'{number}.wav'}|Text.|a")
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    return folder


def config(corpus, kind, output, **train_values):
    base = {"output_directory": str(output), "batch_size": 2, "optim_algo": "AdamW", "learning_rate": 3e-3}
    base |= {"with_tensorboard": False, "ema_decay": 0.5, "iters_per_checkpoint": 1000, **train_values}
    files = str(corpus / "list.txt")
    return parse_config(
        {
            "train_config": base,
            "data_config": {"training_files": files, "validation_files": files},
            "vocoder_config": {"kind": kind, "architecture": ARCHITECTURES[kind], "segment_length": 4096},
        }
    )


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_a_run_lowers_the_loss_and_leaves_a_vocoder(corpus, tmp_path, kind):
    state = prepare(config(corpus, kind, tmp_path / "probe"))
    totals = []
    for _ in range(12):
        losses, norm = step(state)
        state.iteration += 1
        totals.append(float(sum(losses.values())))
        assert math.isfinite(norm)
    assert np.mean(totals[-4:]) < np.mean(totals[:4])
    path = train(config(corpus, kind, tmp_path / "run", max_iters=2))
    assert path.name == "00000002"
    vocoder = load_vocoder(path)
    mel = log_mel(load_wav(corpus / "0.wav")[:2560], vocoder.settings)[None]
    assert vocoder(mel).shape == (1, mel.shape[2] * 256)


def test_a_run_that_goes_on_equals_one_that_never_stopped(corpus, tmp_path):
    whole = train(config(corpus, "source_filter", tmp_path / "whole", max_iters=4))
    train(config(corpus, "source_filter", tmp_path / "parts", max_iters=2))
    parts = train(config(corpus, "source_filter", tmp_path / "parts", max_iters=4))
    for name in ("checkpoints/00000004/vocoder.safetensors",):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert whole.name == parts.name
    with pytest.raises(InputError, match="another model"):
        train(config(corpus, "wavenet", tmp_path / "parts", max_iters=6))


@pytest.mark.parametrize("kind", ["waveglow", "wavenet"])
def test_two_processes_train_as_one_with_all_of_the_batch(corpus, tmp_path, kind):
    configs = [
        config(corpus, kind, tmp_path / str(n), max_iters=3, batch_size=4 // n, n_threads=1, optim_algo="Adam")
        for n in (1, 2)
    ]
    for n, each in enumerate(configs, 1):
        each.vocoder.mel_noise = 0.2
        run_on(n, each)
    one, two = (last_state(tmp_path / str(n)) for n in (1, 2))
    for name, weight in one["model"].items():
        torch.testing.assert_close(two["model"][name], weight, rtol=1e-3, atol=1e-4)
    assert abs(one["schedule"]["best"] - two["schedule"]["best"]) < 1e-3
    # It goes on with another number of processes.
    configs[1].train.max_iters = 4
    run_on(1, configs[1])
    assert last_state(tmp_path / "2")["iteration"] == 4


def test_accumulated_batches_are_one_large_batch(corpus, tmp_path):
    found = []
    for name, values in {
        "large": {"batch_size": 4},
        "accumulated": {"batch_size": 2, "accumulate": 2},
        "global": {"batch_size": 1, "global_batches": 4},
    }.items():
        state = prepare(config(corpus, "waveglow", tmp_path / name, optim_algo="Adam", **values))
        for _ in range(3):
            losses, norm = step(state)
            state.iteration += 1
        found.append(torch.stack([losses["nll"], norm]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-4)


def test_bad_steps_are_named_and_stop_the_run_with_its_state_saved(corpus, tmp_path, monkeypatch, capsys):
    original = LikelihoodObjective.forward
    monkeypatch.setattr(
        LikelihoodObjective,
        "forward",
        lambda self, wav, mel: {name: value * math.nan for name, value in original(self, wav, mel).items()},
    )
    with pytest.raises(InputError, match=r"10 steps in a row.*state is saved"):
        train(config(corpus, "waveglow", tmp_path, max_iters=50))
    said = capsys.readouterr().err
    draws = generators(1234, 3, 0, 2)
    wavs = ", ".join(str(corpus / f"{draw.randrange(3)}.wav") for draw in draws)
    assert f"iteration 3: loss or gradient is not finite, skipped: {wavs}\n" in said
    assert last_state(tmp_path)["iteration"] == 10


def test_the_scale_of_float16_losses_is_found(corpus, tmp_path):
    state = prepare(config(corpus, "waveglow", tmp_path, sigma=1e-3))
    scale_as_float16(state)
    norms = [step(state)[1] for _ in range(6)]
    assert not norms[0].isfinite() and norms[-1].isfinite()


def test_a_warm_start_takes_what_its_patterns_say(corpus, tmp_path, capsys):
    path = train(config(corpus, "waveglow", tmp_path / "first", max_iters=1))
    first, fresh = (
        read_vocoder(path).state,
        prepare(config(corpus, "waveglow", tmp_path / "fresh")).trained.state_dict(),
    )
    values = {"warmstart_checkpoint_path": str(path), "ignore_layers": ["upsample"]}
    weights = prepare(config(corpus, "waveglow", tmp_path / "second", **values)).trained.state_dict()
    assert torch.equal(weights["upsample.weight"], fresh["upsample.weight"])
    assert torch.equal(weights["WN.0.end.weight"], first["WN.0.end.weight"])
    assert "re-initialised: by the config" in capsys.readouterr().out
    with pytest.raises(InputError, match="'melgan' fits no weight"):
        prepare(config(corpus, "waveglow", tmp_path / "third", **{**values, "include_layers": ["melgan"]}))


def test_tensorboard_gets_losses_and_sound(corpus, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config(corpus, "source_filter", tmp_path, max_iters=10, with_tensorboard=True))
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert {"validation/total", "training/energy", "training/pitch"} <= set(events.Tags()["scalars"])
    assert {"0/recording", "0/copy"} <= set(events.Tags()["audio"])


def test_segments_are_those_of_the_whole_recording(corpus, tmp_path):
    settings = parse_config({}).audio_settings()
    segments = Segments(read_filelist(corpus / "list.txt"), settings, 8)
    recording = load_wav(corpus / "1.wav")
    mel = log_mel(recording, settings)
    for start in (0, 3, 20, 48 - 8):
        wav, piece = segments.cut(1, start)
        assert torch.equal(wav, recording[start * 256 : (start + 8) * 256])
        assert (piece - mel[:, start : start + 8]).abs().max() < 1e-4
    cached = Segments(read_filelist(corpus / "list.txt"), settings, 8, cache=str(tmp_path))
    for _ in range(2):  # computed, then read
        assert torch.equal(cached.cut(1, 20)[1], mel[:, 20:28])
    a, b = (segments.draw(generators(7, 3, 0, 4)) for _ in range(2))
    assert torch.equal(a[0], b[0]) and a[1].shape == (4, 80, 8)


def test_fine_tuning_takes_the_predicted_mels(corpus, tmp_path):
    settings = parse_config({}).audio_settings()
    utterances = read_filelist(corpus / "list.txt")
    with pytest.raises(InputError, match="no such predicted mel"):
        Segments(utterances, settings, 8, str(tmp_path))
    for utterance in utterances:
        n_frames = len(load_wav(utterance.path)) // 256 + 1
        np.save(tmp_path / f"{Path(utterance.path).stem}.npy", np.full((80, n_frames), -4.5, dtype=np.float32))
    wav, mel = Segments(utterances, settings, 8, str(tmp_path)).cut(0, 5, predicted=True)
    assert torch.equal(mel, torch.full((80, 8), -4.5)) and wav.shape == (2048,)
    for share, expected in ((1.0, 32), (0.5, 16)):
        _, mels = Segments(utterances, settings, 8, str(tmp_path), share).draw(generators(0, 0, 0, 32))
        assert abs(int((mels == -4.5).all(2).all(1).sum()) - expected) <= 6 * (share < 1)


def test_frozen_layers_stay(corpus, tmp_path):
    path = train(config(corpus, "source_filter", tmp_path / "first", max_iters=1))
    assert len(list((tmp_path / "first" / "checkpoints").iterdir())) == 1
    # By the run's name, whose best checkpoint is taken, as it is for speaking.
    assert load_vocoder(tmp_path / "first").settings == load_vocoder(path).settings
    values = {"max_iters": 2, "warmstart_checkpoint_path": str(tmp_path / "first"), "finetune_layers": ["curves"]}
    after = read_vocoder(train(config(corpus, "source_filter", tmp_path / "second", **values))).state
    moved = {name.split(".")[0] for name, value in read_vocoder(path).state.items() if not value.equal(after[name])}
    assert moved == {"curves"}


def test_unusable_configs_are_refused(corpus, tmp_path):
    with pytest.raises(InputError, match="not trained here"):
        vocoder_objective(torch.nn.Linear(1, 1), parse_config({}).audio_settings(), 1.0)
    with pytest.raises(InputError, match="no recording has 10000 frames"):
        Segments(read_filelist(corpus / "list.txt"), parse_config({}).audio_settings(), 10000)
    with pytest.raises(InputError, match="kind"):
        parse_config({"vocoder_config": {"kind": "melgan"}})


def test_spectral_distance_is_least_for_the_same_sound():
    torch.manual_seed(0)
    a, b = torch.randn(2, 8000) * 0.1, torch.randn(2, 8000) * 0.1
    level = torch.ones(2) * 0.1
    recorded = spectra(a, [256, 1024])
    same, near, far = (spectral_distance(recorded, spectra(x, [256, 1024]), level) for x in (a, b, 3 * b))
    assert float(same) < float(near) < float(far)


@pytest.mark.parametrize("name", ["waveglow", "waveglow_light", "source_filter", "wavenet"])
def test_shipped_configs_fit_their_networks(name):
    loaded = load_config(Path(__file__).parents[1] / "configs" / f"{name}.json")
    inspect.signature(MODELS[loaded.vocoder.kind]).bind_partial(**loaded.vocoder.architecture)
    assert loaded.vocoder.segment_length % loaded.data.hop_length == 0


def test_blurred_mels_lose_harmonics_and_keep_their_envelope():
    envelope = torch.linspace(-2, -8, 80)[:, None].expand(80, 64)
    ripple = torch.cos(math.pi * torch.arange(80))[:, None]
    mel = (envelope + ripple).expand(200, -1, -1)
    assert blurred(mel, generators(0, 0, 0, 200), 0.0).equal(mel)
    result = blurred(mel, generators(0, 0, 0, 200), 0.5)
    assert result.equal(blurred(mel, generators(0, 0, 0, 200), 0.5)), "a function of the generators alone"
    changed = (result - mel).abs().amax((1, 2)) > 0.1
    assert 70 < changed.sum() < 130, "about half of them"
    left = ((result - envelope) * ripple)[changed]
    inner = left[:, MAX_SHARP_CHANNELS + 8 : -8]
    assert inner.min() > -1e-4 and inner.max() < 1 + 1e-4, "harmonics shrink, and nothing else happens"
    assert inner.amin((1, 2)).max() < 0.9, "each loses some"
    assert (inner.amin(1).amax(1) > 0.99).float().mean() > 0.25, "of some only a span"
    assert left[:, 0].min() < 0.9 and (left[:, 8].amin(1) > 0.99).any(), "the lowest blurred channel differs"
