"""Scoring a corpus, with a small model that has learnt a language of tones: each letter is a pitch."""

import copy
import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from tiny import MODEL

from flowtron import score as score_module
from flowtron.audio import load_wav, log_mel
from flowtron.cli import main
from flowtron.config import ModelConfig, TrainConfig
from flowtron.data import Item, Utterance, collate_batch
from flowtron.errors import InputError
from flowtron.loss import alignment_nats
from flowtron.model import build_model
from flowtron.objective import Objective
from flowtron.score import choose_decoys, ranked, robust_scores, score_corpus, table
from flowtron.style import encode
from flowtron.synthesizer import Synthesizer
from flowtron.text import Tokenizer
from flowtron.vocoder import load_vocoder

RATE = 22050
LETTERS = "abcdefgh"
SPEAKERS = ["high", "low"]
WRONG, DAMAGED = {3: 21, 21: 3, 14: 30, 30: 14}, {7: "noise", 18: "clipped", 33: "gaps"}


def speak(text, speaker, generator):
    """Each letter as a tone of its own pitch with two harmonics, of a length of its own."""
    parts = []
    for letter in text:
        time = np.arange(int(generator.integers(1500, 2600))) / RATE
        hz = (500 if speaker == "high" else 350) * 1.3 ** LETTERS.index(letter)
        tone = sum(np.sin(2 * np.pi * k * hz * time) / k for k in (1, 2, 3)) * np.hanning(len(time)) ** 0.3
        parts.append(0.2 * tone + generator.normal(0, 0.002, len(time)))
    return np.concatenate(parts)


def damage(wav, kind, generator):
    if kind == "noise":
        return wav + generator.normal(0, 0.1 * wav.std(), len(wav))
    if kind == "clipped":
        return wav.clip(-0.25 * wav.max(), 0.25 * wav.max())
    gaps = wav.copy()
    for start in generator.integers(0, len(wav) - 1000, 3):
        gaps[start : start + 1000] = 0
    return gaps


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    clean = []
    for k in range(40):
        text = "".join(generator.choice(list(LETTERS), int(generator.integers(7, 12))))
        clean.append((text, speak(text, SPEAKERS[k % 2], generator)))
    utterances, damaged = [], []
    for k, (text, wav) in enumerate(clean):
        for name, sound, spoken in (
            ("clean", wav, text),
            ("bad", damage(wav, DAMAGED[k], generator) if k in DAMAGED else wav, clean[WRONG.get(k, k)][0]),
        ):
            soundfile.write(folder / f"{name}{k}.wav", sound, RATE)
            (utterances if name == "clean" else damaged).append(
                Utterance(folder / f"{name}{k}.wav", spoken, SPEAKERS[k % 2])
            )
    return utterances, damaged


def train(corpus, aligner_dim, aligner_iters, iterations):
    """Train on the clean corpus for some seconds."""
    torch.manual_seed(0)
    sizes = {"n_flows": 1, "n_hidden": 32, "n_text_dim": 16, "aligner_dim": aligner_dim, "text_dropout": 0.0}
    model = build_model(ModelConfig(**{**MODEL, **sizes}))
    vocoder = load_vocoder("griffin_lim")
    voice = Synthesizer(model, Tokenizer(p_arpabet=0.0), SPEAKERS, vocoder.settings, vocoder)
    items = [
        Item(
            torch.tensor(voice.tokenizer.encode(u.text, p_arpabet=0.0).tokens),
            log_mel(load_wav(u.path, RATE), voice.settings),
            SPEAKERS.index(u.speaker),
            str(u.path),
        )
        for u in corpus
    ]
    objective = Objective(model, TrainConfig(aligner_iters=aligner_iters))
    optimizer = torch.optim.Adam(model.parameters(), 7e-3)
    for iteration in range(iterations):
        batch = collate_batch([items[k] for k in torch.randperm(len(items))[:16].tolist()])
        optimizer.zero_grad()
        objective(batch, iteration).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    voice.model.eval()
    return voice


@pytest.fixture(scope="module")
def voice(corpus):
    return train(corpus[0], aligner_dim=24, aligner_iters=160, iterations=200)


def test_nothing_is_found_where_nothing_is_wrong(voice, corpus):
    scores, problems = score_corpus(voice, corpus[0])
    assert len(scores) == 40 and not problems
    assert [score.verdict for score in scores] == [""] * 40
    for score in scores:
        n_frames = len(score.frame_nats)
        assert score.nats == pytest.approx(score.frame_nats.sum() * 80, rel=1e-4)
        assert score.nats_per_dim == pytest.approx(score.nats / (n_frames * 80), rel=1e-4)


def test_wrong_transcripts_and_damaged_recordings_are_found(voice, corpus):
    scores, _ = score_corpus(voice, corpus[1])
    assert {k for k, score in enumerate(scores) if score.verdict} == {*WRONG, *DAMAGED}
    assert all(scores[k].is_wrong_transcript for k in WRONG)
    # What hides the tones may leave no transcript better than others; it is unlikely sound all the same.
    assert all(scores[k].damage > score_module.DAMAGED for k in DAMAGED)
    assert all(scores[k].is_damaged for k, kind in DAMAGED.items() if kind == "gaps")
    first = [score.utterance.path for score in ranked(scores)[:7]]
    assert set(first) == {corpus[1][k].path for k in {*WRONG, *DAMAGED}}


def test_recordings_are_like_the_others_of_who_spoke_them(voice, corpus):
    """Also where all are encoded as one speaker, as recordings of unknown voices have to be."""
    rows = [row._replace(speaker=f"guest {k % 2}") for k, row in enumerate(corpus[0])]
    groups = []
    with pytest.MonkeyPatch.context() as patch:
        original = score_module.robust_scores
        patch.setattr(score_module, "robust_scores", lambda x, names: groups.append(names) or original(x, names))
        score_corpus(voice, rows, voice.speakers[0])
    assert groups and all(set(names) == {"guest 0", "guest 1"} for names in groups)


def test_without_an_aligner_the_flows_tell(voice, corpus):
    """What a transcript saves, in nats of the mel, against others of its length."""
    flows = copy.copy(voice.model)
    flows._modules = {**voice.model._modules, "aligner": None}
    alone = Synthesizer(flows, voice.tokenizer, SPEAKERS, voice.settings, voice.vocoder)
    chosen = corpus[0][:6]
    scores, _ = score_corpus(alone, chosen)
    texts = [voice.tokenizer.encode(u.text).tokens for u in chosen]
    saved = []
    for k, utterance in enumerate(chosen):
        nats = [
            float(encode(alone, [utterance._replace(text=voice.tokenizer.decode(tokens))])[0].nats.mean())
            for tokens in (texts[k], *choose_decoys(texts, k))
        ]
        saved.append(np.median(nats[1:]) - nats[0])
    expected = 1 - np.array(saved) / max(1e-9, np.median(saved))
    np.testing.assert_allclose([score.transcript_doubt for score in scores], expected, rtol=1e-2, atol=1e-2)


def test_the_worst_stretch_is_where_the_damage_is(voice, corpus, tmp_path):
    wav, _ = soundfile.read(corpus[0][5].path)
    start = len(wav) // 2
    wav[start : start + 3000] = np.random.default_rng(0).normal(0, 0.3, 3000)
    soundfile.write(tmp_path / "burst.wav", wav, RATE)
    burst = corpus[0][5]._replace(path=tmp_path / "burst.wav")
    scores, _ = score_corpus(voice, [*corpus[0][:5], burst, *corpus[0][6:12]])
    assert scores[5].damage > score_module.DAMAGED
    assert abs(scores[5].worst_seconds + 0.125 - (start + 1500) / RATE) < 0.2


def test_the_cost_of_an_alignment_is_the_sum_over_paths():
    """Against an enumeration of all paths, without blanks."""
    from itertools import combinations

    logprob = torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    paths = []
    for cuts in combinations(range(1, 6), 2):
        token = [sum(t >= cut for cut in cuts) for t in range(6)]
        paths.append(sum(logprob[0, t, n] for t, n in enumerate(token)))
    cost = alignment_nats(logprob, torch.tensor([6]), torch.tensor([3]), blank_logprob=-1e9)
    assert float(cost) == pytest.approx(-float(torch.stack(paths).logsumexp(0)), abs=1e-4)
    impossible = alignment_nats(logprob, torch.tensor([2]), torch.tensor([3]))
    assert math.isinf(float(impossible))


def test_robust_scores_do_not_mind_outliers_and_know_groups():
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(0, 1, 500), generator.normal(100, 2, 500), [50.0, 50.0]])
    groups = ["a"] * 500 + ["b"] * 500 + ["a", "b"]
    scores = robust_scores(values, groups)
    assert scores[:500].std() == pytest.approx(1, abs=0.15) and scores[500:1000].std() == pytest.approx(1, abs=0.15)
    assert scores[1000] == pytest.approx(50, rel=0.15) and scores[1001] == pytest.approx(-25, rel=0.15)
    assert np.isnan(robust_scores(np.ones(3), ["a"] * 3)).all()


def test_decoys_are_other_texts_of_similar_length():
    texts = [[1, 2, 3], [1, 2, 3], [4, 5], [6, 7, 8, 9], [1] * 40, [2, 2, 2], [3] * 30]
    decoys = choose_decoys(texts, 0, 3)
    assert decoys == [[2, 2, 2], [4, 5], [6, 7, 8, 9]]
    alone = choose_decoys([[1, 2, 3]], 0)
    assert len(alone) == 4 and all(sorted(each) == [1, 2, 3] for each in alone)
    # Another text is none that says much of the same.
    numbered = [[9, 8, 7, 6, number] for number in range(5)]
    assert choose_decoys([*numbered, [1, 2, 3, 4, 5, 6, 7]], 2)[0] == [1, 2, 3, 4, 5, 6, 7]
    assert all(sorted(each) == [2, 6, 7, 8, 9] for each in choose_decoys(numbered, 2))


def test_what_cannot_be_scored_is_named(voice, corpus, tmp_path):
    soundfile.write(tmp_path / "short.wav", np.zeros(300), RATE)
    first = corpus[0][0]
    bad = [
        Utterance(tmp_path / "short.wav", "abc", "high"),
        first._replace(text="Здравствуйте"),
        first._replace(speaker="nobody"),
    ]
    scores, problems = score_corpus(voice, [*corpus[0][:6], *bad])
    assert len(scores) == 6 and len(problems) == 3 and "short.wav" in "".join(problems)
    assert problems[1].startswith(f"{first.path}: speaker 'nobody'")
    assert "not scored: " in table(scores, problems)
    with pytest.raises(InputError, match="no recording can be scored"):
        score_corpus(voice, bad)
    with pytest.raises(InputError, match=r"^speaker 'nobody'"):
        score_corpus(voice, corpus[0][:6], "nobody")


def test_a_model_without_speakers_scores_anybody(voice, corpus):
    nobody = copy.copy(voice)
    nobody.model = copy.copy(voice.model)
    nobody.model.dummy_speaker = True
    rows = [row._replace(speaker="anna") for row in corpus[0][:6]]
    assert len(score_corpus(nobody, rows)[0]) == 6
    assert len(score_corpus(voice, [row._replace(speaker="") for row in rows])[0]) == 6
    with pytest.raises(InputError, match="'anna'"):
        score_corpus(voice, rows)


def test_a_model_that_doubts_most_transcripts_is_doubted(voice, corpus):
    scores, _ = score_corpus(voice, corpus[0][:6])
    doubted = [replace(score, transcript_doubt=1.0, damage=0.0) for score in scores]
    says = "most transcripts look wrong"
    assert says in table([*doubted[:4], *scores[4:]])
    assert says not in table([*doubted[:1], *(replace(score, transcript_doubt=0.0) for score in scores[1:])])


def test_the_command_ranks_and_writes(voice, corpus, tmp_path, capsys):
    from flowtron.checkpoint import save_model
    from flowtron.config import Config
    from flowtron.text import SYMBOLS

    sizes = {"n_flows": 1, "n_hidden": 32, "n_text_dim": 16, "aligner_dim": 24, "text_dropout": 0.0}
    config = Config(model_config=ModelConfig(**{**MODEL, **sizes}))
    save_model(tmp_path / "voice", voice.model, config, symbols=SYMBOLS, speakers=SPEAKERS)
    lines = [f"{u.path}|{u.text}|{u.speaker}" for u in corpus[1][:10]]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    files = ["--csv", str(tmp_path / "scores.csv"), "--frames", str(tmp_path / "frames.npz")]
    assert main(["score", str(tmp_path / "list.txt"), "-m", str(tmp_path / "voice"), *files]) == 0
    shown = capsys.readouterr().out
    assert "10 recordings" in shown and "wrong transcript" in shown
    with (tmp_path / "scores.csv").open() as file:
        written = list(csv.DictReader(file))
    assert len(written) == 10 and [row["rank"] for row in written] == [str(k) for k in range(1, 11)]
    frames = np.load(tmp_path / "frames.npz")
    first = written[0]
    assert float(first["nats_per_dim"]) == pytest.approx(float(frames[first["path"]].mean()), abs=1e-3)
