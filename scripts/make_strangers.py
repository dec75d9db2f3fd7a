"""Make recordings of speakers that no bundled voice has heard, with known pitch, rate and loudness: flite's voices.

    apt-get install flite
    python scripts/make_strangers.py --sentences corpus/test.txt --output strangers

For scripts/experiments/transfer.py. As in the expressive corpus, every utterance has its own rate, pitch and loudness,
which factors.csv keeps; here flite itself speaks faster or higher (`duration_stretch`, `int_f0_target_mean`), and no
sound is stretched afterwards. flite's voice rms is not offered, for it does not follow `int_f0_target_mean`.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import soundfile
from make_corpus import SAMPLE_RATE, finish, spoken_form, variation, write

from flowtron.audio import save_wav
from flowtron.data import read_filelist
from flowtron.errors import InputError, exit_code_of

# Mean pitch in Hz of flite's voices as they come: a US woman, a Scot, a US man.
MEAN_HZ = {"slt": 170.0, "awb": 130.0, "kal16": 92.0}
FACTORS = ("rate", "semitones", "gain_db")


def command(voice: str, text: str, factors: dict[str, float], output: str) -> list[str]:
    """The command that has flite speak a text at the rate and pitch of `factors`."""
    hz = MEAN_HZ[voice] * 2 ** (factors["semitones"] / 12)
    settings = {"duration_stretch": 1 / factors["rate"], "int_f0_target_mean": hz}
    set_to = [part for name, value in settings.items() for part in ("--setf", f"{name}={value:.4f}")]
    return ["flite", "-voice", voice, *set_to, "-t", text, "-o", output]


def speak(voice: str, text: str, factors: dict[str, float], path: Path) -> None:
    """Write one utterance.

    Raises:
        InputError: flite is missing or fails.
    """
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        try:
            subprocess.run(command(voice, spoken_form(text), factors, file.name), check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(f"flite cannot speak ({error}); run apt-get install flite.") from None
        samples, rate = soundfile.read(file.name, dtype="float32")
    # Pitch is flite's own affair; what is left is the loudness.
    save_wav(path, finish(samples, rate, {**factors, "semitones": 0.0}), SAMPLE_RATE)


def make_strangers(voices: list[str], texts: list[str], seed: int, output: Path) -> dict[str, int]:
    """Write wavs, the filelist and the true factors; return how many utterances each voice has."""
    (output / "wavs").mkdir(parents=True, exist_ok=True)
    lines, rows = [], ["path," + ",".join(FACTORS)]
    for voice in voices:
        for number, text in enumerate(texts):
            factors = variation(text, voice, seed, expressive=True)
            name = f"wavs/{voice}_{number:05d}.wav"
            speak(voice, text, factors, output / name)
            lines.append(f"{name}|{text}|{voice}")
            rows.append(",".join([name, *(f"{factors[key]:.4f}" for key in FACTORS)]))
    write(output / "train.txt", lines)
    write(output / "factors.csv", rows)
    return {voice: len(texts) for voice in voices}


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=Path, required=True, help="filelist path|text|speaker of what to say")
    parser.add_argument("--limit", type=int, default=120, help="texts for each voice (default: %(default)s)")
    parser.add_argument("--voices", nargs="+", choices=list(MEAN_HZ), default=list(MEAN_HZ))
    parser.add_argument("--output", type=Path, default=Path("strangers"))
    parser.add_argument("--seed", type=int, default=1234)
    options = parser.parse_args()

    def run() -> None:
        texts = list(dict.fromkeys(each.text for each in read_filelist(options.sentences)))[: options.limit]
        print(make_strangers(options.voices, texts, options.seed, options.output))

    return exit_code_of(run)


if __name__ == "__main__":
    sys.exit(main())
