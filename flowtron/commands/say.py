"""Speak a text into a sound file, one file a line, or to standard output."""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowtron.commands import (
    Outcome,
    add_voice_options,
    check_picture,
    check_writable,
    load_voice,
    progress_bar,
    tell_notes,
)
from flowtron.errors import InputError

if TYPE_CHECKING:
    from flowtron.speech import Narration, Speech
    from flowtron.synthesizer import Synthesizer

EXAMPLES = """\
flowtron say "It is well known that deep generative models have a rich latent space."
flowtron say -i joe -s 0.8 --rate 1.1 "Hello." -o hello.wav --plot hello.png --times hello.TextGrid
flowtron say -f chapter.txt -o chapter.flac
flowtron say -f sentences.txt -o wavs/              one file a line
echo "Hello." | flowtron say -o - | aplay           wav on standard output, sentence by sentence
flowtron say "Hello." -o - --format pcm | aplay -f S16_LE -r 22050
"""
LINES_AT_ONCE = 64  # whose sentences are computed together
SUFFIXES = (".wav", ".flac", ".mp3", ".opus")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron say`."""
    parser.add_argument("text", nargs="*", help="what to say; standard input when there is neither text nor --file")
    parser.add_argument("-f", "--file", action="append", default=[], help="text file to read, '-' is standard input")
    add_voice_options(parser)
    parser.add_argument("-i", "--speaker", default=None, help="speaker by name or number; the first if absent")
    parser.add_argument("-s", "--sigma", type=float, default=None, help="standard deviation of z: more is livelier")
    parser.add_argument("--seed", type=int, default=1234, help="of the draw of z (default: %(default)s)")
    parser.add_argument(
        "--draws", type=int, default=1, help="draws of each sentence; the best one is kept (default: %(default)s)"
    )
    parser.add_argument("--rate", type=float, default=1.0, help="speaking rate, 2 is twice as fast")
    parser.add_argument("--unguided", action="store_true", help="free attention and the gate, as in the original")
    parser.add_argument(
        "-o",
        "--output",
        default="speech.wav",
        help="sound file to write (.wav, .flac, .mp3, .opus); a folder, with / at its end, gets one file a line; '-' "
        "is standard output (default: %(default)s)",
    )
    parser.add_argument("--format", choices=("wav", "pcm"), default="wav", help="of standard output; pcm has no header")
    parser.add_argument("--plot", default=None, help="picture of mel and attention to write")
    parser.add_argument("--times", default=None, help="word times to write: .json, .TextGrid or .srt")


def read_text(options: argparse.Namespace) -> str:
    """Return the text of arguments, files or standard input.

    Raises:
        InputError: a file is missing or not UTF-8.
    """
    parts = [" ".join(options.text)] if options.text else []
    for name in options.file or ([] if options.text else ["-"]):
        if name == "-" and sys.stdin is None:
            raise InputError("there is no standard input; give a text, or name a text file with -f.")
        if name == "-" and sys.stdin.isatty():
            print("type what to say, then Ctrl-D", file=sys.stderr)
        try:
            content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
            parts.append(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise InputError(f"{name}: byte {error.start} is not UTF-8; save the text as UTF-8.") from None
        except OSError as error:
            raise InputError(f"{name}: {error.strerror}; name a text file.") from None
    return "\n\n".join(parts)


def run(options: argparse.Namespace) -> Outcome:
    """Speak."""
    from flowtron.speech import times_writer

    text = read_text(options)
    to_folder = options.output.endswith(("/", "\\")) or Path(options.output).is_dir()
    if options.format == "pcm" and options.output != "-":
        raise InputError(f"--format is of standard output, but -o is {options.output!r}; leave one of them out.")
    if options.output == "-" or to_folder:
        if options.plot or options.times:
            raise InputError(f"--plot and --times need one sound file, but -o is {options.output!r}; name a file.")
        if options.json and options.output == "-":
            raise InputError("--json and the sound both want standard output; name a sound file with -o.")
    elif Path(options.output).suffix.lower() not in SUFFIXES:
        raise InputError(f"{options.output}: sound is written as {', '.join(SUFFIXES)}; choose one of these suffixes.")
    check_writable(*([] if to_folder else [options.output]), options.plot, options.times)
    check_picture(options.plot)
    if options.times:
        times_writer(options.times)
    if not any(character.isalnum() for character in text):
        raise InputError(f"the text is {text[:60]!r}, with nothing to speak; give it at least one word.")
    voice = load_voice(options)
    sampling = {name: getattr(options, name) for name in ("speaker", "seed", "draws", "rate")}
    sampling["guided"] = not options.unguided
    if options.sigma is not None:
        sampling["sigma"] = options.sigma
    if options.output == "-":
        return to_standard_output(voice, text, options.format, sampling)
    started = time.perf_counter()
    left_out: list[str] = []
    if to_folder:
        spoken, written = to_folder_of_wavs(voice, text, options, sampling, left_out)
    else:
        spoken, written = to_file(voice, text, options, sampling)
    return outcome(spoken, written, time.perf_counter() - started, options, left_out)


def to_standard_output(voice: "Synthesizer", text: str, format: str, sampling: dict[str, Any]) -> Outcome:
    """Write sound as soon as it is there."""
    from flowtron.formats import pcm, wav_header

    out = sys.stdout.buffer
    if format == "wav":
        out.write(wav_header(voice.settings.sample_rate))
    for wav in voice.stream_wav(text, **sampling):
        out.write(pcm(wav))
        out.flush()
    return Outcome("")


def to_file(
    voice: "Synthesizer", text: str, options: argparse.Namespace, sampling: dict[str, Any]
) -> tuple[list["Speech | Narration"], list[Path]]:
    """Write one sound file, with its picture and times where they are asked for."""
    import soundfile

    from flowtron.formats import encode
    from flowtron.speech import save_times
    from flowtron.tensorfile import replaced_file

    output = Path(options.output)
    written = [output]
    spoken: Speech | Narration
    format = output.suffix.lower().lstrip(".")
    if options.plot:
        spoken = voice(text, **sampling)
        with replaced_file(output) as file:
            file.write(encode(spoken.wav, spoken.sample_rate, format))
        written.append(spoken.plot(options.plot))
    else:
        # However long the text is, only a few sentences are held at a time.
        with progress_bar("speaking", options) as show, tempfile.TemporaryDirectory() as place:
            wav = output if format == "wav" else Path(place) / "speech.wav"
            spoken = voice.speak_to_file(text, wav, progress=show, **sampling)
            if wav != output:
                content = encode(soundfile.read(wav)[0], spoken.sample_rate, format)
                with replaced_file(output) as file:
                    file.write(content)
    if options.times:
        written.append(save_times(spoken, options.times))
    return [spoken], written


def to_folder_of_wavs(
    voice: "Synthesizer", text: str, options: argparse.Namespace, sampling: dict[str, Any], left_out: list[str]
) -> tuple[list["Speech | Narration"], list[Path]]:
    """Write one wav a line, named by its number in the text; a note goes to `left_out` for lines that are refused."""
    from flowtron.inference import SamplingOptions

    lines: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if any(map(str.isalnum, line)):
            lines.append((number, line))
        elif line.strip():
            left_out.append(f"line {number} is left out: {line.strip()[:60]!r} has nothing to speak")
    voice.speaker_id(sampling["speaker"])
    SamplingOptions(**{name: value for name, value in sampling.items() if name not in ("speaker", "seed")})
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    spoken: list[Speech | Narration] = []
    written = []
    with progress_bar("speaking", options) as show:
        for start in range(0, len(lines), LINES_AT_ONCE):
            chosen = lines[start : start + LINES_AT_ONCE]
            for number, speech in _speakable(voice, chosen, sampling, left_out):
                spoken.append(speech)
                written.append(speech.save(output / f"{number:04d}.wav"))
                show(number / lines[-1][0])
    if not spoken:
        raise InputError(left_out[0])
    return spoken, written


def _speakable(
    voice: "Synthesizer", lines: list[tuple[int, str]], sampling: dict[str, Any], left_out: list[str]
) -> Iterator[tuple[int, "Speech"]]:
    """Yield the speech of numbered lines that can be spoken."""
    try:
        speeches = voice([line for _, line in lines], **sampling)
    except InputError as error:
        if len(lines) == 1:
            left_out.append(f"line {lines[0][0]} is left out: {error}")
            return
        for line in lines:  # to find out which
            yield from _speakable(voice, [line], sampling, left_out)
    else:
        yield from zip([number for number, _ in lines], speeches)


def outcome(
    spoken: list["Speech | Narration"],
    written: list[Path],
    took: float,
    options: argparse.Namespace,
    left_out: Sequence[str],
) -> Outcome:
    """Tell what was spoken, and fail where something was left out."""
    notes = [*left_out, *(note for each in spoken for note in each.notes)]
    tell_notes(notes, options)
    seconds = sum(each.seconds for each in spoken)
    files = ", ".join(map(str, written)) if len(written) < 6 else f"{len(written)} files in {options.output}"
    values = {
        "files": [str(path) for path in written],
        "seconds": seconds,
        "took_seconds": took,
        "sample_rate": spoken[0].sample_rate,
        "alignment_scores": [each.score for each in spoken],
        "words": [
            [{"text": w.text, "start": w.start_seconds, "end": w.end_seconds} for w in each.words] for each in spoken
        ],
        "notes": notes,
    }
    worst = min(each.score for each in spoken)
    told = f"{seconds:.2f} s of speech in {took:.2f} s, alignment score {worst:.2f}: {files}"
    return Outcome(told, values, 1 if left_out else 0)
