"""What is kept of a corpus on disk: mels, and the tokens of texts, by what they were computed from.

Letters: T_mel frames, T_text tokens, D mel channels.
"""

import hashlib
import io
import os
import random
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowtron.audio import AudioSettings
from flowtron.text import Tokenizer


class FeatureCache:
    """Arrays on disk by what they were computed from, memory-mapped; several processes may share the folder.

    A sound is known by a hash of its content, so that copies and renamed files are computed once; which content a
    file has is noted beside, by path, size and time of change, so that files need not be read to be recognised.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str, suffix: str) -> Path:
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}{suffix}"

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        # Renaming is atomic: another process sees all of the file or none.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise

    def content_of(self, path: Path) -> str:
        """Hash of a file's content; an unchanged file is not read again."""
        status = os.stat(path)
        return _content(self, path, status.st_size, status.st_mtime_ns)

    def get(self, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the array of a key, mapped from its file; computed and written where there is none."""
        path = self._path(key, ".npy")
        try:
            return np.load(path, mmap_mode="r")
        except FileNotFoundError:
            pass
        except (ValueError, EOFError):  # left by a disk that was full or lost power
            path.unlink(missing_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, compute())
        self._write(path, buffer.getvalue())
        return np.load(path, mmap_mode="r")

    def mel(self, path: Path, trim_db: float | None, settings: AudioSettings, compute: Callable[[], Tensor]) -> Tensor:
        """Mel (D, T_mel) of a sound file, trimmed or not, from the cache where it is there; not to be written to."""
        key = f"mel|{self.content_of(path)}|{trim_db}|{settings}"
        return _mapped(self.get(key, lambda: compute().numpy()))


class Spellings:
    """Tokens of a text's words, spelled and as phones, from which any epoch's mix is put together.

    As one array for the cache: the number of words W; 2 W numbers of tokens (spelled and phones, word by word); the
    tokens.
    """

    def __init__(self, packed: np.ndarray) -> None:
        n_words, *numbers = packed.tolist()
        ends = list(accumulate(numbers[: 2 * n_words], initial=2 * n_words))
        self._parts = [numbers[start:end] for start, end in pairwise(ends)]

    @staticmethod
    def pack(words: Sequence[tuple[list[int], list[int]]]) -> np.ndarray:
        """Pack spelled tokens and phones of every word."""
        parts = [part for word in words for part in word]
        return np.array([len(words), *map(len, parts), *chain.from_iterable(parts)], dtype=np.int32)

    def mix(self, p_arpabet: float, space: int, generator: random.Random) -> list[int]:
        """Join words by spaces, each as phones with probability p_arpabet, drawn as `Tokenizer.encode` draws."""
        tokens: list[int] = []
        for word in range(len(self._parts) // 2):
            as_phones = p_arpabet == 1 or (p_arpabet > 0 and generator.random() < p_arpabet)
            tokens += [space] * (word > 0) + self._parts[2 * word + as_phones]
        return tokens


# What the disk knows of files and texts is kept in memory too, for a corpus of some size: opening a file costs as much
# as reading a mel.
RECENT = 2**15


@lru_cache(maxsize=RECENT)
def _content(cache: FeatureCache, path: Path, size: int, changed_ns: int) -> str:
    """Hash of a file's content, as noted in the cache; read and noted where it is not."""
    note = cache._path(f"{path.resolve()}|{size}|{changed_ns}", ".txt")
    try:
        return note.read_text(encoding="utf-8")
    except FileNotFoundError:
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        cache._write(note, digest.encode())
        return digest


@lru_cache(maxsize=RECENT)
def spellings(cache: FeatureCache, tokenizer: Tokenizer, text: str) -> Spellings | None:
    """Spellings of a text, from the cache where they are there; None where it has no words."""
    key = f"tokens|{text}|{tokenizer.symbols}|{tokenizer.cleaners}|{tokenizer.keep_ambiguous}"
    packed = cache.get(key, lambda: Spellings.pack(tokenizer.spellings(text)))
    return Spellings(packed) if packed[0] else None


def _mapped(array: np.ndarray) -> Tensor:
    """Tensor over a read-only array; it is copied when a batch is put together, and never written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
