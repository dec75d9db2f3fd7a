"""From a filelist to batches: utterances, speakers, cached features, length buckets.

Letters: B batch, T_mel frames, T_text tokens, D mel channels.
"""

import codecs
import contextlib
import difflib
import multiprocessing
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import soundfile
import torch
from scipy.special import gammaln
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from flowtron.audio import AudioSettings, load_wav, log_mel
from flowtron.cache import FeatureCache, spellings
from flowtron.errors import InputError
from flowtron.text import Tokenizer

JOBS_AT_ONCE = 16  # that a process is handed
Job = TypeVar("Job")
Done = TypeVar("Done")
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
        sound = next((p for p in (path.parent / parts[0], Path(parts[0])) if is_file(p)), None)
        if sound is None:
            shown = parts[0] if len(parts[0]) <= 80 else f"{parts[0][:79]}…"
            raise InputError(f"{path}:{number}: no sound file {shown!r}; correct the path or remove the line.")
        speaker = parts[2] if len(parts) == 3 else "0"
        utterances.append(Utterance(sound, parts[1], speaker, f"{path}:{number}"))
    if not utterances:
        raise InputError(f"{path}: the filelist has no lines; give it at least one 'path|text|speaker'.")
    return utterances


def is_file(path: Path) -> bool:
    """Whether there is a file of this name, which may be one that no file can have."""
    try:
        return path.is_file()
    except OSError:  # a name too long
        return False


@contextlib.contextmanager
def _at_line_of(utterance: Utterance) -> Iterator[None]:
    """Name the filelist's line in errors about an utterance."""
    try:
        yield
    except InputError as error:
        where = utterance.origin or str(utterance.path)
        raise InputError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


class SpeakerTable:
    """Speakers and their rows; the order is that of the names as text, as in the original ('103' < '1034' < '107').

    Where weights exist already, the speakers that they know keep their rows, and new ones come after.
    """

    def __init__(self, names: Sequence[str], known: Sequence[str] = ()) -> None:
        self.names = [*known, *sorted(set(map(str, names)) - set(known))]
        self._index = {name: k for k, name in enumerate(self.names)}

    @classmethod
    def from_utterances(cls, utterances: Sequence[Utterance], known: Sequence[str] = ()) -> "SpeakerTable":
        """Table of all speakers of a filelist, after those that have rows already."""
        return cls([u.speaker for u in utterances], known)

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


def beta_binomial_prior(n_tokens: int, n_frames: int, scaling_factor: float = 1.0) -> Tensor:
    """Beta-binomial prior (T_mel, T_text) of a near-diagonal alignment, rows summing to 1.

    Row i of T_mel is BetaBinomial(n = T_text − 1, a_i = s·i, b_i = s·(T_mel + 1 − i)), i from 1:
    ln p_i(k) = ln C(n, k) + Σ_{j<k} ln(a_i + j) + Σ_{j<n−k} ln(b_i + j) − Σ_{j<n} ln(a_i + b_i + j).
    Since b_i = a_{T_mel + 1 − i}, the second sum is the first one turned around, and one table of logarithms does.
    Source: Shih et al. 2021 (RAD-TTS).

    Args:
        n_tokens, n_frames: T_text and T_mel.
        scaling_factor: s; less than 1 flattens the prior.
    """
    k = np.arange(n_tokens)
    n = n_tokens - 1
    table = np.zeros((n_frames, n_tokens))
    np.cumsum(np.log(scaling_factor * np.arange(1, n_frames + 1)[:, None] + k[:-1]), 1, out=table[:, 1:])
    log_choose = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    constant = np.log(scaling_factor * (n_frames + 1) + k[:-1]).sum()
    table = table + table[::-1, ::-1]
    table += log_choose - constant
    return torch.from_numpy(np.exp(table, out=table).astype(np.float32))


class Item(NamedTuple):
    """One utterance as tensors: tokens (T_text,), mel (D, T_mel), the speaker's row and the path of its sound."""

    tokens: Tensor
    mel: Tensor
    speaker_id: int
    path: str


class Dataset(torch.utils.data.Dataset[Item]):
    """Utterances as tokens and mels, kept on disk once computed.

    An item is asked for by (epoch, index), or by index alone for epoch 0: words are mixed from spelling and
    pronunciation by a generator of (seed, epoch, index), so that any epoch can be had again, by any process.
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
        self.cache = None if cache_dir is None else FeatureCache(cache_dir)
        self.resample, self.trim_db, self.seed = resample, trim_db, seed
        self.speaker_ids = []
        for utterance in self.utterances:
            with _at_line_of(utterance):
                self.speaker_ids.append(speakers.index(utterance.speaker))
        self._lengths: list[int] | None = None

    def __len__(self) -> int:
        return len(self.utterances)

    def lengths(self) -> list[int]:
        """Mel frames of every utterance; from the files' headers alone unless sound is trimmed or resampled."""
        if self._lengths is None:
            self._lengths = []
            for index, utterance in enumerate(self.utterances):
                with _at_line_of(utterance):
                    self._lengths.append(self._length(index))
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
        """Mel (D, T_mel) of an utterance, from the cache where it is there; not to be written to.

        Raises:
            InputError: its sound cannot be used; the filelist's line is named.
        """
        path, cache = self.utterances[index].path, self.cache
        with _at_line_of(self.utterances[index]):
            if cache is None:
                return self._compute(path)
            return cache.mel(path, self.trim_db, self.settings, lambda: self._compute(path))

    def tokens(self, index: int, epoch: int = 0) -> list[int]:
        """Tokens (T_text,) of an utterance in an epoch.

        Raises:
            InputError: nothing is left to say; the filelist's line is named.
        """
        utterance, tokenizer = self.utterances[index], self.tokenizer
        generator = random.Random(f"{self.seed} {epoch} {index}")
        with warnings.catch_warnings(), _at_line_of(utterance):
            warnings.simplefilter("once")
            if self.cache is not None:
                spelled = spellings(self.cache, tokenizer, utterance.text)
                if spelled is not None:
                    return spelled.mix(tokenizer.p_arpabet, tokenizer.space, generator)
            return tokenizer.encode(utterance.text, generator=generator).tokens

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        tokens = torch.tensor(self.tokens(index, epoch))
        return Item(tokens, self.mel(index), self.speaker_ids[index], str(self.utterances[index].path))


@dataclass(frozen=True)
class Batch:
    """Padded utterances.

    tokens (B, T_text) and mel (B, D, T_mel), 0 at padding; token_lengths, mel_lengths, speaker_id (B,);
    attention_prior (B, T_mel, T_text) or None; paths of the B sounds. n_frames and n_tokens are the lengths as plain
    numbers, for which nobody has to wait for a GPU.
    """

    tokens: Tensor
    token_lengths: Tensor
    mel: Tensor
    mel_lengths: Tensor
    speaker_id: Tensor
    attention_prior: Tensor | None
    paths: list[str]
    n_frames: list[int] = field(default_factory=list)
    n_tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.n_frames:
            object.__setattr__(self, "n_frames", self.mel_lengths.tolist())
            object.__setattr__(self, "n_tokens", self.token_lengths.tolist())

    def _map(self, function: Any) -> "Batch":
        values = {part.name: getattr(self, part.name) for part in fields(self)}
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
            prior[b, :T, :N] = weights.masked_fill_(weights < threshold, 0.0) if threshold else weights
    speaker_id = torch.tensor([item.speaker_id for item in items])
    return Batch(tokens, token_lengths, mel, mel_lengths, speaker_id, prior, [item.path for item in items])


def require_even(n_batches: int, world_size: int) -> None:
    """Refuse batches of an optimizer step that the processes cannot share.

    Raises:
        InputError: their number is no multiple of the number of processes.
    """
    if n_batches % world_size:
        raise InputError(
            f"train_config.global_batches is {n_batches}, which {world_size} processes cannot share evenly; "
            f"make it a multiple of {world_size}."
        )


class LengthBucketBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of utterances of similar length, shuffled anew each epoch, for as long as the training goes on.

    The utterances of one optimizer step are a group, which is dealt out to `n_batches` batches: one after the other,
    or on as many processes, with the same result. An epoch has every utterance once, but for the last few when they do
    not make a batch each.

    Batches are lists of (epoch, index), so that loader workers need not be told of a new epoch.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int | None = None,
        frames_per_batch: int | None = None,
        seed: int = 1234,
        rank: int = 0,
        world_size: int = 1,
        n_batches: int | None = None,
        n_epochs: int | None = None,
    ) -> None:
        """Configure the batches.

        Args:
            lengths: frames of every utterance.
            batch_size: utterances a batch.
            frames_per_batch: instead of batch_size, an upper bound of B · T_mel.
            seed: of the shuffling.
            rank, world_size: this process and how many there are.
            n_batches: batches of an optimizer step over all processes; one each when None.
            n_epochs: where to end; None never does.

        Raises:
            InputError: the processes cannot share the batches of a step evenly, or there are too few utterances.
        """
        if (batch_size is None) == (frames_per_batch is None):
            raise ValueError("give either batch_size or frames_per_batch")
        self.lengths, self.batch_size, self.frames_per_batch = list(lengths), batch_size, frames_per_batch
        self.seed, self.rank, self.world_size, self.n_epochs = seed, rank, world_size, n_epochs
        self.n_batches = n_batches or world_size
        require_even(self.n_batches, world_size)
        if len(self.lengths) < self.n_batches:
            raise InputError(
                f"{len(self.lengths)} utterances are too few for steps of {self.n_batches} batches; "
                "lower train_config.global_batches or accumulate, or use fewer processes."
            )
        self.epoch = self.position = 0
        self._plans: dict[int, list[list[int]]] = {}

    def advance(self) -> None:
        """Note that the training has taken a step; loader workers run ahead, so only it can know."""
        self.position += 1
        if self.position == len(self.plan(self.epoch)):
            self.epoch, self.position = self.epoch + 1, 0

    def _is_full(self, group: list[int], length: int) -> bool:
        """Whether an utterance of this length no longer fits a group of shorter ones."""
        if self.batch_size is not None:
            return len(group) == self.batch_size * self.n_batches
        size = -(-(len(group) + 1) // self.n_batches)
        return len(group) >= self.n_batches and size * length > (self.frames_per_batch or 0)

    def plan(self, epoch: int) -> list[list[int]]:
        """Groups of an epoch, in order."""
        if epoch not in self._plans:
            generator = random.Random(f"{self.seed} {epoch}")
            order = list(range(len(self.lengths)))
            generator.shuffle(order)
            mean = sum(self.lengths) / len(self.lengths)
            size = self.batch_size or max(1, int((self.frames_per_batch or 0) / mean))
            chunk = size * self.n_batches * BUCKET_BATCHES
            groups: list[list[int]] = []
            left: list[int] = []
            for start in range(0, len(order), chunk):
                group: list[int] = []
                for index in sorted(left + order[start : start + chunk], key=lambda i: (self.lengths[i], i)):
                    if self._is_full(group, self.lengths[index]):
                        groups.append(group)
                        group = []
                    group.append(index)
                left = group if len(group) < self.n_batches else []
                groups += [] if left else [group]
            generator.shuffle(groups)
            # The training and the loader ahead of it are in at most two epochs.
            self._plans = {e: plan for e, plan in self._plans.items() if abs(e - epoch) == 1} | {epoch: groups}
        return self._plans[epoch]

    def __len__(self) -> int:
        return len(self.plan(self.epoch)) * self.n_batches // self.world_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, position = self.epoch, self.position
        while self.n_epochs is None or epoch < self.n_epochs:
            for group in self.plan(epoch)[position:]:
                for number in range(self.rank, self.n_batches, self.world_size):
                    yield [(epoch, index) for index in group[number :: self.n_batches]]
            epoch, position = epoch + 1, 0

    def _fingerprint(self) -> list[int]:
        sizes = [self.batch_size or 0, self.frames_per_batch or 0, self.n_batches, self.seed]
        return [*sizes, len(self.lengths), sum(self.lengths)]

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, the number of its steps already taken, and what the plan depends on."""
        return {"epoch": self.epoch, "position": self.position, "plan": self._fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state_dict` was; to the start of the next epoch when data or batches have changed since."""
        self.epoch, self.position = state["epoch"], state["position"]
        if state["plan"] != self._fingerprint():
            self.epoch, self.position = self.epoch + 1, 0


def leave_signals_to_the_run(worker: int) -> None:
    """Let a worker, which inherits the run's handlers, leave Ctrl-C to the run and die of SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def worker_pool(n_workers: int) -> Iterator[Pool]:
    """Processes that leave Ctrl-C to this one, which ends them; from their start on, where they inherit signals.

    They are started anew rather than forked: the same on every system, and safe beside threads.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    try:
        pool = multiprocessing.get_context("spawn").Pool(n_workers, leave_signals_to_the_run, (0,))
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, before)
    with pool:
        yield pool


def run_jobs(
    function: Callable[[Job], Done],
    jobs: Sequence[Job],
    workers: int | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Done]:
    """Results of a function of a module for every job, in their order, from several processes where that pays.

    Args:
        function, jobs: which a process can be handed.
        workers: processes; None is one a core, and below 2 nothing is started.
        progress: called with the share of the jobs that is done.
    """
    n_workers = (os.cpu_count() or 1) if workers is None else workers
    answers: Iterator[Done]
    with contextlib.ExitStack() as stack:
        if n_workers < 2 or len(jobs) <= 4 * JOBS_AT_ONCE:
            answers = map(function, jobs)
        else:
            answers = stack.enter_context(worker_pool(n_workers)).imap(function, jobs, JOBS_AT_ONCE)
        results: list[Done] = []
        for result in answers:
            results.append(result)
            progress(len(results) / len(jobs))
    return results


def make_loader(
    dataset: torch.utils.data.Dataset[Item],
    sampler: LengthBucketBatchSampler,
    n_workers: int = 0,
    attention_prior: bool = False,
    scaling_factor: float = 1.0,
    threshold: float = 0.0,
) -> DataLoader[Item]:
    """Loader of the sampler's batches; its workers live as long as it does and work ahead of the training.

    Args:
        dataset, sampler: what and in which order.
        n_workers: processes that compute; 0 computes when asked.
        attention_prior, scaling_factor, threshold: see `collate_batch`.
    """
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=n_workers,
        collate_fn=partial(
            collate_batch, attention_prior=attention_prior, scaling_factor=scaling_factor, threshold=threshold
        ),
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if n_workers else None,
        worker_init_fn=leave_signals_to_the_run,
        # Without its own generator a new iterator would move the training's random numbers.
        generator=torch.Generator(),
    )
