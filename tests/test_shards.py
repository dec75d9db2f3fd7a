"""A corpus in tar shards: written, read, trained from, and returned to."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import last_state, same, tiny_config, write_corpus

from flowtron.data import Dataset, SpeakerTable, read_filelist
from flowtron.errors import InputError
from flowtron.shards import ShardSampler, ShardStream, make_shard_loader, read_index, write_shards
from flowtron.text import Tokenizer
from flowtron.train import prepare_tokenizer, train

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def dataset(corpus):
    config = tiny_config(corpus, corpus)
    rows = read_filelist(corpus / "train.txt")
    return Dataset(rows, prepare_tokenizer(config), config.audio_settings(), SpeakerTable.from_utterances(rows))


@pytest.fixture(scope="module")
def index(corpus, dataset):
    return write_shards(dataset, corpus / "shards", utterances_per_shard=5)


def batches(index, dataset, count, position=0, **options):
    read = read_index(index, dataset.settings)
    sampler = ShardSampler(read, **{"batch_size": 4, **options})
    sampler.position = position
    loader = iter(make_shard_loader(sampler, Tokenizer(), SpeakerTable(read.speakers), True))
    return [next(loader) for _ in range(count)]


def test_shards_hold_the_corpus(index, dataset):
    read = read_index(index, dataset.settings)
    assert (read.n_utterances, read.speakers, len(read.urls)) == (24, ["a", "b"], 5)
    assert read.n_frames == sum(dataset.lengths())
    by_path = {str(u.path): k for k, u in enumerate(dataset.utterances)}
    seen = set()
    for batch in batches(index, dataset, 6):
        for b, path in enumerate(batch.paths):
            mel = dataset.mel(by_path[path])
            assert torch.equal(batch.mel[b, :, : batch.n_frames[b]], mel)
            assert int(batch.speaker_id[b]) == dataset.speaker_ids[by_path[path]]
            seen.add(path)
        assert batch.attention_prior is not None
    assert len(seen) == 24


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_place_in_the_stream_can_be_returned_to(index, dataset, n_workers):
    whole = batches(index, dataset, 9, n_workers=n_workers)
    rest = batches(index, dataset, 4, position=5, n_workers=n_workers)
    for ours, wanted in zip(rest, whole[5:]):
        assert ours.paths == wanted.paths and torch.equal(ours.tokens, wanted.tokens)


def test_passes_before_a_place_are_not_read_again(index, dataset, monkeypatch):
    whole = batches(index, dataset, 75)
    read = []
    original = ShardStream._samples
    monkeypatch.setattr(ShardStream, "_samples", lambda *arguments: read.append(arguments[2]) or original(*arguments))
    rest = batches(index, dataset, 4, position=71)
    assert [batch.paths for batch in rest] == [batch.paths for batch in whole[71:]]
    assert len(read) <= 2 and min(read) > 8, "passes that are over before the place"
    # An index without lengths, as earlier versions wrote, is read from the start.
    about = json.loads(index.read_text())
    for shard in about["shards"]:
        del shard["lengths"]
    older = index.with_name("older.json")
    older.write_text(json.dumps(about))
    read.clear()
    assert [batch.paths for batch in batches(older, dataset, 4, position=71)] == [batch.paths for batch in rest]
    assert min(read) == 0


def test_processes_read_different_shards(index, dataset):
    options = {"world_size": 2, "n_batches": 2, "frames_per_batch": 100, "batch_size": None}
    first, second = (batches(index, dataset, 3, rank=r, **options) for r in range(2))
    assert not {p for b in first for p in b.paths} & {p for b in second for p in b.paths}
    assert all(b.mel.shape[0] * b.mel.shape[2] <= 100 for b in first + second)


def test_training_from_shards_resumes_bit_for_bit(corpus, index, tmp_path):
    for folder, parts in (("whole", [6]), ("parts", [2, 5, 6])):
        for until in parts:
            options = {"training_files": str(index), "max_iters": until, "iters_per_checkpoint": 100}
            train(tiny_config(corpus, tmp_path / folder, **options))
    assert same(last_state(tmp_path / "whole"), last_state(tmp_path / "parts"))


def test_what_does_not_fit_is_refused(corpus, index, dataset, tmp_path):
    read = read_index(index, dataset.settings)
    with pytest.raises(InputError, match="5 shards are too few for 6 readers"):
        ShardSampler(read, batch_size=4, n_workers=3, world_size=2, n_batches=2)
    with pytest.raises(InputError, match="n_mels 8, but the config says 80"):
        read_index(index, type(dataset.settings)())
    shutil.copytree(corpus / "shards", tmp_path / "shards")
    (tmp_path / "shards" / "000001.tar").unlink()
    with pytest.raises(InputError, match=r"000001\.tar is missing"):
        read_index(tmp_path / "shards" / "index.json", dataset.settings)
    (tmp_path / "index.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(InputError, match="not an index of shards"):
        read_index(tmp_path / "index.json", dataset.settings)


def test_the_script_writes_shards(corpus, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny_config(corpus, tmp_path).to_json()))
    command = [sys.executable, str(ROOT / "scripts/make_shards.py"), "-c", str(config)]
    command += ["--filelist", str(corpus / "train.txt"), "--output", str(tmp_path / "out"), "--utterances", "10"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.tar"))) == 3
