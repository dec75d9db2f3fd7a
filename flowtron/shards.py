"""A corpus in tar shards, read in order from disks or streams, for what does not fit one disk. Needs webdataset.

An index (JSON) beside the shards tells what they hold: the audio settings of their mels, the speakers, and for each
shard its file or URL. A sample of a shard is `KEY.mel.npy` with the log mel and `KEY.json` with text, speaker, frames
and the path of the sound that it was. Letters: T_mel frames, D mel channels.
"""

import io
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from flowtron.audio import AudioSettings
from flowtron.data import (
    BUCKET_BATCHES,
    Batch,
    Dataset,
    Item,
    SpeakerTable,
    collate_batch,
    leave_signals_to_the_run,
    require_even,
)
from flowtron.errors import InputError, remedy
from flowtron.tensorfile import read_json, replaced_file
from flowtron.text import Tokenizer

VERSION = 1


def _webdataset() -> Any:
    try:
        import webdataset
    except ImportError:
        raise InputError(f"shards need the package webdataset; {remedy('shards')}.") from None
    return webdataset


@dataclass(frozen=True)
class ShardIndex:
    """What an index says: names of the speakers, URLs of the shards, utterances and frames in all of them.

    `lengths` are the frames of each utterance in order, by shard; an index may lack them for some or all.
    """

    speakers: list[str]
    urls: list[str]
    n_utterances: int
    n_frames: int
    lengths: dict[str, list[int]]


def write_shards(dataset: Dataset, folder: str | Path, utterances_per_shard: int, seed: int = 1234) -> Path:
    """Write a dataset's utterances, shuffled, as shards of a folder; return the path of their index.

    Raises:
        InputError: the folder cannot be written, or a sound cannot be read.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    order = list(range(len(dataset)))
    random.Random(seed).shuffle(order)
    shards = []
    for number, start in enumerate(range(0, len(order), utterances_per_shard)):
        rows = order[start : start + utterances_per_shard]
        name, lengths = f"{number:06d}.tar", []
        with replaced_file(folder / name) as file, _webdataset().TarWriter(file) as tar:
            for row in rows:
                utterance, mel, buffer = dataset.utterances[row], dataset.mel(row).numpy(), io.BytesIO()
                np.save(buffer, mel)
                about = {"text": utterance.text, "speaker": utterance.speaker, "frames": mel.shape[1]}
                about["path"] = str(utterance.path)
                content = {"mel.npy": buffer.getvalue(), "json": json.dumps(about).encode()}
                tar.write({"__key__": f"{row:09d}", **content})
                lengths.append(mel.shape[1])
        shards.append({"url": name, "utterances": len(rows), "frames": sum(lengths), "lengths": lengths})
    index = {
        "version": VERSION,
        "audio": dataset.settings.fingerprint(),
        "speakers": sorted({u.speaker for u in dataset.utterances}),
        "shards": shards,
    }
    path = folder / "index.json"
    with replaced_file(path) as file:
        file.write(json.dumps(index).encode())
    return path


def read_index(path: str | Path, settings: AudioSettings) -> ShardIndex:
    """Read the index of a corpus in shards; files are relative to it, URLs stay as they are.

    Raises:
        InputError: it is missing or damaged, a shard is missing, or its mels are of other audio settings.
    """
    path = Path(path)
    index = read_json(path, "index of shards")
    try:
        if index["version"] != VERSION:
            raise InputError(f"{path}: version {index['version']}, expected {VERSION}; write the shards anew.")
        for name, value in settings.fingerprint().items():
            if index["audio"][name] != value:
                raise InputError(
                    f"{path}: its mels have {name} {index['audio'][name]}, but the config says {value}; write the "
                    "shards anew with scripts/make_shards.py or change data_config."
                )
        shards, speakers = index["shards"], [str(name) for name in index["speakers"]]
        urls = [url if ":" in url else str(path.parent / url) for url in (shard["url"] for shard in shards)]
        n_utterances, n_frames = (sum(shard[key] for shard in shards) for key in ("utterances", "frames"))
        lengths = {url: list(map(int, shard["lengths"])) for url, shard in zip(urls, shards) if "lengths" in shard}
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not an index of shards; write one with scripts/make_shards.py.") from None
    for url in urls:
        if ":" not in url and not Path(url).is_file():
            raise InputError(f"{path}: its shard {url} is missing; copy it there or write the shards anew.")
    return ShardIndex(speakers, urls, n_utterances, n_frames, lengths)


class ShardSampler:
    """Which shards are whose, and how far the training is: as LengthBucketBatchSampler, for streams.

    Every loader worker of every process reads shards of its own, again and again, in an order drawn anew each time;
    so all have as many batches as are asked for. With other processes or workers a run goes on with a new order.
    """

    def __init__(
        self,
        index: ShardIndex,
        batch_size: int | None = None,
        frames_per_batch: int | None = None,
        seed: int = 1234,
        rank: int = 0,
        world_size: int = 1,
        n_batches: int = 1,
        n_workers: int = 0,
    ) -> None:
        """Configure the streams; arguments as of LengthBucketBatchSampler, `n_workers` a process.

        Raises:
            InputError: there are fewer shards than readers, or batches cannot be shared evenly.
        """
        n_streams = world_size * max(1, n_workers)
        if len(index.urls) < n_streams:
            raise InputError(
                f"{len(index.urls)} shards are too few for {n_streams} readers (processes times "
                "data_config.n_workers); lower n_workers or write smaller shards."
            )
        require_even(n_batches, world_size)
        self.index, self.batch_size, self.frames_per_batch, self.seed = index, batch_size, frames_per_batch, seed
        self.rank, self.world_size, self.n_batches, self.n_workers = rank, world_size, n_batches, n_workers
        self.epoch = self.position = 0

    def advance(self) -> None:
        """Note that the training has taken a step."""
        self.position += 1

    def _fingerprint(self) -> list[int]:
        sizes = [self.batch_size or 0, self.frames_per_batch or 0, self.n_batches, self.world_size, self.n_workers]
        return [*sizes, self.seed, self.index.n_utterances, self.index.n_frames]

    def state_dict(self) -> dict[str, Any]:
        """Return the order's number, the steps taken in it, and what they depend on."""
        return {"epoch": self.epoch, "position": self.position, "plan": self._fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state_dict` was; to a new order when shards, batches or readers have changed since."""
        self.epoch, self.position = state["epoch"], state["position"]
        if state["plan"] != self._fingerprint():
            self.epoch, self.position = self.epoch + 1, 0


Sample = tuple[int, dict[str, Any], bytes]  # pass, description, mel as .npy


class ShardStream(IterableDataset[Batch]):
    """Endless batches of one reader's shards, of similar length within each."""

    def __init__(self, sampler: ShardSampler, tokenizer: Tokenizer, speakers: SpeakerTable, *prior: Any) -> None:
        self.sampler, self.tokenizer, self.speakers, self.prior = sampler, tokenizer, speakers, prior

    def _shards(self, number: int, stream: int, n_streams: int) -> list[str]:
        """URLs of a reader's shards in a pass."""
        # All readers draw the same order and take every n-th, so that over the passes each reads every shard.
        order = list(self.sampler.index.urls)
        random.Random(f"{self.sampler.seed} {self.sampler.epoch} {number}").shuffle(order)
        return order[stream::n_streams]

    def _samples(self, urls: Sequence[str], number: int) -> Iterator[Sample]:
        wds = _webdataset()
        for sample in wds.DataPipeline(wds.SimpleShardList(urls), wds.tarfile_to_samples(wds.reraise_exception)):
            yield number, json.loads(sample["json"]), sample["mel.npy"]

    def _cut(self, samples: Sequence[Sample]) -> list[list[Sample]]:
        batches: list[list[Sample]] = [[]]
        limit, n_frames = self.sampler.batch_size, self.sampler.frames_per_batch
        for sample in sorted(samples, key=lambda s: (s[1]["frames"], s[1]["path"])):
            size = len(batches[-1])
            if size and (size == limit if limit else (size + 1) * sample[1]["frames"] > (n_frames or 0)):
                batches.append([])
            batches[-1].append(sample)
        return batches

    def _numbers_of_batches(self, urls: Sequence[str], window: int) -> list[int] | None:
        """How many batches each window of these shards makes; None where the index lacks lengths."""
        lengths = self.sampler.index.lengths
        if not all(url in lengths for url in urls):
            return None
        samples: list[Sample] = [(0, {"frames": n, "path": ""}, b"") for url in urls for n in lengths[url]]
        return [len(self._cut(samples[start : start + window])) for start in range(0, len(samples), window)]

    def _batches(self, stream: int, n_streams: int, skip: int) -> Iterator[list[Sample]]:
        """Batches of a reader, pass after pass, but for the first `skip`.

        Passes that are left out whole are not read, only counted.
        """
        sampler = self.sampler
        mean = sampler.index.n_frames / sampler.index.n_utterances
        window = BUCKET_BATCHES * (sampler.batch_size or max(1, int((sampler.frames_per_batch or 0) / mean)))
        generator = random.Random(f"{sampler.seed} {sampler.epoch} {stream}")
        for number in count():
            urls = self._shards(number, stream, n_streams)
            numbers = self._numbers_of_batches(urls, window) if skip else None
            if numbers is not None and sum(numbers) <= skip:
                for n in numbers:
                    generator.shuffle(list(range(n)))  # as reading would
                skip -= sum(numbers)
                continue
            samples = self._samples(urls, number)
            # A pass ends with what is left, so that it has every utterance once.
            while held := list(islice(samples, window)):
                batches = self._cut(held)
                generator.shuffle(batches)
                left_out, skip = min(skip, len(batches)), max(0, skip - len(batches))
                yield from batches[left_out:]

    def _item(self, sample: Sample) -> Item:
        number, about, mel = sample
        generator = random.Random(f"{self.sampler.seed} {number} {about['path']}")
        tokens = self.tokenizer.encode(about["text"], generator=generator).tokens
        array = np.load(io.BytesIO(mel), allow_pickle=False)
        return Item(
            torch.tensor(tokens), torch.from_numpy(array), self.speakers.index(str(about["speaker"])), about["path"]
        )

    def __iter__(self) -> Iterator[Batch]:
        sampler, info = self.sampler, get_worker_info()
        worker, n_workers = (0, 1) if info is None else (info.id, info.num_workers)
        # The loader takes batches of its workers in turn from the first on, which gets the stream whose turn it is.
        used = sampler.position * sampler.n_batches // sampler.world_size
        turn = (worker + used) % n_workers
        skip = -(-(used - turn) // n_workers)
        stream = sampler.rank * n_workers + turn
        for samples in self._batches(stream, sampler.world_size * n_workers, skip):
            yield collate_batch([self._item(sample) for sample in samples], *self.prior)


def make_shard_loader(
    sampler: ShardSampler, tokenizer: Tokenizer, speakers: SpeakerTable, *prior: Any
) -> DataLoader[Batch]:
    """Loader of a process's batches; `prior` as the arguments of `collate_batch`."""
    return DataLoader(
        ShardStream(sampler, tokenizer, speakers, *prior),
        batch_size=None,
        num_workers=sampler.n_workers,
        worker_init_fn=leave_signals_to_the_run,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )
