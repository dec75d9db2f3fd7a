"""From filelist to batches: mistakes, prior and collation against recorded numbers, cache, buckets, determinism."""

import multiprocessing
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from flowtron.audio import AudioSettings, save_wav
from flowtron.cache import FeatureCache
from flowtron.data import (
    Dataset,
    Item,
    LengthBucketBatchSampler,
    SpeakerTable,
    beta_binomial_prior,
    collate_batch,
    make_loader,
    read_filelist,
)
from flowtron.errors import InputError
from flowtron.run import Interrupt
from flowtron.text import Tokenizer

DATA = Path(__file__).parent / "data"
SETTINGS = AudioSettings(n_mels=8)
TEXTS = ["Hello, {HH AW1 S} is a word.", "The 2nd sentence; Dr. No's.", "Well?", 'He said "yes" at 9:30 am in 1984.']


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twelve short sounds of two speakers and their filelist."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = torch.Generator().manual_seed(0)
    lines = []
    for k in range(12):
        wav = 0.1 * torch.randn(2000 + 700 * (k * 5 % 12), generator=generator)
        save_wav(folder / f"{k}.wav", wav, 22050)
        lines.append(f"{k}.wav|{TEXTS[k % 4]}|{'ab'[k % 2]}")
    (folder / "train.txt").write_text("\n".join(lines))
    return folder


def dataset(corpus, cache=None, p_arpabet=0.5, **options):
    utterances = read_filelist(corpus / "train.txt")
    speakers = SpeakerTable.from_utterances(utterances)
    return Dataset(utterances, Tokenizer(p_arpabet=p_arpabet), SETTINGS, speakers, cache, **options)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0.wav", "train.txt:2: expected 'path|text|speaker', found '0.wav'"),
        ("0.wav|a|b|c", "train.txt:2: expected"),
        ("0.wav||b", "train.txt:2: expected"),
        ("gone.wav|a|b", "train.txt:2: no sound file 'gone.wav'"),
    ],
)
def test_a_wrong_line_is_named(corpus, tmp_path, line, said):
    shutil.copy(corpus / "0.wav", tmp_path)
    (tmp_path / "train.txt").write_text(f"0.wav|Fine.|a\n{line}\n")
    with pytest.raises(InputError, match=said.replace("|", r"\|")):
        read_filelist(tmp_path / "train.txt")


def test_an_empty_or_missing_filelist_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(InputError, match="no lines"):
        read_filelist(tmp_path / "empty.txt")
    with pytest.raises(InputError, match="no such filelist"):
        read_filelist(tmp_path / "gone.txt")


def test_two_fields_mean_speaker_0_and_names_sort_as_text(corpus, tmp_path):
    shutil.copy(corpus / "0.wav", tmp_path)
    (tmp_path / "list.txt").write_text("0.wav|Fine.\n")
    assert read_filelist(tmp_path / "list.txt")[0].speaker == "0"
    assert SpeakerTable(["107", "103", "1034", "107"]).names == ["103", "1034", "107"]
    recorded = {"0": 0, "10": 1, "1069": 2, "19": 3, "2": 4, "200": 5, "887": 6}  # by the original
    table = SpeakerTable(["1069", "200", "19", "2", "1069", "887", "0", "10"])
    assert {name: table.index(name) for name in recorded} == recorded
    with pytest.raises(InputError, match="did you mean '103'"):
        SpeakerTable(["103", "9"]).index("1O3")


@pytest.mark.parametrize("name", np.load(DATA / "priors" / "betabinom.npz").files)
def test_prior_equals_the_recorded_one(name):
    tokens, frames, scale = (float(part[1:]) for part in name.split("_"))
    recorded = np.load(DATA / "priors" / "betabinom.npz")[name]
    prior = beta_binomial_prior(int(tokens), int(frames), scale)
    np.testing.assert_allclose(prior.numpy(), recorded, rtol=1e-5, atol=1e-9)


def test_batch_equals_the_recorded_one():
    inputs, recorded = (np.load(DATA / "collate" / f"{kind}.npz") for kind in ("inputs", "outputs"))
    items = [
        Item(
            *(torch.from_numpy(inputs[f"{key}_{k}"]) for key in ("text", "mel")), int(inputs[f"speaker_{k}"][0]), str(k)
        )
        for k in range(3)
    ]
    items.sort(key=lambda item: -len(item.tokens))  # the original's order
    batch = collate_batch(items, attention_prior=True)
    np.testing.assert_array_equal(batch.tokens, recorded["text"])
    np.testing.assert_array_equal(batch.token_lengths, recorded["in_lens"])
    np.testing.assert_array_equal(batch.mel, recorded["mel"])
    np.testing.assert_array_equal(batch.mel_lengths, recorded["out_lens"])
    np.testing.assert_array_equal(batch.speaker_id, recorded["speaker_ids"])
    # The recorded priors went in as arguments; ours are computed from the lengths.
    np.testing.assert_allclose(batch.attention_prior, recorded["attn_prior"], rtol=1e-5, atol=1e-7)
    assert batch.n_frames == recorded["out_lens"].tolist()
    some = collate_batch(items, attention_prior=True, threshold=0.05).attention_prior
    assert (some[some > 0] >= 0.05).all() and (some == 0).sum() > (batch.attention_prior == 0).sum()


@pytest.mark.parametrize("p_arpabet", [0.0, 0.5, 1.0])
def test_cached_items_equal_computed_ones_in_every_epoch(corpus, tmp_path, p_arpabet):
    fresh, cached = dataset(corpus, p_arpabet=p_arpabet), dataset(corpus, tmp_path, p_arpabet)
    for epoch in (0, 1, 1):
        for index in range(len(fresh)):
            ours, wanted = cached[epoch, index], fresh[epoch, index]
            assert torch.equal(ours.tokens, wanted.tokens) and torch.equal(ours.mel, wanted.mel)
    assert cached[0].mel.shape[1] == cached.lengths()[0]


def test_epochs_mix_differently_and_each_can_be_had_again(corpus):
    rows = [[dataset(corpus).tokens(3, epoch) for epoch in range(6)] for _ in range(2)]
    assert rows[0] == rows[1] and len({tuple(tokens) for tokens in rows[0]}) > 1


def test_the_cache_goes_by_content_and_settings(corpus, tmp_path):
    sounds = tmp_path / "sounds"
    shutil.copytree(corpus, sounds)
    cache = tmp_path / "cache"
    first = dataset(sounds, cache).mel(0).clone()
    arrays = set(cache.rglob("*.npy"))
    shutil.move(sounds / "0.wav", sounds / "moved.wav")
    shutil.copy(sounds / "moved.wav", sounds / "0.wav")
    again = dataset(sounds, cache)
    assert torch.equal(again.mel(0), first) and set(cache.rglob("*.npy")) == arrays
    assert isinstance(again.cache.get("x", lambda: np.ones(3)), np.memmap)
    save_wav(sounds / "0.wav", torch.zeros(2000), 22050)
    assert not torch.equal(dataset(sounds, cache).mel(0), first)
    assert len(set(cache.rglob("*.npy"))) == len(arrays) + 2  # the other content, and x
    assert not list(cache.rglob("*.part"))


def test_a_damaged_cache_file_is_computed_anew(corpus, tmp_path):
    data = dataset(corpus, tmp_path)
    wanted = data.mel(0).clone()
    for file in tmp_path.rglob("*.npy"):
        file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(data.mel(0), wanted)


def _fill(folder, number, results):
    cache = FeatureCache(folder)
    keys = [f"key {k}" for k in range(40)]
    random.Random(number).shuffle(keys)
    results.put(all((cache.get(key, lambda k=key: np.full(500, float(k[4:]))) == float(key[4:])).all() for key in keys))


def test_several_processes_share_a_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [context.Process(target=_fill, args=(tmp_path, n, results)) for n in range(4)]
    for process in processes:
        process.start()
    assert all(results.get() for _ in processes)
    for process in processes:
        process.join()
    assert len(list(tmp_path.rglob("*"))) == len(list(tmp_path.rglob("*.npy"))) + len(list(tmp_path.glob("*")))


LENGTHS = [random.Random(k).randint(20, 400) for k in range(101)]


def epoch_of(sampler, epoch=0):
    return [index for group in sampler.plan(epoch) for index in group]


@pytest.mark.parametrize("options", [{"batch_size": 4}, {"frames_per_batch": 1000}])
def test_an_epoch_has_every_utterance_once_in_batches_of_like_length(options):
    sampler = LengthBucketBatchSampler(LENGTHS, **options)
    assert sorted(epoch_of(sampler)) == list(range(101))
    assert sampler.plan(0) != sampler.plan(1) and sampler.plan(0) == LengthBucketBatchSampler(LENGTHS, **options).plan(
        0
    )
    if "batch_size" in options:
        assert sorted(map(len, sampler.plan(0)))[:2] == [1, 4]
    else:
        assert all(len(group) * max(LENGTHS[i] for i in group) <= 1000 for group in sampler.plan(0))
    padded = sum(len(group) * max(LENGTHS[i] for i in group) for group in sampler.plan(0))
    assert sum(LENGTHS) / padded > 0.85


@pytest.mark.parametrize("options", [{"batch_size": 4}, {"frames_per_batch": 1000}])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_step_has_the_same_batches_over_any_number_of_processes(options, world_size):
    one = iter(LengthBucketBatchSampler(LENGTHS, **options, n_batches=4, n_epochs=2))
    several = [
        iter(LengthBucketBatchSampler(LENGTHS, **options, n_batches=4, n_epochs=2, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    count = 0
    for number, batch in enumerate(one):
        assert next(several[number % world_size]) == batch and len(batch) > 0
        count += len(batch)
    assert all(next(rest, None) is None for rest in several)
    assert 2 * 101 - 2 * 3 <= count <= 2 * 101


def test_a_place_in_an_epoch_can_be_returned_to():
    sampler = LengthBucketBatchSampler(LENGTHS, batch_size=4, n_batches=2, n_epochs=3)
    batches = list(sampler)
    for step in (3, len(sampler.plan(0)), len(sampler.plan(0)) + 2):
        sampler = LengthBucketBatchSampler(LENGTHS, batch_size=4, n_batches=2, n_epochs=3)
        for _ in range(step):
            sampler.advance()
        resumed = LengthBucketBatchSampler(LENGTHS, batch_size=4, n_batches=2, n_epochs=3)
        resumed.load_state_dict(sampler.state_dict())
        assert list(resumed) == batches[2 * step :]
    changed = LengthBucketBatchSampler(LENGTHS, batch_size=5, n_batches=2)
    changed.load_state_dict(sampler.state_dict())
    assert (changed.epoch, changed.position) == (sampler.epoch + 1, 0)


def test_batches_that_cannot_be_shared_are_refused():
    with pytest.raises(InputError, match="global_batches is 3, which 2 processes"):
        LengthBucketBatchSampler(LENGTHS, batch_size=4, n_batches=3, world_size=2)
    with pytest.raises(InputError, match="1 utterances are too few"):
        LengthBucketBatchSampler([10], batch_size=4, n_batches=2)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_workers_give_the_same_batches_and_leave_the_random_numbers_alone(corpus, tmp_path, n_workers):
    data = dataset(corpus, tmp_path)
    sampler = LengthBucketBatchSampler(data.lengths(), batch_size=5, n_epochs=2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    batches = list(make_loader(data, sampler, n_workers, attention_prior=True))
    assert torch.equal(torch.get_rng_state(), before)
    wanted = [collate_batch([data[key] for key in keys], attention_prior=True) for keys in sampler]
    assert len(batches) == len(wanted) == 6
    for ours, exact in zip(batches, wanted):
        assert ours.paths == exact.paths
        for name in ("tokens", "mel", "attention_prior", "speaker_id"):
            assert torch.equal(getattr(ours, name), getattr(exact, name))


class _Handlers(torch.utils.data.Dataset):
    """Items whose path says what signals do where the item is made."""

    def __getitem__(self, key):
        said = f"{signal.getsignal(signal.SIGINT)!r} {signal.getsignal(signal.SIGTERM)!r}"
        return Item(torch.zeros(1, dtype=torch.long), torch.zeros(2, 1), 0, said)


def test_workers_leave_signals_to_the_run():
    with Interrupt():
        sampler = LengthBucketBatchSampler([1, 1], batch_size=2, n_epochs=1)
        (batch,) = make_loader(_Handlers(), sampler, 1)
    assert batch.paths[0] == f"{signal.SIG_IGN!r} {signal.SIG_DFL!r}"


def test_an_utterance_without_words_is_named(corpus, tmp_path):
    shutil.copy(corpus / "0.wav", tmp_path)
    (tmp_path / "train.txt").write_text("0.wav|\u4f60\u597d|a\n")
    with pytest.raises(InputError, match=r"train\.txt:1: .*nothing to say"):
        dataset(tmp_path)[0]
