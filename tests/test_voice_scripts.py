"""Scripts around the bundled voice, on a tiny model and short recordings."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny import save_tiny_voice, write_wav

from flowtron.checkpoint import load_model, save_model
from flowtron.config import parse_config
from flowtron.errors import InputError
from flowtron.model import build_model
from flowtron.synthesizer import Synthesizer
from flowtron.text import SYMBOLS

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import check_robustness
import make_recordings
import make_strangers
import plot_curves
import release_voice
import sigma_table

TINY = {
    "train_config": {"output_directory": "/home/somebody/run"},
    "data_config": {"training_files": "/home/somebody/train.txt", "feature_cache_path": "/home/somebody/cache"},
    "model_config": {"n_text_dim": 8, "n_speaker_dim": 4, "n_hidden": 16, "n_attn_channels": 8, "n_speakers": 2},
}


@pytest.fixture()
def run(tmp_path):
    """A training's output folder with two checkpoints of different weights."""
    config = parse_config(TINY)
    for step in (5, 10):
        torch.manual_seed(step)
        folder = tmp_path / "run" / "checkpoints" / f"{step:08d}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        model = build_model(config.model)
        save_model(folder, model, config, symbols=SYMBOLS, speakers=["a", "b"], step=step, metrics={"validation": 1.0})
    return tmp_path / "run"


def test_released_voice_is_the_last_checkpoint_in_float16_without_local_paths(run, tmp_path):
    release_voice.release(run / "checkpoints" / "00000005", "name", None, tmp_path / "voices")
    (tmp_path / "voices" / "name" / "README.md").write_text("The card.")
    report = tmp_path / "evaluation.json"
    report.write_text(json.dumps({"summary": {"all": {"wer": 7.5, "wer_interval": [6.0, 9.0]}}}))
    folder = release_voice.release(run, "name", report, tmp_path / "voices")
    voice, source = load_model(folder), load_model(run / "checkpoints" / "00000010")
    assert (folder / "README.md").read_text() == "The card."
    assert voice.step == 10 and voice.speakers == ["a", "b"] and voice.metrics == {"wer": 7.5}
    for name, weight in voice.model.state_dict().items():
        assert torch.equal(weight, source.model.state_dict()[name].half().float()), name
    assert "somebody" not in (folder / "model.json").read_text()
    sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in (folder, run / "checkpoints" / "00000010")]
    assert sizes[0] < 0.7 * sizes[1]


def test_a_missing_report_is_refused_and_nothing_written(run, tmp_path):
    with pytest.raises(InputError, match=r"nothing\.json: no such report"):
        release_voice.release(run, "name", tmp_path / "nothing.json", tmp_path / "voices")
    assert not (tmp_path / "voices").exists()


def test_transcripts_leave_out_tones_and_sounds(tmp_path):
    import gzip

    lines = "; title\nhello: Hello\nbeep: [a tone]\na: A\nmenu: Press  one:\n two\nbye: Bye...\nwhy: Why?\n"
    (tmp_path / "core-sounds-en.txt.gz").write_bytes(gzip.compress(lines.encode()))
    found = make_recordings.transcripts(tmp_path)
    assert found == {"hello": "Hello.", "menu": "Press one.", "bye": "Bye...", "why": "Why?"}


def test_sigma_table_has_a_row_a_sigma_below_those_of_the_recordings(tmp_path):
    buzz = 0.2 * np.sign(np.sin(2 * np.pi * 120 * np.arange(22050) / 22050)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", buzz, 22050)
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'a.wav'}|Yes, it is.|heart\n", encoding="utf-8")
    found = sigma_table.measure("demo", str(tmp_path / "list.txt"), 1, [0.0, 0.5], "griffin_lim")
    lines = sigma_table.table(found).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| recordings", "| copy synthesis", "| 0", "| 0.5"]
    assert len({line.count("|") for line in lines}) == 1
    assert abs(float(lines[2].split(" | ")[3]) - 120) < 3


def test_curves_join_runs_and_the_later_wins(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    for run, steps in (("first", (10, 20, 30)), ("second", (20, 40))):
        with SummaryWriter(str(tmp_path / run / "logs")) as writer:
            for step in steps:
                writer.add_scalar("training/nats_per_dim", step + (run == "second"), step)
    scalars = plot_curves.read_scalars([tmp_path / "first", tmp_path / "second"])
    assert scalars["training/nats_per_dim"] == {10: 10.0, 20: 21.0, 40: 41.0}
    assert len(plot_curves.draw(scalars).axes) == len(plot_curves.PANELS)
    with pytest.raises(InputError, match="no TensorBoard log"):
        plot_curves.read_scalars([tmp_path / "third"])


def test_robustness_is_judged_along_the_voices_own_path(tmp_path, monkeypatch):
    save_tiny_voice(tmp_path / "voice")
    voice = Synthesizer.load(tmp_path / "voice")
    voice.path_width = 1.5
    widths = []
    synthesize_mels = check_robustness.synthesize_mels

    def observed(model, utterances, options, **others):
        widths.append(options.path_width)
        return synthesize_mels(model, utterances, options, **others)

    monkeypatch.setattr(check_robustness, "synthesize_mels", observed)
    for mode in check_robustness.MODES:
        check_robustness.speak(voice, "Hello there.", "ann", mode, 0, check_robustness.Count())
    assert set(widths) == {1.0} and len(widths) >= 3


def test_strangers_speak_at_the_factors_that_are_written_down(tmp_path, monkeypatch):
    asked = []

    def run(command, **_):
        settings = dict(part.split("=") for part in (command[4], command[6]))
        asked.append((command[2], command[-3], {name: float(value) for name, value in settings.items()}))
        write_wav(Path(command[-1]), 0.5, rate=16000)

    monkeypatch.setattr(make_strangers.subprocess, "run", run)
    made = make_strangers.make_strangers(["slt", "awb"], ["It is 3.", "Yes."], 1, tmp_path)
    assert made == {"slt": 2, "awb": 2} and [voice for voice, *_ in asked] == ["slt", "slt", "awb", "awb"]
    assert asked[0][1] == "It is three." and asked[1][1] == "Yes."
    rows = [line.split(",") for line in (tmp_path / "factors.csv").read_text().splitlines()]
    assert rows[0] == ["path", "rate", "semitones", "gain_db"]
    lines = (tmp_path / "train.txt").read_text().splitlines()
    assert lines[0] == "wavs/slt_00000.wav|It is 3.|slt"
    levels = []
    for (voice, _, settings), (name, rate, semitones, gain) in zip(asked, rows[1:]):
        assert settings["duration_stretch"] == pytest.approx(1 / float(rate), abs=1e-3)
        hz = make_strangers.MEAN_HZ[voice] * 2 ** (float(semitones) / 12)
        assert settings["int_f0_target_mean"] == pytest.approx(hz, abs=0.1)
        wav, sample_rate = soundfile.read(tmp_path / name)
        assert sample_rate == 22050
        levels.append(10 * np.log10(np.mean(wav**2)) - float(gain))
    assert np.ptp(levels) < 0.1, "the same tone, but for the gain"

    def missing(command, **_):
        raise FileNotFoundError("flite")

    monkeypatch.setattr(make_strangers.subprocess, "run", missing)
    with pytest.raises(InputError, match="apt-get install flite"):
        make_strangers.make_strangers(["slt"], ["Yes."], 1, tmp_path / "other")
