"""Measures of speech: exact ones on what is known, and the whole on real speech."""

import json
import math

import numpy as np
import pytest
import torch
from tiny import save_tiny_voice, write_wav

from flowtron.audio import AudioSettings
from flowtron.cli import main
from flowtron.errors import InputError
from flowtron.evaluate import edits, interval, normalise, pitch, pitch_error, rate, transcribe, warp

RATE = 22050


def harmonics(hz, seconds=1.0):
    """A buzz of ten harmonics."""
    time = np.arange(round(seconds * RATE)) / RATE
    return sum(np.sin(2 * np.pi * k * hz * time) / k for k in range(1, 11)) * 0.1


@pytest.mark.parametrize(
    ("reference", "heard", "expected"),
    [
        ("a b c", "a b c", 0),
        ("a b c", "a c", 1),
        ("a b c", "a x b c", 1),
        ("a b", "c d", 2),
        ("", "a", 1),
        ("a", "", 1),
    ],
)
def test_edits_counts_insertions_deletions_and_substitutions(reference, heard, expected):
    assert edits(reference.split(), heard.split()) == expected


def test_numbers_case_and_punctuation_do_not_count_as_errors():
    assert normalise("It costs 25 dollars, no?") == normalise("it costs twenty five dollars no")
    assert normalise(" ... ") == []


def test_rate_is_of_all_words_and_its_interval_holds_it():
    result = rate([(1, 10), (0, 30), (3, 10)])
    assert result["value"] == pytest.approx(100 * 4 / 50)
    assert result["low"] < result["value"] < result["high"]
    assert rate([(0, 5)] * 4) == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_interval_narrows_with_more_values_and_leaves_out_nan():
    generator = np.random.default_rng(0)
    few, many = (interval([*generator.normal(3, 1, n), math.nan]) for n in (20, 2000))
    assert few[0] < 3 < few[1] and many[1] - many[0] < 0.5 * (few[1] - few[0])


def test_pitch_of_a_buzz_is_its_fundamental_and_silence_has_none():
    wav = np.concatenate([np.zeros(RATE // 2), harmonics(150.0), np.zeros(RATE // 2)])
    f0 = pitch(wav, RATE)
    assert abs(len(f0) - (len(wav) // 256 + 1)) <= 1
    assert np.median(f0[f0 > 0]) == pytest.approx(150, rel=0.01)
    assert (f0[:30] == 0).all()


def test_warping_undoes_a_pause_and_pitch_error_is_the_difference():
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.05, RATE // 2)
    first = np.concatenate([harmonics(120.0), noise])
    second = np.concatenate([harmonics(130.0), harmonics(130.0, 0.3), noise])
    settings = AudioSettings()
    assert warp(first, first, settings).distortion == pytest.approx(0, abs=1e-4)
    warped = warp(first, second, settings)
    assert 0 < warped.distortion < warp(first, noise, settings).distortion
    f0 = [pitch(wav, RATE) for wav in (first, second)]
    assert pitch_error(*f0, warped.path) == pytest.approx(10, abs=2)
    assert math.isnan(pitch_error(np.zeros(5), np.zeros(5), np.zeros((1, 2), dtype=int)))


def test_listening_leaves_the_number_of_threads_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        transcribe(np.zeros(8000, dtype=np.float32), 16000)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


class Ear:
    """Stands for the models that listen: it mishears the first word of synthesized speech."""

    def __init__(self, monkeypatch):
        import flowtron.evaluate as module

        monkeypatch.setattr(module, "transcribe", self.transcribe)
        monkeypatch.setattr(module, "dnsmos", lambda wav, rate: 3.0)
        monkeypatch.setattr(module, "speaker_embedding", lambda wav, rate: np.array([0.6, 0.8]))
        self.turn = 0

    def transcribe(self, wav, sample_rate, model=None, threads=2):
        self.turn += 1
        return "Lumber is spoken." if self.turn % 3 == 1 else "Number is spoken."


def test_the_command_measures_each_speaker_and_all_beside_recordings_and_copies(tmp_path, monkeypatch, capsys):
    save_tiny_voice(tmp_path / "voice")
    rows = []
    for number in range(4):
        write_wav(tmp_path / f"{number}.wav", 0.5, hz=150 + 20 * number)
        rows.append(f"{number}.wav|Number is spoken.|{('ann', 'ben')[number % 2]}")
    (tmp_path / "list.txt").write_text("\n".join(rows))
    Ear(monkeypatch)
    command = ["evaluate", str(tmp_path / "voice"), "--sentences", str(tmp_path / "list.txt"), "--json"]
    assert main([*command, "--pitch", "-o", str(tmp_path / "report.json"), "--worst", "1"]) == 0
    measured = json.loads(capsys.readouterr().out)
    asked = {"wer", "cer", "dnsmos"}
    asked |= {f"{name}_{beside}" for name in asked for beside in ("source", "copy")} - {"cer_source", "cer_copy"}
    asked |= {"alignment_failures", "sentences", "speaker_similarity", "realtime", "speaker_similarity_other"}
    asked |= {"mel_cepstral_distortion_db", "f0_mean_hz", "f0_spread_hz", "f0_error_hz", "words_per_second"}
    assert list(measured) == ["all", "ann", "ben"] and all(asked <= set(values) for values in measured.values())
    assert [values["sentences"] for values in measured.values()] == [4, 2, 2]
    for values in measured.values():
        assert values["wer"] == pytest.approx(100 / 3) and values["wer_source"] == values["wer_copy"] == 0
        assert values["cer"] == pytest.approx(100 / 14) and values["cer_interval"][0] <= values["cer"]
    # A number that could not be measured is null: JSON has no NaN.
    report = json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert len(report["utterances"]) == 4 and report["utterances"][0]["heard"] == "Lumber is spoken."
    assert len(list(tmp_path.glob("report_worst0_*.png"))) == len(list(tmp_path.glob("report_worst0_*.wav"))) == 1
    assert main([*command, "--limit", "1", "--no-references"]) == 0
    few = json.loads(capsys.readouterr().out)
    assert few["all"]["sentences"] == 2 and "wer_copy" not in few["all"]


def test_a_folder_without_a_recogniser_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no model\.bin"):
        transcribe(np.zeros(8000, dtype=np.float32), 16000, tmp_path)
