"""`flowtron style` on a tiny voice: every action, right and wrong."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import save_tiny_voice, write_wav

from flowtron.cli import main
from flowtron.data import Utterance
from flowtron.errors import InputError
from flowtron.style import (
    Evidence,
    Posterior,
    blend_speakers,
    encode,
    fingerprint,
    interpolation_source,
    prior_source,
    tempo,
)
from flowtron.synthesizer import DEFAULT_SIGMA, Synthesizer

TEXT = "Hello there."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("style")
    save_tiny_voice(folder / "voice")
    save_tiny_voice(folder / "mixture", n_components=3, mean_scale=3.0)
    save_tiny_voice(folder / "nobody", n_components=3, mean_scale=3.0, dummy_speaker_embedding=True)
    lines = []
    for number in range(3):
        write_wav(folder / "wavs" / f"{number}.wav", 0.4 + 0.1 * number, hz=150 + 60 * number)
        lines.append(f"wavs/{number}.wav|A tone number {number}.|{'ann' if number else 'ben'}")
    (folder / "list.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def voice(folder):
    return Synthesizer.load(folder / "voice", "griffin_lim")


@pytest.fixture
def style(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(action, *arguments, model="voice"):
        code = main(["style", action, "-m", str(folder / model), "-v", "griffin_lim", "--json", *map(str, arguments)])
        output, error = capsys.readouterr()
        return (json.loads(output) if code == 0 else error), code

    return run


def wav(values):
    from flowtron.audio import load_wav

    return load_wav(values["files"][0], 22050)


def close(values, speech):
    """Whether a written sound is a speech's, up to the 16 bits of the file."""
    sound = wav(values)
    return len(sound) == len(speech.wav) and float((sound - torch.from_numpy(speech.wav)).abs().max()) < 1e-3


def test_evidence_goes_through_a_file(style, voice, folder):
    written, code = style("encode", "-e", folder / "list.txt", "-i", "ben", "-o", "e.npz")
    assert code == 0 and written["recordings"] == 3 and written["speaker"] == "ben"
    evidence = Evidence.load("e.npz")
    rows = [(0, "ben"), (1, "ann"), (2, "ann")]
    utterances = [Utterance(folder / "wavs" / f"{k}.wav", f"A tone number {k}.", name) for k, name in rows]
    encodings = encode(voice, utterances, "ben")
    for z, encoding in zip(evidence.z, encodings, strict=True):
        torch.testing.assert_close(z, encoding.z)
    assert evidence.tempo == written["tempo"] == tempo(voice, encodings)
    assert evidence.model == fingerprint(voice)
    with np.load("e.npz") as arrays:
        joined = torch.cat(evidence.z, 1)
        np.testing.assert_allclose(arrays["mean"], joined.mean(1), rtol=1e-5)
        np.testing.assert_allclose(arrays["deviation"], joined.std(1), rtol=1e-5)


def test_speaking_with_evidence_is_the_posterior(style, voice, folder):
    style("encode", "-e", folder / "list.txt", "-i", "ben", "-o", "e.npz")
    evidence = Evidence.load("e.npz")
    refused, code = style("speak", TEXT, "-e", "e.npz", "-i", "ann")
    assert code == 2 and "it was encoded as ben, but ann is to speak" in refused
    spoken, code = style("speak", TEXT, "-e", "e.npz", "-i", "ben", "--lambda", 3.0, "-s", 0.4, "--seed", 5)
    assert code == 0 and spoken["weight"] == pytest.approx(0.5) and spoken["speaker"] == "ben"
    assert spoken["rate"] == pytest.approx(evidence.tempo**0.5)
    posterior = Posterior.of(evidence.z, 3.0, "time_and_batch")
    expected = voice.render(TEXT, "ben", z=posterior.source(5, 0.4, voice), sigma=0.4, seed=5, rate=spoken["rate"])
    assert close(spoken, expected)
    # Who speaks is in the file, and from the recordings themselves it is the same.
    unnamed, _ = style("speak", TEXT, "-e", "e.npz", "--lambda", 3.0, "-s", 0.4, "--seed", 5)
    assert unnamed["speaker"] == "ben" and close(unnamed, expected)
    again, _ = style("speak", TEXT, "-e", folder / "list.txt", "-i", "ben", "--lambda", 3.0, "-s", 0.4, "--seed", 5)
    assert close(again, expected)


def test_evidence_is_for_the_model_that_encoded_it(style, folder):
    style("encode", "-e", folder / "list.txt", "-o", "e.npz")
    error, code = style("speak", TEXT, "-e", "e.npz", model="mixture")
    assert code == 2 and "e.npz: its z are another model's" in error
    # Files of before the fingerprint do not tell.
    Evidence.load("e.npz")._replace(model="").save("old.npz")
    assert style("speak", TEXT, "-e", "old.npz", model="mixture")[1] == 0


def test_a_tempo_that_doubts_the_transcript_is_told(style, tmp_path):
    long = write_wav(tmp_path / "long.wav", 3.0)
    written, _ = style("encode", "-e", long, "--transcript", "He.", "-o", "e.npz")
    assert len(written["notes"]) == 1 and "long.wav: its tempo is 0." in written["notes"][0]
    for evidence in (["-e", long, "--transcript", "He."], ["-e", "e.npz"]):
        spoken, code = style("speak", "Hi.", *evidence, "--rate", 1)
        assert code == 0 and "its tempo is 0." in spoken["notes"][0]


def test_aggregation_variance_and_rate_are_chosen(style, voice, folder):
    recording = folder / "wavs" / "1.wav"
    said = ["--transcript", "A tone number 1."]
    options = ["--aggregation", "batch", "--frames", 20, "--posterior-sigma", "--lambda", 1.0, "--rate", 1.3]
    spoken, code = style("speak", TEXT, "-e", recording, *said, "-i", "ann", *options, "--plot", "a.png")
    assert code == 0 and spoken["rate"] == 1.3 and spoken["files"][1] == "a.png"
    (encoding,) = encode(voice, [Utterance(recording, said[1], "ann")])
    posterior = Posterior.of([encoding.z], 1.0, "batch", 20)
    z = posterior.source(1234, None, voice)
    assert close(spoken, voice.render(TEXT, "ann", z=z, sigma=DEFAULT_SIGMA, rate=1.3))


def test_tempo_is_recorded_against_predicted(voice, folder):
    def pace(seconds):
        path = write_wav(folder / "wavs" / f"pace{seconds}.wav", seconds)
        return tempo(voice, encode(voice, [Utterance(path, "A tone.", "ann")]))

    assert pace(0.5) / pace(1.0) == pytest.approx(2.0, rel=0.03)
    assert tempo(voice, []) == 1.0


@pytest.mark.parametrize("what", ["rhythm", "alignment"])
def test_rhythm_is_transferred(style, voice, folder, what):
    recording = Utterance(folder / "wavs" / "2.wav", "A tone number 2.", "ben")
    said = ["-e", recording.path, "--transcript", recording.text]
    spoken, code = style("transfer", *said, "-i", "ben", "--what", what, "-s", 0.5)
    (encoding,) = encode(voice, [recording])
    assert code == 0 and len(wav(spoken)) // 256 + 1 - encoding.mel.shape[1] in (0, 1)
    from flowtron.style import transfer_alignment, transfer_rhythm

    function = {"rhythm": transfer_rhythm, "alignment": transfer_alignment}[what]
    assert close(spoken, function(voice, encoding, "ben", prior_source(voice, 1234, 0.5)))


def test_between_speakers_and_between_draws(style, voice):
    spoken, code = style("interpolate", TEXT, "--speakers", "ann", "ben", "--weight", 0.25)
    blended, name = blend_speakers(voice, "ann", "ben", 0.25)
    assert code == 0 and spoken["speaker"] == name and close(spoken, blended.render(TEXT, name))
    moving, code = style("interpolate", TEXT, "--seeds", 1, 2, "--weight", "0:0,1:1", "--spherical", "-s", 0.7)
    draws = prior_source(voice, 1, 0.7), prior_source(voice, 2, 0.7)
    z = interpolation_source(*draws, [(0.0, 0.0), (1.0, 1.0)], spherical=True)
    assert code == 0 and moving["speaker"] == "ann" and close(moving, voice.render(TEXT, z=z, sigma=0.7))
    over, code = style("interpolate", TEXT, "--speakers", "ann", "ben", "--weight", "0:0,1:1")
    assert code == 0 and over["speaker"] == name


def test_from_a_draw_to_evidence(style, voice, folder):
    style("encode", "-e", folder / "list.txt", "-i", "ben", "-o", "e.npz")
    posterior = Posterior.of(Evidence.load("e.npz").z, 0.1, "time_and_batch")
    ends = prior_source(voice, 7, 0.4), posterior.source(7, 0.4, voice)
    z = interpolation_source(*ends, [(0.0, 0.0), (1.0, 1.0)])
    asked = ["-e", "e.npz", "--lambda", 0.1, "-s", 0.4, "--seed", 7]
    moving, code = style("interpolate", TEXT, *asked, "--weight", "0:0,1:1")
    rate = posterior.rate(Evidence.load("e.npz").tempo) ** 0.5
    assert code == 0 and moving["speaker"] == "ben"
    assert close(moving, voice.render(TEXT, "ben", z=z, sigma=0.4, seed=7, rate=rate))
    # Its ends are the prior and what `speak` gives.
    for weight, of in ((1, posterior), (0, None)):
        end, _ = style("interpolate", TEXT, *asked, "--weight", weight)
        if of is None:
            assert close(end, voice.render(TEXT, "ben", sigma=0.4, seed=7))
        else:
            spoken, _ = style("speak", TEXT, *asked, "-o", "spoken.wav")
            assert torch.equal(wav(end), wav(spoken))
    assert "either --speakers, --seeds or -e" in style("interpolate", TEXT, *asked, "--seeds", 1, 2)[0]


def test_alignment_and_z_of_a_recording_are_transferred(style, voice, folder):
    from flowtron.style import transfer_alignment

    recording = Utterance(folder / "wavs" / "2.wav", "A tone number 2.", "")
    said = ["-e", recording.path, "--transcript", recording.text, "-i", "ben", "--what", "alignment"]
    batch = ["--aggregation", "batch", "--frames", 40, "--lambda", 0.5]
    spoken, code = style("transfer", *said, "--from-posterior", *batch, "-s", 0.5)
    (encoding,) = encode(voice, [recording], "ben")
    z = Posterior.of([encoding.z], 0.5, "batch", 40).source(1234, 0.5, voice)
    assert code == 0 and close(spoken, transfer_alignment(voice, encoding, "ben", z))


def test_absurd_transcripts_and_outputs_are_refused(style, voice, folder, monkeypatch):
    recording = folder / "wavs" / "2.wav"
    monkeypatch.setattr("flowtron.style.tempo", lambda voice, encodings: 0.02)
    said = ["-e", recording, "--transcript", "A."]
    assert "its tempo is 0.02" in style("speak", TEXT, *said)[0]
    spoken, code = style("speak", TEXT, *said, "--rate", 1)
    assert code == 0 and "its tempo is 0.02" in spoken["notes"][0]
    moved, code = style("transfer", *said)
    assert code == 0 and "its tempo is 0.02" in moved["notes"][0]
    assert "it is read here" in style("speak", TEXT, *said, "-o", recording)[0]


def test_sigma_over_the_utterance(style, voice, folder):
    points = [(0.0, 0.1), (1.0, 0.9)]
    spoken, code = style("interpolate", TEXT, "--speakers", "ann", "ben", "--weight", 0, "-s", "0:0.1,1:0.9")
    name = blend_speakers(voice, "ann", "ben", 0.0)[1]
    expected = voice.render(TEXT, "ann", z=prior_source(voice, 1234, points), sigma=0.5)
    assert code == 0 and spoken["speaker"] == name and close(spoken, expected)
    evidence = ["-e", folder / "wavs" / "2.wav", "--transcript", "A tone number 2."]
    spoken, code = style("speak", TEXT, *evidence, "-i", "ben", "--rate", 1, "-s", "0:0.1,1:0.9")
    encoded = encode(voice, [Utterance(folder / "wavs" / "2.wav", "A tone number 2.", "ben")])
    posterior = Posterior.of([each.z for each in encoded], aggregation="time_and_batch")
    assert code == 0
    assert close(spoken, voice.render(TEXT, "ben", z=posterior.source(1234, points, voice), sigma=0.5, rate=1.0))


def test_components_are_told_chosen_and_moved(style, folder):
    told, code = style("mixture", "-e", folder / "list.txt", model="mixture")
    assert code == 0 and set(told["shares"]) == {"ann", "ben"}
    assert all(sum(row) == pytest.approx(1, abs=1e-5) and len(row) == 3 for row in told["shares"].values())
    of_ann = [each["shares"] for each in told["recordings"] if each["speaker"] == "ann"]
    assert len(of_ann) == 2 and np.mean(of_ann, 0) == pytest.approx(told["shares"]["ann"], abs=1e-6)
    sounds = []
    for options in (["--component", 0], ["--component", 1], ["--component", 1, "--translate", "7:3"]):
        spoken, code = style("mixture", TEXT, *options, "-s", 0.5, model="mixture")
        assert code == 0
        sounds.append(wav(spoken))
    assert not any(len(a) == len(b) and torch.equal(a, b) for a, b in pairwise(sounds))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speak", "Hi."], "no evidence"),
        (["speak", "...", "-e", "e.npz"], "nothing to speak"),
        (["speak", "One. [pause 1s] Two.", "-e", "e.npz"], "without typed pauses"),
        (["speak", "Hi.", "-e", "none.npz"], "not evidence of a style"),
        (["speak", "Hi.", "-e", "none.npz", "-e", "b.wav"], "all the evidence"),
        (["speak", "Hi.", "-e", "none.wav"], "give --transcript"),
        (["speak", "Hi.", "-e", "none.txt"], "none.txt"),
        (["encode", "-e", "none.wav", "--transcript", "a", "--transcript", "b"], "belongs to no recording"),
        (["encode", "-e", "none.txt", "-o", "a.wav"], "choose that suffix"),
        (["transfer"], "no evidence"),
        (["transfer", *["-e", "a.wav", "--transcript", "a"] * 2], "given 2"),
        (["interpolate", "Hi."], "give either"),
        (["interpolate", "Hi.", "--seeds", "1", "2", "--weight", "a"], "--weight a"),
        (["interpolate", "Hi.", "--seeds", "1", "2", "--weight", "0:b"], "--weight 0:b"),
        (["interpolate", "Hi.", "--seeds", "1", "2", "--weight", "0:0,3:1"], "in order"),
        (["interpolate", "Hi.", "--seeds", "1", "2", "--weight", "5"], "--weight 5: expected values of 0 to 1"),
        (["interpolate", "Hi.", "--seeds", "1", "2", "--weight", "0:0,1:9"], "--weight 0:0,1:9: expected values of"),
        (
            ["interpolate", "Hi.", "--seeds", "1", "2", "-s", "0:-1,1:2"],
            "--sigma 0:-1,1:2: expected values of 0 or",
        ),
        (["interpolate", "Hi.", "--speakers", "ann", "carl"], "'carl'"),
        (["interpolate", "Hi.", "--speakers", "ann", "ben", "--weight", "nan"], "--weight nan"),
        (["interpolate", "Hi.", "--seeds", "1", "2", "--weight", "0:0,1:inf"], "--weight 1:inf"),
        (["interpolate", "Hi.", "--speakers", "ann", "ben", "--spherical"], "--spherical"),
        (["interpolate", "Hi.", "--speakers", "ann", "ben", "-i", "ann"], "-i is who speaks"),
        (["interpolate", "Hi.", "--seeds", "1", "2", "--lambda", "1"], "--lambda, --aggregation"),
        (["interpolate", "Hi.", "--seeds", "1", "2", "--posterior-sigma"], "--posterior-sigma are of evidence"),
        (["interpolate", "Hi.", "--seeds", "1", "2", "--transcript", "a"], "--transcript is of a recording"),
        (["transfer", "-e", "a.wav", "--transcript", "a", "--frames", "3"], "add --from-posterior"),
        (["mixture", "Hi."], "no mixture"),
        (["mixture", "Hi.", "-e", "none.txt"], "leave out the text or -e"),
        (["mixture", "-e", "none.txt", "--component", "2", "-o", "x.wav"], "--component, -o: there is no text"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(style, arguments, message):
    error, code = style(*arguments)
    assert code == 2 and message in error and error.startswith("flowtron style: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--component", "3"], "component is 3"), (["--translate", "80:1"], "0 to 79"), (["--translate", "x"], "x")],
)
def test_impossible_components_are_refused(style, options, message):
    error, code = style("mixture", "Hi.", *options, model="mixture")
    assert code == 2 and message in error


def test_a_model_without_speakers_takes_recordings_of_anybody(style, folder, tmp_path, capsys):
    (tmp_path / "anna.txt").write_text(f"{folder / 'wavs' / '0.wav'}|A tone number 0.|anna")
    told, code = style("mixture", "-e", "anna.txt", model="nobody")
    assert code == 0 and set(told["shares"]) == {"anna"}
    recording = ["-e", folder / "wavs" / "0.wav", "--transcript", "A tone number 0."]
    told, code = style("mixture", *recording, model="nobody")
    assert code == 0 and set(told["shares"]) == {told["recordings"][0]["speaker"]} == {"unknown"}
    assert style("mixture", "-e", "anna.txt", model="mixture")[1] == 2
    # Its voice is nobody's by name.
    for told, code in (
        style("encode", *recording, "-o", "e.npz", model="nobody"),
        style("speak", TEXT, "-e", "e.npz", model="nobody"),
        style("transfer", "-e", "anna.txt", model="nobody"),
    ):
        assert code == 0 and told["speaker"] is None
    assert main(["style", "mixture", "Hi.", "-m", str(folder / "nobody"), "-v", "griffin_lim"]) == 0
    assert " by " not in capsys.readouterr().out


def test_a_file_of_something_else_is_no_evidence(tmp_path, style):
    np.savez(tmp_path / "a.npz", z_0=np.zeros((3, 4)), tempo=1.0, speaker="ann")
    error, code = style("speak", "Hi.", "-e", tmp_path / "a.npz")
    assert code == 2 and "not of 80 channels" in error
    np.savez(tmp_path / "b.npz", tempo=1.0, speaker="ann")
    with pytest.raises(InputError, match="holds no z"):
        Evidence.load(tmp_path / "b.npz")
