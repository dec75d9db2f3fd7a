"""The object that speaks, with a small untrained model: not what its speech is like, but what must hold of it."""

import json

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.figure import Figure

from flowtron import inference
from flowtron.audio import AudioSettings
from flowtron.checkpoint import save_model
from flowtron.cli import main
from flowtron.config import Config, ModelConfig
from flowtron.errors import InputError
from flowtron.inference import (
    DRAW_STRIDE,
    SamplingOptions,
    Utterance,
    draw_noise,
    pack_weights,
    rescale_durations,
    synthesize_mels,
)
from flowtron.model import build_model
from flowtron.passages import Passage, passages
from flowtron.plots import draw_attention
from flowtron.synthesizer import Synthesizer
from flowtron.text import SYMBOLS, Tokenizer
from flowtron.vocoder import load_vocoder

TEXTS = ["One two three.", "A much longer sentence, with a clause.", "Yes!"]


def random_model(**values):
    """A small model whose output layers are not zero."""
    torch.manual_seed(0)
    small = {"n_text_dim": 16, "n_speaker_dim": 4, "n_hidden": 24, "n_attn_channels": 12, "n_speakers": 2}
    model = build_model(ModelConfig(**{**small, "aligner_dim": 8, **values})).eval().requires_grad_(False)
    for flow in model.flows:
        torch.nn.init.normal_(flow.conditioner.output.weight, std=0.05)
    return model


def random_voice(engine="auto", dtype="float32", vocoder="griffin_lim", **values):
    model = random_model(**values)
    weights = pack_weights(model, engine, dtype)
    return Synthesizer(
        model, Tokenizer(SYMBOLS, p_arpabet=1.0), ["ann", "bob"], AudioSettings(), load_vocoder(vocoder), weights
    )


@pytest.fixture(scope="module")
def voice():
    return random_voice()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("voices") / "small"
    config = Config(model=ModelConfig(n_text_dim=16, n_speaker_dim=4, n_hidden=24, n_attn_channels=12, aligner_dim=8))
    config.train.path_width = 2.5
    torch.manual_seed(0)
    save_model(path, build_model(config.model), config, symbols=SYMBOLS, speakers=["ann"])
    return path


@pytest.mark.parametrize("aligner_dim", [0, 8])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("n_flows", [1, 2])
def test_engines_agree_and_items_are_the_same_alone(n_flows, guided, aligner_dim):
    model = random_model(n_flows=n_flows, aligner_dim=aligner_dim)
    tokenizer = Tokenizer(SYMBOLS, p_arpabet=1.0)
    utterances = [Utterance(tokenizer.encode(text).tokens, i % 2, 7 + i) for i, text in enumerate(TEXTS)]
    options = SamplingOptions(guided=guided, gate_threshold=0.6)
    weights = pack_weights(model, "kernel")
    together = synthesize_mels(model, utterances, options, weights=weights)
    in_torch = synthesize_mels(model, utterances, options)
    for utterance, here, there in zip(utterances, together, in_torch):
        torch.testing.assert_close(here.mel, there.mel, atol=1e-3, rtol=0)
        torch.testing.assert_close(here.attention, there.attention, atol=1e-4, rtol=0)
        alone = synthesize_mels(model, [utterance], options, weights=weights)[0]
        assert alone.mel.equal(here.mel) and alone.attention.equal(here.attention) and alone.z.equal(here.z)


def test_noise_does_not_change_with_the_limit():
    long = draw_noise(500, 3, seed=5)
    for n_frames in (1, 64, 65, 300):
        assert draw_noise(n_frames, 3, seed=5).equal(long[:n_frames])
    model = random_model(aligner_dim=0, use_gate_layer=False)
    utterance = Utterance([60, 61, 62, 63], 0, 3)
    short, long = (
        synthesize_mels(model, [utterance], SamplingOptions(guided=False, max_frames=n))[0] for n in (70, 90)
    )
    # The step next to z runs backward in time, so that a longer limit adds at the start.
    assert long.z[:, 20:].equal(short.z)


def test_a_model_without_durations_walks_through_the_text_and_ends():
    model = random_model(aligner_dim=0, use_gate_layer=False)
    tokens = Tokenizer(SYMBOLS, p_arpabet=1.0).encode("Several words, no durations.").tokens
    result = synthesize_mels(model, [Utterance(tokens, 0, 1)], weights=pack_weights(model))[0]
    report = result.alignment
    assert not (report.starts_late or report.ends_early or report.repeats)
    free = synthesize_mels(model, [Utterance(tokens, 0, 1)], SamplingOptions(guided=False))[0]
    assert free.alignment.ends_early
    assert int(result.durations.sum()) == result.mel.shape[1] and (result.durations > 0).all()


@pytest.mark.parametrize("aligner_dim", [0, 8])
def test_rate_changes_the_length(aligner_dim):
    model = random_model(aligner_dim=aligner_dim)
    tokens = Tokenizer(SYMBOLS, p_arpabet=1.0).encode("Two words.").tokens
    frames = {}
    for rate in (0.5, 1.0):
        options = SamplingOptions(sigma=0.0, rate=rate)
        result = synthesize_mels(model, [Utterance(tokens, 0, 1)], options, weights=pack_weights(model))[0]
        frames[rate] = result.mel.shape[1]
    assert 1.8 < frames[0.5] / frames[1.0] < 2.2


def test_rescaled_durations_keep_their_sum():
    durations = torch.tensor([[3, 5, 7, 0], [10, 1, 1, 8]])
    assert rescale_durations(durations, 0.5).equal(2 * durations)
    halved = rescale_durations(durations, 2.0)
    assert halved.sum(1).tolist() == [8, 11] and (halved[durations > 0] > 0).all() and halved[0, 3] == 0


def test_engines_and_dtypes_that_cannot_be_had(monkeypatch):
    model = random_model()
    with pytest.raises(InputError, match="device is 'tpu'"):
        Synthesizer.load("demo", device="tpu")
    with pytest.raises(InputError, match="no engine 'gpu'"):
        pack_weights(model, "gpu")
    with pytest.raises(InputError, match="'float16' are not supported"):
        pack_weights(model, dtype="float16")
    with pytest.raises(InputError, match="torch engine computes in float32"):
        pack_weights(model, "torch", "int8")
    with pytest.raises(InputError, match="location-sensitive"):
        pack_weights(random_model(use_cumm_attention=True), "kernel")
    assert pack_weights(model, "torch") is None
    assert pack_weights(random_model(use_cumm_attention=True)) is None
    monkeypatch.setattr("flowtron.inference.is_available", lambda device: False)
    assert pack_weights(model) is None
    with pytest.raises(InputError, match="no C\\+\\+ compiler"):
        pack_weights(model, dtype="int8")


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_narrow_weights_speak_nearly_the_same(voice, dtype):
    exact, narrow = (each("One two.", attempts=1) for each in (voice, random_voice(dtype=dtype)))
    distance = (exact.mel - narrow.mel).abs()
    assert 0 < distance.mean() < 0.05


def test_int8_spares_the_step_that_runs_first():
    first, later = ([m.dtype for m in step.matrices] for step in reversed(random_model().pack(torch.int8)))
    assert torch.int8 not in first and torch.int8 in later


def test_lists_streams_and_files_sound_like_the_text_alone(voice, tmp_path):
    text = "One two three. [pause 0.2s] Four five.\n\nA new paragraph."
    whole = voice(text, speaker="bob", attempts=1)
    listed = voice(["Another text.", text], speaker="bob", attempts=1)[1]
    assert np.array_equal(whole.wav, listed.wav) and listed.mel.equal(whole.mel)

    def silence(seconds):
        return np.zeros(round(seconds * 22050), dtype=np.float32)

    parts = list(voice.stream(text, speaker="bob", attempts=1))
    streamed = [wav for part in parts for wav in (silence(part.before_seconds), part.wav, silence(part.after_seconds))]
    assert np.array_equal(np.concatenate(streamed), whole.wav)
    shares = []
    narration = voice.speak_to_file(text, tmp_path / "a.wav", "bob", attempts=1, progress=shares.append)
    written, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert rate == 22050 and np.abs(written - whole.wav).max() < 1e-4
    assert narration.words == whole.words and narration.seconds == pytest.approx(whole.seconds)
    assert narration.score == min(part.score for part in parts)
    assert shares == sorted(shares) and len(shares) == 3
    chunks = list(voice.stream_wav(text, speaker="bob", attempts=1))
    assert sum(map(len, chunks)) == len(whole.wav) and len(chunks) >= 9


def test_words_have_times_in_order(voice):
    speech = voice("One two three. And four.", attempts=1)
    assert [word.text for word in speech.words] == ["One", "two", "three", "And", "four"]
    times = [t for word in speech.words for t in (word.start_seconds, word.end_seconds)]
    assert times == sorted(times) and times[-1] <= speech.seconds
    assert speech.words[3].start_seconds - speech.words[2].end_seconds >= 0.25
    assert [row["text"] for row in speech.times["words"]] == [word.text for word in speech.words]
    assert speech.times["tokens"][-1]["end"] == speech.tokens[-1].end_seconds
    assert 0 <= speech.score <= 1 and speech.score == speech.alignment.score
    assert speech.attention.shape[1:] == (speech.mel.shape[1], len(speech.tokens))


def test_attention_of_a_long_text_is_sparse_and_the_same(voice, monkeypatch):
    dense = voice("One two. Three four.", attempts=1).attention
    monkeypatch.setattr("flowtron.synthesizer.DENSE_ATTENTION", 10)
    sparse = voice("One two. Three four.", attempts=1).attention
    assert sparse.is_sparse
    torch.testing.assert_close(sparse.to_dense(), dense, atol=1e-6, rtol=0)
    assert float(sparse.coalesce().values().min()) >= 1e-6


def test_of_several_draws_the_best_read_is_kept(voice, monkeypatch):
    alone = [voice("One two.", seed=5 + k * DRAW_STRIDE, sigma=1.0, attempts=1) for k in range(3)]
    best = voice("One two.", seed=5, sigma=1.0, draws=3, attempts=1)
    faults = [speech.alignment.faults for speech in alone]
    costs = inference.reading_costs(
        voice.flowtron, [speech.mel for speech in alone], [voice.tokenizer.encode("One two.").tokens] * 3, [0] * 3
    ).tolist()
    kept = min(range(3), key=lambda k: (faults[k], costs[k]))
    assert torch.equal(best.mel, alone[kept].mel)
    # Another judge, another choice: it is the aligner that decides between draws of as many faults.
    monkeypatch.setattr(inference, "reading_costs", lambda model, mels, *_: -torch.arange(len(mels)))
    last = max(k for k in range(3) if faults[k] == min(faults))
    both = voice(["Three.", "One two."], seed=5, sigma=1.0, draws=3, attempts=1)
    assert torch.equal(both[1].mel, alone[last].mel)
    with pytest.raises(InputError, match="draws is 0"):
        voice("One.", draws=0)


def test_a_second_draw_is_tried_and_the_better_kept(voice, monkeypatch):
    drawn = []

    def judged(model, utterances, options, **rest):
        results = synthesize_mels(model, utterances, options, **rest)
        drawn.extend(u.seed for u in utterances)
        # Of three draws the second is the least bad.
        faults = {5: 3, 6: 1, 7: 2}
        return [
            r._replace(alignment=type(r.alignment)(1, 1, 1, faults[u.seed], 0, False, False))
            for r, u in zip(results, utterances)
        ]

    monkeypatch.setattr("flowtron.synthesizer.synthesize_mels", judged)
    speech = voice("One two.", seed=5, attempts=3)
    assert drawn == [5, 6, 7] and speech.seed == 6 and speech.alignment.skips == 1
    assert "failed its check (1 skip)" in speech.notes[0]


def test_no_attempt_at_all_is_refused(voice):
    with pytest.raises(InputError, match="batch is 0"):
        list(voice.stream("Hello.", batch=0))
    with pytest.raises(InputError, match="attempts is 0"):
        voice("One.", attempts=0)


def test_a_voice_speaks_along_a_path_two_thirds_as_soft_as_it_was_trained_with(voice, folder):
    assert Synthesizer.load(folder)._options(0.2, {}).path_width == pytest.approx(2.5 * 2 / 3)
    assert voice._options(0.2, {"path_width": 5.0}).path_width == 5.0
    other = Synthesizer(
        voice.model, voice.tokenizer, voice.speakers, voice.settings, voice.vocoder, voice.weights, path_width=1.0
    )
    assert not other("One two.", attempts=1).mel.equal(voice("One two.", attempts=1).mel)


def test_unspeakable_passages_are_left_out_with_a_note(voice):
    speech = voice("One two. Здравствуйте. Three.", attempts=1)
    assert [word.text for word in speech.words] == ["One", "two", "Three"]
    assert any("left out" in note for note in speech.notes)
    with pytest.raises(InputError, match="the model has no symbol for"):
        voice("Здравствуйте.")
    with pytest.raises(InputError, match="has no counterpart"):
        voice("[[lɔχ]]")
    with pytest.raises(InputError, match="nothing to speak"):
        voice(" ... ")


def test_typed_ipa_is_spoken_as_arpabet(voice):
    ipa, arpabet = voice("One [[həˈloʊ]] two."), voice("One {HH AH0 L OW1} two.")
    assert [token.text for token in ipa.tokens] == [token.text for token in arpabet.tokens]
    assert [word.text for word in ipa.words] == ["One", "həˈloʊ", "two"]
    assert [word.text for word in arpabet.words] == ["One", "{HH AH0 L OW1}", "two"]
    assert ipa.mel.equal(arpabet.mel)


def test_passages_and_their_pauses():
    text = "Dr. Lee sat. Then\nhe - [pause 300 ms] stood\n\nNext [pause] {HH AH0 L OW1}[PAUSE 1.5s]"
    assert list(passages("[pause 1s] " + text)) == [
        Passage("Dr. Lee sat.", 1.0, 0.25),
        Passage("Then he,", 0.0, 0.3),
        Passage("stood.", 0.0, 0.7),
        Passage("Next,", 0.0, 0.5),
        Passage("{HH AH0 L OW1}.", 0.0, 1.5),
    ]
    with pytest.raises(InputError, match=r"\[pause long\] is no pause"):
        list(passages("A [pause long] b"))
    with pytest.raises(InputError, match="longer than 60 s"):
        list(passages("A [pause 900s] b"))


def test_long_sentences_are_cut_between_clauses_or_words():
    text = "a word and, " * 30 + "supercalifragilistic " * 20
    pieces = list(passages(text))
    assert all(len(piece.text) <= 181 for piece in pieces)
    assert " ".join(piece.text.rstrip(".") for piece in pieces).split() == text.split()
    assert {piece.after_seconds for piece in pieces[:-1]} == {0.1}


def test_digits_count_as_the_words_that_they_are():
    pieces = list(passages("123456789 " * 40))
    assert all(len(piece.text) <= 41 for piece in pieces)
    assert " ".join(piece.text.rstrip(".") for piece in pieces).split() == ["123456789"] * 40
    year = "In 1984 he wrote it, and in 1985 he read it."
    assert [piece.text for piece in passages(year)] == [year]


def test_a_long_paragraph_is_split_as_a_short_one(monkeypatch):
    """A stretch at a time, in linear time."""
    said = (
        'Mr. Smith paid 3.5 dollars. "Is it so?" he asked. It was, e.g. in the U.S. of A., not! We went home (late). '
    )
    text = " ".join(f"{said} Number {n} was called." for n in range(20))
    whole = list(passages(text))
    for stretch in (90, 200, 1000):
        monkeypatch.setattr("flowtron.passages.STRETCH", stretch)
        assert list(passages(text)) == whole
    unpunctuated = "word " * 100
    monkeypatch.setattr("flowtron.passages.STRETCH", 50)
    assert " ".join(piece.text for piece in passages(unpunctuated)).replace(".", "").split() == ["word"] * 100
    assert sum(len(piece.text.strip(".")) for piece in passages("x" * 500)) == 500


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.001}, r"rate is 0\.001, expected 0\.1 to 10"),
        ({"rate": 1e-300}, "expected 0.1 to 10"),
        ({"rate": 100.0}, "expected 0.1 to 10"),
        ({"rate": "2"}, "rate is '2', but it is a number"),
        ({"sigma": None}, "sigma is None, but it is a number"),
        ({"loudness": 2}, "loudness: no options of sampling"),
    ],
)
def test_values_that_no_speech_comes_of_are_named(voice, options, message):
    with pytest.raises(InputError, match=message):
        voice("Hello.", **options)


def test_a_speaker_in_odd_digits_is_no_number(voice):
    with pytest.raises(InputError, match="speaker '²'"):
        voice("Hello.", speaker="²")


def test_the_suffix_is_the_format(voice, tmp_path):
    speech = voice("Hello.")
    for name, kind in (("a.flac", "FLAC"), ("a.WAV", "WAV"), ("a.opus", "OGG")):
        assert soundfile.info(speech.save(tmp_path / name)).format == kind
    with pytest.raises(InputError, match="'txt'"):
        speech.save(tmp_path / "a.txt")
    assert not (tmp_path / "a.txt").exists()


def test_attention_of_a_long_text_is_drawn_smaller():
    dense = torch.zeros(4500, 5000)
    dense[range(4500), [k * 10 // 9 for k in range(4500)]] = 1.0
    axes = Figure().subplots()
    draw_attention(axes, dense.to_sparse(), "long")
    (image,) = axes.get_images()
    picture = np.asarray(image.get_array())
    assert picture.shape == (1667, 1500) and list(image.get_extent()) == [-0.5, 4499.5, -0.5, 4999.5]
    assert all(picture[k, k * 9 // 10] == 1 or picture[k, max(0, k * 9 // 10 - 1)] == 1 for k in range(0, 1500, 100))


def test_command_line_writes_sound_and_times_and_streams(folder, tmp_path, capfdbinary):
    wav, times = tmp_path / "a.wav", tmp_path / "a.json"
    assert main(["say", "One two. Three.", "-m", str(folder), "-o", str(wav), "--times", str(times)]) == 0
    frames = soundfile.info(wav).frames
    assert [word["text"] for word in json.loads(times.read_text())["words"]] == ["One", "two", "Three"]
    capfdbinary.readouterr()
    assert main(["say", "One two. Three.", "-m", str(folder), "-o", "-", "--dtype", "int8"]) == 0
    assert abs(len(capfdbinary.readouterr().out) // 2 - frames) < 22050
    assert main(["say", "One.", "-m", str(folder), "-o", "-", "--engine", "warp"]) == 2
    assert b"no engine 'warp'" in capfdbinary.readouterr().err


def test_times_in_every_format(voice, tmp_path):
    speech = voice('One "two".', attempts=1)
    assert json.loads(speech.save_times(tmp_path / "a.json").read_text())["words"] == speech.times["words"]
    grid = speech.save_times(tmp_path / "a.TextGrid").read_text()
    assert 'name = "words"' in grid and f"xmax = {speech.seconds:.6f}" in grid and 'text = "two"' in grid
    subtitles = speech.save_times(tmp_path / "a.srt").read_text().split("\n\n")
    assert subtitles[0].startswith("1\n00:00:0") and subtitles[1].splitlines()[2] == "two"
    with pytest.raises(InputError, match="choose one of these suffixes"):
        speech.save_times(tmp_path / "a.txt")


def test_score_falls_with_every_fault():
    from flowtron.alignment import alignment_report

    walk = torch.eye(12).repeat_interleave(6, 0)
    good, cut = alignment_report(walk), alignment_report(walk[:36])
    repeated = alignment_report(torch.cat([walk[:60], walk[12:]]))
    assert good.is_complete and good.score == 1.0
    assert cut.ends_early and cut.score <= 0.5 * cut.coverage < good.score
    assert repeated.repeats == 1 and repeated.score == 0.5
    assert (good.complaint, repeated.complaint) == ("", "1 repeat")
    assert cut.complaint.endswith("the end is missing")
