"""Make a corpus of real recordings: the prompts of Debian's asterisk-core-sounds-en-g722, one woman, 27 minutes.

    python scripts/make_recordings.py --output recordings

Speech and transcripts are by Allison Smith, CC-BY-SA 3.0. Needs apt-get and dpkg-deb (Debian or Ubuntu) and the extra
`eval`, whose package av decodes G.722. Prompts that are tones, or of a single sound, are left out.
"""

import argparse
import gzip
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from corpus_text import subset
from make_corpus import SAMPLE_RATE, finish, write

from flowtron.audio import save_wav
from flowtron.errors import InputError, exit_code_of, remedy

PACKAGES = ("asterisk-core-sounds-en-g722", "asterisk-core-sounds-en")
SPEAKER = "allison"
TEST_PERCENT = 12  # prompts are short: fewer would be too few words to count errors of
NEUTRAL = {"rate": 1.0, "semitones": 0.0, "gain_db": 0.0}


def fetch(folder: Path) -> None:
    """Download the packages and unpack them into a folder.

    Raises:
        InputError: there is no apt-get, or it does not find them.
    """
    try:
        subprocess.run(["apt-get", "download", "-q", *PACKAGES], cwd=folder, check=True, capture_output=True)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package.name, "."], cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"the packages {', '.join(PACKAGES)} cannot be had ({error}); run apt-get update.") from None


def transcripts(folder: Path) -> dict[str, str]:
    """Read the transcripts by the prompt's name; stage directions in brackets make a prompt unusable."""
    path = next(folder.rglob("core-sounds-en.txt.gz"))
    found = {}
    for line in gzip.decompress(path.read_bytes()).decode("utf-8").splitlines():
        name, colon, text = line.partition(":")
        text = " ".join(text.split())
        if colon and not line.startswith(";") and re.search(r"[a-zA-Z]{2}", text) and not re.search(r"[\[\]<>|]", text):
            found[name.strip()] = text if text[-1] in ".?!" else f"{text.rstrip(' ,:;')}."
    return found


def decode(path: Path) -> tuple[np.ndarray, int]:
    """Decode a raw G.722 file to samples in [-1, 1] and their rate in Hz.

    Raises:
        InputError: the package av is missing.
    """
    try:
        import av
    except ImportError:
        raise InputError(f"decoding G.722 needs the package av; {remedy('eval')}.") from None
    with av.open(str(path), format="g722") as container:
        frames = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
        return np.concatenate(frames).astype(np.float32) / 32768, container.streams.audio[0].rate


def make_recordings(output: Path) -> dict[str, float]:
    """Write wavs and filelists; return the counts and the minutes."""
    (output / "wavs").mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str]] = []
    seconds = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fetch(folder)
        texts = transcripts(folder)
        for path in sorted(folder.rglob("*.g722")):
            if path.stem not in texts:
                continue
            wav = finish(*decode(path), NEUTRAL)
            name = f"wavs/{path.stem}.wav"
            save_wav(output / name, wav, SAMPLE_RATE)
            rows.append((name, texts[path.stem]))
            seconds += len(wav) / SAMPLE_RATE
    parts = {part: [row for row in rows if subset(row[1], TEST_PERCENT) == part] for part in ("train", "val", "test")}
    for part, chosen in parts.items():
        write(output / f"{part}.txt", [f"{name}|{text}|{SPEAKER}" for name, text in chosen])
    return {part: len(chosen) for part, chosen in parts.items()} | {"minutes": round(seconds / 60, 1)}


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("recordings"))
    options = parser.parse_args()
    return exit_code_of(lambda: print(make_recordings(options.output)))


if __name__ == "__main__":
    sys.exit(main())
