"""The experiments' scripts on a tiny voice: statistics that are known, and each run from its command to its files."""

import csv
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import SPEAKERS, save_tiny_voice, write_wav

from flowtron.checkpoint import save_model
from flowtron.config import Config, ModelConfig
from flowtron.data import Utterance
from flowtron.errors import exit_code_of
from flowtron.evaluate import Heard
from flowtron.model import build_any
from flowtron.model.prior import Mixture
from flowtron.text import SYMBOLS

# The tiny voice speaks noise, in which there is often no pitch.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
SCRIPTS = Path(__file__).parent.parent / "scripts" / "experiments"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments")
    save_tiny_voice(folder / "voice")
    save_tiny_voice(folder / "mixture", n_components=3, mean_scale=3.0)
    kind = {"kind": "tacotron2", "n_text_dim": 8, "n_hidden": 8, "n_attn_channels": 4, "n_speakers": 2}
    kind |= {"n_speaker_dim": 4, "prenet_dim": 8, "postnet_dim": 8, "n_frames_per_step": 4, "mel_mean": -5.0}
    config = Config(model_config=ModelConfig(**kind))
    save_model(folder / "tacotron2", build_any(config.model), config, symbols=SYMBOLS, speakers=SPEAKERS)
    corpus = folder / "corpus"
    lines, factors = [], ["path,rate,semitones,gain_db"]
    for number in range(8):
        path = f"wavs/{number}.wav"
        write_wav(corpus / path, 0.4 + 0.02 * number, hz=150 + 20 * number)
        lines.append(f"{path}|A tone number {number}.|{SPEAKERS[number // 4]}")
        factors.append(f"{path},{1 + 0.1 * (number % 4)},{number % 4},{-(number % 4)}")
    (corpus / "train.txt").write_text("\n".join(lines))
    (corpus / "factors.csv").write_text("\n".join(factors))
    return folder


@pytest.fixture
def experiment(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def load(name, sentences=("Hm.", "Oh.")):
        for known in ("common", name):
            sys.modules.pop(known, None)
        module = importlib.import_module(name)
        if hasattr(module, "SENTENCES"):
            monkeypatch.setattr(module, "SENTENCES", sentences)
        return module

    def perform(module, *arguments, model="voice"):
        output = tmp_path / "out"
        common = ["-m", str(folder / model), "-v", "griffin_lim", "-o", str(output)]
        monkeypatch.setattr(sys, "argv", [module.__name__, *common, *map(str, arguments)])
        code = exit_code_of(module.main)
        result = json.loads((output / "result.json").read_text()) if code == 0 else None
        return code, result, output

    return load, perform


def measurements(output):
    with (output / "measurements.csv").open() as file:
        return list(csv.DictReader(file))


def test_spreads_are_what_they_are_called(experiment):
    variation = experiment[0]("variation")
    generator = np.random.default_rng(0)
    values = generator.normal(0, [[2.0], [4.0]], (2, 4000)) + np.array([[100.0], [500.0]])
    value, low, high, _ = variation.pooled_spread(values)
    assert value == pytest.approx(np.sqrt(10), rel=0.05) and low < value < high < 1.1 * low
    contours = [generator.normal(200, 7.0, (60, 30))]
    contours[0][:, 5] = np.nan  # nobody voices it
    contours[0][:50, 6] = np.nan  # few do
    contours[0][0, 7] = np.nan
    assert variation.contour_spread(contours)[0] == pytest.approx(7.0, rel=0.1)
    assert variation.pooled_spread(np.ones((2, 5)))[0] == 0


def test_the_robust_spread_minds_neither_a_few_wild_frames_nor_those_of_other_settings(experiment):
    variation = experiment[0]("variation")
    generator = np.random.default_rng(0)
    movement = np.tile([2.0, -2.0], 20)
    contour = 100 * 2 ** ((movement + generator.normal(0, 1.5, (60, 40))) / 12)
    contour[:3] *= 1.6  # three seeds far off
    contour[:30, 4] = np.nan
    unvoiced = contour.copy()
    unvoiced[:30, 9] = np.nan
    (chosen,) = [variation.surely_voiced([contour, unvoiced[:, :38]])]
    assert list(np.flatnonzero(~chosen)) == [4, 9, 38, 39]
    value, low, high, _ = variation.robust_contour_spread([contour], [chosen])
    assert value == pytest.approx(1.5, rel=0.15) and low < value < high
    assert variation.contour_spread([variation.semitones(contour)])[0] > 1.2 * value
    assert variation.common_movement([contour], [chosen]) == pytest.approx(2.0, rel=0.1)
    assert np.isnan(variation.robust_contour_spread([contour], [chosen & False])[0])


def test_growth_is_known_better_than_the_spreads_that_share_their_seeds(experiment):
    variation = experiment[0]("variation")
    noise = np.random.default_rng(0).normal(0, 1, (2, 2, 200))
    less, more = (variation.pooled_spread(values) for values in (noise[0], 1.05 * noise[0]))
    other = variation.pooled_spread(1.05 * noise[1])
    ratio, low, high = variation.growth(less, more)
    assert ratio == pytest.approx(1.05) and 1.049 < low <= high < 1.051 and less.high > more.low
    ratio, low, high = variation.growth(less, other)
    assert ratio == pytest.approx(1.05, rel=0.15) and high - low > 0.1


def test_octave_errors_are_left_out(experiment):
    variation = experiment[0]("variation")
    f0 = np.array([0.0, 200, 210, 190, 400, 100, 205])
    np.testing.assert_array_equal(np.isnan(variation.clean(f0)), [True, False, False, False, True, True, False])
    assert np.isnan(variation.clean(np.zeros(3))).all()


def test_variation_with_both_models(experiment, folder, monkeypatch):
    load, perform = experiment
    variation = load("variation")
    monkeypatch.setattr(variation, "TEXTS", ("Hm.", "Oh."))
    monkeypatch.setattr(variation, "RESAMPLES", 20)
    code, result, output = perform(variation, "--seeds", 3, "--tacotron2", folder / "tacotron2")
    assert code == 0 and len(result["table"]) == 6
    still = next(row for row in result["table"] if row["setting"] == "sigma² 0")
    assert still["spread of seconds"].startswith("0.000") and still["spread of mean F0, Hz"].startswith(("0.00", "nan"))
    assert any("exceeds Tacotron 2's" in name for name in result["shows"])
    assert "growth of the spread of mean F0, same seeds" in result["shows"]
    assert len(measurements(output)) == 6 * 2 * 3 and (output / "contours.png").is_file()
    assert len(list((output / "wavs").iterdir())) == 6 * 2 * 3


def test_interpolation(experiment, monkeypatch):
    load, perform = experiment
    interpolation = load("interpolation")

    def listen(text, wav, rate):
        return Heard(0, len(text.split()), 0, 1, text)

    def likeness(wav, rate):
        spectrum = np.abs(np.fft.rfft(wav, 512))
        return spectrum / np.linalg.norm(spectrum)

    monkeypatch.setattr(interpolation, "listen", listen)
    monkeypatch.setattr(interpolation, "speaker_embedding", likeness)
    code, result, output = perform(interpolation, "--seeds", 2, "--speakers", *SPEAKERS)
    assert code == 0
    by_path = {}
    for row in result["table"]:
        by_path.setdefault(row["path"], []).append(row)
    assert {path: len(rows) for path, rows in by_path.items()} == {
        "samples, linear": 5,
        "samples, spherical": 5,
        "speakers": 5,
    }
    sizes = {path: [float(row["size of z"]) for row in rows] for path, rows in by_path.items()}
    assert sizes["samples, linear"][2] == pytest.approx(0.8 * np.sqrt(0.5), rel=0.05)
    assert sizes["samples, spherical"][2] == pytest.approx(0.8, rel=0.05)
    assert result["shows"]["word errors along the path stay within 10 points of the ends"] is True
    own = [row for row in measurements(output) if row["weight"] == "0.0"]
    assert len(own) == 4 and np.mean([float(row["like_ann"]) for row in own]) > 0
    assert (output / "speakers.png").is_file()


def test_permutations_tell_a_shift_from_noise(experiment):
    transfer = experiment[0]("transfer")
    generator = np.random.default_rng(0)
    assert transfer.permutation_p(generator.normal(0, 1, 40).tolist()) > 0.05
    assert transfer.permutation_p(generator.normal(1, 1, 40).tolist()) < 0.001


def test_transfer_chooses_evidence_by_the_true_factors(experiment, folder, monkeypatch):
    load, perform = experiment
    transfer = load("transfer", ("Hm.",))
    factors = transfer.read_factors(folder / "corpus")
    utterances = [u for u in transfer.read_filelist(folder / "corpus" / "train.txt") if u.speaker == "ben"]
    style = {each.name: each for each in transfer.STYLES}
    assert transfer.chosen(style["high"], utterances, factors, 2) == [3, 2]
    assert transfer.chosen(style["loud"], utterances, factors, 1) == [0]
    arguments = ["--corpus", folder / "corpus", "--speaker", "ben", "--evidence", 2, "--seeds", 2]
    code, result, output = perform(transfer, *arguments)
    assert code == 0 and [row["style"] for row in result["table"]] == [each.name for each in transfer.STYLES]
    assert float(result["table"][0]["true difference"]) == pytest.approx(1.0)
    assert len(measurements(output)) == 6 * 2 and (output / "shares.png").is_file()
    assert not any("from the voice by itself" in row for row in result["table"])
    code, result, _ = perform(transfer, *arguments, "--of", "ann")
    assert code == 0 and all("from the voice by itself" in row for row in result["table"])
    assert perform(transfer, *arguments, "--of", "carl")[0] == 2


def test_pairs_of_transfer_share_their_noise(experiment, folder):
    transfer = experiment[0]("transfer", ("Hm.",))
    voice = transfer.Synthesizer.load(folder / "voice", "griffin_lim")
    evidence = transfer.Evidence([torch.zeros(80, 5)], 1.0, "ben")
    (_, _, before), (_, _, after) = (transfer.speak(voice, "ben", 1, given, 1.0)[0] for given in (None, evidence))
    torch.testing.assert_close(after.z, before.z)


def test_quarters_of_an_utterance_are_measured_apart(experiment):
    over_time = experiment[0]("over_time")
    time = np.arange(11025) / 22050

    def tones(semitones):
        tone = [np.sin(2 * np.pi * 200 * 2 ** (s / 12) * time) * 0.1 * 10 ** (s / 20) for s in semitones]
        return SimpleNamespace(wav=np.concatenate(tone).astype(np.float32), sample_rate=22050)

    for name in ("high", "loud"):
        (style,) = [each for each in over_time.STYLES if each.name == name]
        shifts = over_time.quarters(style, tones([0, 1, 2, 3]), tones([0, 0, 0, 0]), 256)
        assert shifts == pytest.approx([0, 1, 2, 3], abs=0.15)


def test_a_style_comes_over_time(experiment, folder):
    load, perform = experiment
    over_time = load("over_time", ("A tone number three.",))
    voice = over_time.Synthesizer.load(folder / "voice", "griffin_lim")
    posterior = over_time.Posterior.of([torch.full((80, 5), 3.0)], 1e-6, "time_and_batch")
    before, after = (over_time.speak(voice, "A tone.", "ben", 1, each, "towards") for each in (None, posterior))
    share = torch.linspace(0, 3, after.z.shape[-1]).expand_as(after.z)
    torch.testing.assert_close(after.z - before.z, share, atol=0.02, rtol=0)
    asked = ["--corpus", folder / "corpus", "--speaker", "ben", "--evidence", 2, "--seeds", 1]
    code, result, output = perform(over_time, *asked)
    assert code == 0 and [row["style"] for row in result["table"][::3]] == ["high", "low", "loud", "soft"]
    assert len(result["shows"]) == 8
    assert set(measurements(output)[0]) >= {"quarter 1", "quarter 4"} and (output / "over_time.png").is_file()
    assert perform(over_time, *asked[:2], "--speaker", "carl")[0] == 2


def test_transfer_from_a_speaker_that_the_voice_never_heard(experiment, folder, tmp_path):
    load, perform = experiment
    transfer = load("transfer", ("Hm.",))
    corpus = tmp_path / "strangers"
    lines, factors = [], ["path,rate,semitones,gain_db"]
    for number in range(4):
        write_wav(corpus / f"{number}.wav", 0.6 - 0.1 * number)
        lines.append(f"{number}.wav|A tone number {number}.|carl")
        factors.append(f"{number}.wav,{0.6 / (0.6 - 0.1 * number)},{number},0")
    (corpus / "train.txt").write_text("\n".join(lines))
    (corpus / "factors.csv").write_text("\n".join(factors))
    asked = ["--corpus", corpus, "--speaker", "ben", "--of", "carl", "--evidence", 1, "--seeds", 1]
    code, result, _ = perform(transfer, *asked, "--styles", "fast", "slow")
    assert code == 0
    fast, slow = (float(row["shift"].split()[0]) for row in result["table"])
    assert fast > 0.1 and slow < -0.1, "tempo is told against the stranger's own usual one"


@pytest.mark.parametrize(("second_half", "told"), [((0.0, 5.0), 1.0), ((5.0, 0.0), 0.0), ((0.0, 0.0), 0.5)])
def test_means_of_mixtures_tell_speakers(experiment, second_half, told):
    mixtures = experiment[0]("mixtures")
    encodings = []
    for speaker, mean in zip("ab" * 2, (0.0, 5.0, *second_half)):
        means = torch.tensor([[[mean, 9.0], [mean, 9.0]]])
        mixture = Mixture(means, torch.zeros_like(means), torch.tensor([[1.0, 0.0]]))
        encodings.append(SimpleNamespace(utterance=Utterance("", "", speaker), mixture=mixture))
    assert mixtures.told_by_means(encodings) == told


def test_mixtures(experiment, folder, capsys):
    load, perform = experiment
    mixtures = load("mixtures", ("Hm.",))
    corpus = ["--corpus", folder / "corpus" / "train.txt", "--seeds", 1]
    code, result, output = perform(mixtures, *corpus, model="mixture")
    assert code == 0 and 0 <= result["shows"]["share of recordings whose speaker their component tells"] <= 1
    assert 0 <= result["shows"]["share whose speaker the mean of their mixture tells"] <= 1
    assert result["shows"]["by chance"] == 0.5
    assert len(measurements(output)) == 3 * len(mixtures.DIMENSIONS) * 2
    table = (output / "table.md").read_text()
    assert all(column in table.splitlines()[0] for column in ("speaker", "component 2", "dimension", "level, dB"))
    assert perform(mixtures, *corpus)[0] == 2
    assert "no mixture" in capsys.readouterr().err
