"""From a filelist to batches: utterances, speakers, cached features, length buckets.

Letters: B batch, T_mel frames, T_text tokens, D mel channels.
"""

import codecs
import difflib
import hashlib
import os
import random
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from scipy.special import betaln, gammaln
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from flowtron.audio import AudioSettings, load_wav, log_mel
from flowtron.errors import InputError
from flowtron.text import Tokenizer

BUCKET_BATCHES = 32  # batches whose utterances are sorted by length together


class Utterance(NamedTuple):
    """One line of a filelist; origin is the list and the line, as 'train.txt:3'."""

    path: Path
    text: str
    speaker: str
    origin: str = ""


def read_filelist(path: str | Path) -> list[Utterance]:
    """Read `path|text|speaker` lines; two fields mean speaker '0'.

    Paths are relative to the filelist's folder, or else to the working directory. Lines may end in LF or CRLF, and a
    byte order mark is skipped.

    Raises:
        InputError: the file is missing, empty or not in UTF-8, or a line lacks a field, its text or its sound.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such filelist; make one with scripts/make_corpus.py or correct the config.")
    utterances = []
    # Not splitlines: a text may hold the rarer separators that it would split at.
    for number, content in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        try:
            line = content.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: not in UTF-8 ({error.reason}); save the filelist as UTF-8.") from None
        if not line:
            continue
        parts = [part.strip() for part in line.split("|")]
        if len(parts) not in (2, 3) or not all(parts):
            shown = line if len(line) <= 80 else f"{line[:79]}…"
            raise InputError(f"{path}:{number}: expected 'path|text|speaker', found {shown!r}; correct the line.")
        sound = next((p for p in (path.parent / parts[0], Path(parts[0])) if _is_file(p)), None)
        if sound is None:
            shown = parts[0] if len(parts[0]) <= 80 else f"{parts[0][:79]}…"
            raise InputError(f"{path}:{number}: no sound file {shown!r}; correct the path or remove the line.")
        speaker = parts[2] if len(parts) == 3 else "0"
        utterances.append(Utterance(sound, parts[1], speaker, f"{path}:{number}"))
    if not utterances:
        raise InputError(f"{path}: the filelist has no lines; give it at least one 'path|text|speaker'.")
    return utterances


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name too long
        return False


class SpeakerTable:
    """Speakers and their rows; the order is that of the names as text, as in the original ('103' < '1034' < '107')."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = sorted(set(map(str, names)))
        self._index = {name: k for k, name in enumerate(self.names)}

    @classmethod
    def from_utterances(cls, utterances: Sequence[Utterance]) -> "SpeakerTable":
        """Table of all speakers of a filelist."""
        return cls([u.speaker for u in utterances])

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Row of a speaker.

        Raises:
            InputError: there is no such speaker; the nearest name is given.
        """
        if name not in self._index:
            nearest = difflib.get_close_matches(name, self.names, n=1, cutoff=0.0)
            raise InputError(f"speaker '{name}' is not one of the {len(self)} known; did you mean '{nearest[0]}'?")
        return self._index[name]


@lru_cache(maxsize=4096)
def beta_binomial_prior(n_tokens: int, n_frames: int, scaling_factor: float = 1.0) -> Tensor:
    """Beta-binomial prior (T_mel, T_text) of a near-diagonal alignment, rows summing to 1.

    Row i of T_mel is BetaBinomial(T_text − 1, s·i, s·(T_mel + 1 − i)), i from 1. Source: Shih et al. 2021 (RAD-TTS).

    Args:
        n_tokens, n_frames: T_text and T_mel.
        scaling_factor: s; less than 1 flattens the prior.
    """
    k = np.arange(n_tokens)
    n = n_tokens - 1
    frame = np.arange(1, n_frames + 1)[:, None]
    a, b = scaling_factor * frame, scaling_factor * (n_frames + 1 - frame)
    log_choose = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return torch.from_numpy(np.exp(log_choose + betaln(k + a, n - k + b) - betaln(a, b)).astype(np.float32))


class Item(NamedTuple):
    """One utterance as tensors: tokens (T_text,), mel (D, T_mel), the speaker's row and the path of its sound."""

    tokens: Tensor
    mel: Tensor
    speaker_id: int
    path: str


class Dataset(torch.utils.data.Dataset[Item]):
    """Utterances as tokens and mels, the mels kept on disk once computed.

    Words are mixed from spelling and pronunciation by a generator of (seed, epoch, index), so that any epoch can be
    had again.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        tokenizer: Tokenizer,
        settings: AudioSettings,
        speakers: SpeakerTable,
        cache_dir: str | Path | None = None,
        resample: bool = False,
        trim_db: float | None = None,
        seed: int = 1234,
    ) -> None:
        self.utterances, self.tokenizer, self.settings = list(utterances), tokenizer, settings
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.resample, self.trim_db, self.seed = resample, trim_db, seed
        self.speaker_ids = [speakers.index(u.speaker) for u in self.utterances]
        self.epoch = 0
        self._lengths: list[int] | None = None
        if self.cache_dir is not None:
            self.cache_dir.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self.utterances)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose mix of spelling and pronunciation is given."""
        self.epoch = epoch

    def lengths(self) -> list[int]:
        """Mel frames of every utterance; from the files' headers alone unless sound is trimmed or resampled."""
        if self._lengths is None:
            self._lengths = [self._length(k) for k in range(len(self))]
        return self._lengths

    def _length(self, index: int) -> int:
        path = self.utterances[index].path
        try:
            header = soundfile.info(path)
        except soundfile.LibsndfileError:
            raise InputError(f"{path}: not a readable sound file; replace it or leave it out.") from None
        if self.trim_db is not None or header.samplerate != self.settings.sample_rate:
            return self.mel(index).shape[1]
        return header.frames // self.settings.hop_length + 1

    def _compute(self, path: Path) -> Tensor:
        wav = load_wav(path, self.settings.sample_rate, self.resample, self.trim_db)
        return log_mel(wav, self.settings)

    def mel(self, index: int) -> Tensor:
        """Mel (D, T_mel) of an utterance, from the cache where it is there."""
        path = self.utterances[index].path
        if self.cache_dir is None:
            return self._compute(path)
        status = path.stat()
        key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{self.trim_db}|{self.settings}"
        cached = self.cache_dir / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.npy"
        if not cached.exists():
            mel = self._compute(path)
            # Renaming is atomic: another process sees all of the file or none.
            descriptor, temporary = tempfile.mkstemp(dir=self.cache_dir, suffix=".npy")
            with os.fdopen(descriptor, "wb") as file:
                np.save(file, mel.numpy())
            os.replace(temporary, cached)
            return mel
        return torch.from_numpy(np.load(cached))

    def __getitem__(self, index: int) -> Item:
        utterance = self.utterances[index]
        generator = random.Random(f"{self.seed} {self.epoch} {index}")
        with warnings.catch_warnings():
            warnings.simplefilter("once")
            tokens = self.tokenizer.encode(utterance.text, generator=generator).tokens
        return Item(torch.tensor(tokens), self.mel(index), self.speaker_ids[index], str(utterance.path))


@dataclass(frozen=True)
class Batch:
    """Padded utterances.

    tokens (B, T_text) and mel (B, D, T_mel), 0 at padding; token_lengths, mel_lengths, speaker_id (B,);
    attention_prior (B, T_mel, T_text) or None; paths of the B sounds.
    """

    tokens: Tensor
    token_lengths: Tensor
    mel: Tensor
    mel_lengths: Tensor
    speaker_id: Tensor
    attention_prior: Tensor | None
    paths: list[str]

    def _map(self, function: Any) -> "Batch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: function(v) for k, v in values.items() if isinstance(v, Tensor)})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Return the batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Return the batch in pinned memory, from which copies to a GPU need not wait."""
        return self._map(lambda tensor: tensor.pin_memory())


def collate_batch(
    items: Sequence[Item], attention_prior: bool = False, scaling_factor: float = 1.0, threshold: float = 0.0
) -> Batch:
    """Pad items to a batch.

    Args:
        items: of a Dataset.
        attention_prior: also stack the beta-binomial priors.
        scaling_factor: of the prior.
        threshold: prior weights below it become 0.
    """
    token_lengths = torch.tensor([len(item.tokens) for item in items])
    mel_lengths = torch.tensor([item.mel.shape[1] for item in items])
    tokens = torch.zeros(len(items), int(token_lengths.max()), dtype=torch.long)
    mel = torch.zeros(len(items), items[0].mel.shape[0], int(mel_lengths.max()))
    prior = torch.zeros(len(items), mel.shape[2], tokens.shape[1]) if attention_prior else None
    for b, item in enumerate(items):
        T, N = item.mel.shape[1], len(item.tokens)
        tokens[b, :N] = item.tokens
        mel[b, :, :T] = item.mel
        if prior is not None:
            weights = beta_binomial_prior(N, T, scaling_factor)
            prior[b, :T, :N] = weights.masked_fill(weights < threshold, 0.0)
    speaker_id = torch.tensor([item.speaker_id for item in items])
    return Batch(tokens, token_lengths, mel, mel_lengths, speaker_id, prior, [item.path for item in items])


class LengthBucketBatchSampler(Sampler[list[int]]):
    """Batches of utterances of similar length, shuffled anew each epoch, every utterance once.

    All processes take part in every global batch with an equal number of utterances each, so the last few utterances
    of an epoch may be left out when there are several processes.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int | None = None,
        frames_per_batch: int | None = None,
        seed: int = 1234,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Configure the batches.

        Args:
            lengths: frames of every utterance.
            batch_size: utterances a batch and process.
            frames_per_batch: instead of batch_size, an upper bound of B · T_mel a process.
            seed: of the shuffling.
            rank, world_size: this process and how many there are.
        """
        if (batch_size is None) == (frames_per_batch is None):
            raise ValueError("give either batch_size or frames_per_batch")
        self.lengths, self.batch_size, self.frames_per_batch = list(lengths), batch_size, frames_per_batch
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = self.position = 0
        self._plan: tuple[int, list[list[int]]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; the current one keeps its position."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def advance(self) -> None:
        """Note that the training has taken a batch; loader workers run ahead, so only it can know."""
        self.position += 1

    def _cut(self, ordered: list[int]) -> list[list[int]]:
        """Cut a run of utterances, shortest first, into global batches."""
        batches: list[list[int]] = []
        current: list[int] = []
        for index in ordered:
            size = len(current) // self.world_size + 1
            full = (
                len(current) == self.batch_size * self.world_size
                if self.batch_size is not None
                else size * self.lengths[index] > (self.frames_per_batch or 0) and len(current) % self.world_size == 0
            )
            if current and full:
                batches.append(current)
                current = []
            current.append(index)
        return [*batches, current] if current else batches

    def plan(self) -> list[list[int]]:
        """Global batches of the current epoch, in order."""
        if self._plan is None or self._plan[0] != self.epoch:
            generator = random.Random(f"{self.seed} {self.epoch}")
            order = list(range(len(self.lengths)))
            generator.shuffle(order)
            mean = sum(self.lengths) / len(self.lengths)
            size = self.batch_size or max(1, int((self.frames_per_batch or 0) / mean))
            chunk = size * self.world_size * BUCKET_BATCHES
            batches = []
            for start in range(0, len(order), chunk):
                batches += self._cut(sorted(order[start : start + chunk], key=lambda i: (self.lengths[i], i)))
            whole = [batch[: len(batch) // self.world_size * self.world_size] for batch in batches]
            whole = [batch for batch in whole if batch]
            generator.shuffle(whole)
            self._plan = (self.epoch, whole)
        return self._plan[1]

    def __len__(self) -> int:
        return len(self.plan())

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.plan()[self.position :]:
            yield batch[self.rank :: self.world_size]

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches already used."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where `state_dict` was."""
        self.epoch, self.position = state["epoch"], state["position"]


def make_loader(dataset: Dataset, sampler: LengthBucketBatchSampler, n_workers: int = 0) -> DataLoader[Item]:
    """Loader of batches; workers start anew each epoch, and so learn its number."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=n_workers,
        collate_fn=collate_batch,
        pin_memory=torch.cuda.is_available(),
    )
