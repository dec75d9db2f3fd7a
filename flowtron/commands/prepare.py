"""Make a corpus ready for training: filelists, one sample rate, silence trimmed, a speaker table."""

import argparse
from pathlib import Path

from flowtron.commands import Outcome, progress_bar

EXAMPLES = """\
flowtron prepare ljspeech LJSpeech-1.1 -o data/ljspeech
flowtron prepare libritts LibriTTS/train-clean-100 -o data/libritts
flowtron prepare vctk VCTK-Corpus-0.92 -o data/vctk --workers 8
flowtron prepare folder my_recordings -o data/mine      wavs with metadata.csv, or a .txt beside each
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron prepare`."""
    parser.add_argument("corpus", choices=("ljspeech", "libritts", "vctk", "folder"), help="how the corpus is laid out")
    parser.add_argument("path", help="its folder")
    parser.add_argument("-o", "--output", required=True, help="folder to write; run again, it does what is missing")
    parser.add_argument("--sample-rate", type=int, default=22050, help="in Hz (default: %(default)s)")
    parser.add_argument(
        "--trim-db",
        type=float,
        default=42.0,
        help="silence is this far below the peak; 0 keeps it (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=None, help="processes; one for each processor if absent")


def run(options: argparse.Namespace) -> Outcome:
    """Prepare and count."""
    from flowtron.errors import InputError
    from flowtron.prepare import Settings, prepare

    if not 1000 <= options.sample_rate <= 192000:
        raise InputError(f"--sample-rate is {options.sample_rate} Hz, expected 1000 to 192000; give for example 22050.")
    settings = Settings(options.sample_rate, options.trim_db or None)
    with progress_bar("preparing", options) as show:
        report = prepare(options.corpus, Path(options.path), Path(options.output), settings, options.workers, show)
    lines = [
        f"{name + '.txt':10s} {count:7d} recordings {report.hours[name]:8.2f} h"
        for name, count in report.recordings.items()
    ]
    least = min(report.minutes_by_speaker, key=lambda name: report.minutes_by_speaker[name])
    n_speakers = len(report.minutes_by_speaker)
    lines.append(
        f"{n_speakers} speaker{'s' * (n_speakers > 1)}, the least of them {least} with "
        f"{report.minutes_by_speaker[least]:.1f} minutes"
    )
    if report.left_out:
        key, reason = report.left_out[0]
        lines.append(
            f"left out {len(report.left_out)}, listed in {report.output / 'left_out.txt'}; the first, {key}: {reason}"
        )
    lines.append(f"next: flowtron check {report.output / 'train.txt'}")
    values = {
        "output": str(report.output),
        "recordings": report.recordings,
        "hours": report.hours,
        "minutes_by_speaker": report.minutes_by_speaker,
        "left_out": [{"recording": key, "reason": reason} for key, reason in report.left_out],
    }
    return Outcome("\n".join(lines), values)
