"""A corpus of everything that goes wrong with corpora: one filelist for each kind of fault, and one with all of them.

    python scripts/make_bad_corpus.py FOLDER
    flowtron check FOLDER/all.txt

Each list has six good lines and then its bad one. What a training does with it is noted beside it in kinds.json:
"refused" in one sentence, or "survived", where nothing is wrong enough to stop for.
"""

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

RATE = 22050
N_GOOD = 6


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    name: of the list. line: its bad line, as bytes. refused: whether training stops for it, or goes on. sound: writes
    the file that the line names, where it has one of its own. change: turns the whole list into the faulty one.
    """

    name: str
    line: bytes
    refused: bool
    sound: Callable[[Path], None] | None = None
    change: Callable[[bytes], bytes] | None = None


def speechlike(seconds: float, seed: int, rate: int = RATE) -> np.ndarray:
    """A sound with the spectrum and the rhythm of a voice, (T_samples,) in [-1, 1]."""
    draw = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.7 * t + seed)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    harmonics = sum(np.sin(k * phase) / k for k in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * 4 * t) + 0.3, 0, 1)
    return (0.1 * harmonics * syllables + 0.002 * draw.standard_normal(len(t))).astype(np.float32)


def wav(samples: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> Callable[[Path], None]:
    """Return what writes samples to a path."""
    return lambda path: soundfile.write(path, samples, rate, subtype=subtype, format="WAV")


def truncated(path: Path) -> None:
    """Write a wav whose header promises more than follows."""
    wav(speechlike(2.0, 90))(path)
    path.write_bytes(path.read_bytes()[:20_000])


def with_nan(path: Path) -> None:
    """Write a wav of floats, one of which is not a number."""
    samples = speechlike(1.0, 91)
    samples[500] = np.nan
    wav(samples, subtype="FLOAT")(path)


VOICE = speechlike(1.2, 92)
SOUNDS: list[tuple[str, bool, Callable[[Path], None]]] = [
    ("zero_length", True, wav(np.zeros(0, dtype=np.float32))),
    ("empty_file", True, lambda path: path.write_bytes(b"") and None),
    ("truncated", False, truncated),
    ("silent", False, wav(np.zeros(RATE, dtype=np.float32))),
    ("clipped", False, wav((40 * VOICE).clip(-1, 1))),
    ("rate_8khz", True, wav(speechlike(1.2, 93, 8000), 8000)),
    ("stereo", False, wav(np.stack([VOICE, 0.5 * VOICE], 1))),
    ("pcm_24", False, wav(VOICE, subtype="PCM_24")),
    ("float", False, wav(VOICE, subtype="FLOAT")),
    ("float_of_int16_scale", True, wav(32768 * VOICE, subtype="FLOAT")),
    ("not_a_number", True, with_nan),
    ("junk", True, lambda path: path.write_bytes(random.Random(0).randbytes(20_000)) and None),
    ("text_as_sound", True, lambda path: path.write_text("This is no sound.") and None),
    ("very_short", False, wav(VOICE[:100])),
]
TEXTS: list[tuple[str, bool, bytes]] = [
    ("missing_file", True, b"wavs/absent.wav|Nobody is here.|ann"),
    ("folder_as_sound", True, b"wavs|A folder.|ann"),
    ("path_traversal", True, b"../../../../../../etc/passwd|Root of all evil.|ann"),
    ("path_too_long", True, b"x" * 5000 + b".wav|Long.|ann"),
    ("path_with_null", True, b"wavs/good_0\0.wav|Null.|ann"),
    ("one_field", True, b"wavs/good_0.wav"),
    ("five_fields", True, b"wavs/good_0.wav|a|b|c|d"),
    ("empty_text", True, b"wavs/good_0.wav||ann"),
    ("empty_speaker", True, b"wavs/good_0.wav|No one speaks.|"),
    ("punctuation_only", False, b"wavs/good_0.wav|?!...|ann"),
    ("mislabelled", False, b"wavs/good_0.wav|" + b"These words are far too many for so short a sound. " * 20 + b"|ann"),
    ("ten_thousand_characters", False, b"wavs/good_0.wav|" + b"On and on. " * 910 + b"|ann"),
    ("emoji", False, "wavs/good_0.wav|A smile 😀 for you.|ann".encode()),
    ("emoji_only", True, "wavs/good_0.wav|😀🚀|ann".encode()),
    ("right_to_left", True, "wavs/good_0.wav|مرحبا بالعالم|ann".encode()),
    ("null_bytes", False, b"wavs/good_0.wav|Nothing \0 here.|ann"),
    ("control_characters", False, b"wavs/good_0.wav|A \x0c page \x1b[31m and a \xe2\x80\xa8 line.|ann"),
    ("latin_1", True, b"wavs/good_0.wav|A caf\xe9.|ann"),
    ("duplicate_line", False, b"wavs/good_0.wav|This is good sentence number zero.|ann"),
    ("unknown_speaker", True, b"wavs/good_0.wav|Who is this?|zoe"),
]
WHOLE: list[tuple[str, bool, Callable[[bytes], bytes]]] = [
    ("crlf", False, lambda content: content.replace(b"\n", b"\r\n")),
    ("byte_order_mark", False, lambda content: b"\xef\xbb\xbf" + content),
    ("utf_16", True, lambda content: content.decode().encode("utf-16")),
    ("no_lines", True, lambda content: b"\n\n"),
    ("no_last_newline", False, lambda content: content.rstrip(b"\n")),
]
KINDS = [
    *(
        Kind(name, f"wavs/{name}.wav|A sound of its own kind.|ann".encode(), refused, sound=sound)
        for name, refused, sound in SOUNDS
    ),
    *(Kind(name, line, refused) for name, refused, line in TEXTS),
    *(Kind(name, b"", refused, change=change) for name, refused, change in WHOLE),
]


def make(folder: Path) -> list[Kind]:
    """Write the corpus: wavs, one list a kind, a list of all faults, and what is to be expected of each."""
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    numbers = ("zero", "one", "two", "three", "four", "five")
    good = b""
    for k in range(N_GOOD):
        wav(speechlike(0.6 + 0.1 * k, k))(folder / "wavs" / f"good_{k}.wav")
        speaker = "ann" if k % 2 == 0 else "bob"
        good += f"wavs/good_{k}.wav|This is good sentence number {numbers[k]}.|{speaker}\n".encode()
    (folder / "good.txt").write_bytes(good)
    for kind in KINDS:
        if kind.sound is not None:
            kind.sound(folder / "wavs" / f"{kind.name}.wav")
        content = good + (kind.line + b"\n" if kind.line else b"")
        (folder / f"{kind.name}.txt").write_bytes(kind.change(content) if kind.change else content)
    (folder / "all.txt").write_bytes(good + b"".join(kind.line + b"\n" for kind in KINDS if kind.line))
    described = {kind.name: "refused" if kind.refused else "survived" for kind in KINDS}
    (folder / "kinds.json").write_text(json.dumps(described, indent=1) + "\n")
    return KINDS


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make a corpus of everything that goes wrong with corpora.")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    kinds = make(options.folder)
    print(f"{options.folder}: {len(kinds)} kinds of faults")


if __name__ == "__main__":
    main()
