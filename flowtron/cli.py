"""The `flowtron` command: thin, one function a subcommand; mistakes are answered in one sentence, with exit code 2."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flowtron.errors import InputError


def add_say(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron say`."""
    parser.add_argument("text", nargs="*", help="what to say; standard input when absent")
    parser.add_argument(
        "-m", "--model", default="", help="checkpoint folder or bundled voice; a bundled voice if absent"
    )
    parser.add_argument("-v", "--vocoder", default="griffin_lim", help="vocoder: a name or a folder")
    parser.add_argument("-i", "--speaker", default=None, help="speaker by name or number")
    parser.add_argument("-s", "--sigma", type=float, default=None, help="standard deviation of z")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--rate", type=float, default=1.0, help="speaking rate, 2 is twice as fast")
    parser.add_argument("--engine", default="auto", help="what computes the frames: auto, kernel or torch")
    parser.add_argument("--dtype", default="float32", help="weights of the kernel: float32, bfloat16 or int8")
    parser.add_argument("--unguided", action="store_true", help="free attention and the gate, as in the original")
    parser.add_argument("-o", "--output", default="speech.wav", help="wav to write; '-' streams raw 16-bit PCM")
    parser.add_argument("--plot", default=None, help="picture of mel and attention to write")
    parser.add_argument("--times", default=None, help="word times to write: .json, .TextGrid or .srt")


def say(options: argparse.Namespace) -> None:
    """Speak a text into a wav file, or as raw PCM to standard output."""
    from flowtron.speech import Narration, Speech, save_times, times_writer
    from flowtron.synthesizer import DEFAULT_SIGMA, Synthesizer, bundled_voices

    text = " ".join(options.text) if options.text else sys.stdin.read()
    model = options.model
    if not model:
        voices = bundled_voices()
        if not voices:
            raise InputError("no voice is bundled; name a checkpoint folder with --model.")
        model = voices[0]
    # Checked before the work, so that nothing is computed in vain and nothing half-written.
    for path in (options.output, options.plot, options.times):
        if path not in (None, "-") and not Path(path).resolve().parent.is_dir():
            raise InputError(f"{path}: its folder does not exist; create it or choose another.")
    if options.times:
        times_writer(options.times)
    voice = Synthesizer.load(model, options.vocoder, engine=options.engine, dtype=options.dtype)
    sampling = {
        "speaker": options.speaker,
        "sigma": DEFAULT_SIGMA if options.sigma is None else options.sigma,
        "seed": options.seed,
        "rate": options.rate,
        "guided": not options.unguided,
    }
    if options.output == "-":
        for wav in voice.stream_wav(text, **sampling):
            sys.stdout.buffer.write((wav.clip(-1, 1) * 32767).astype("<i2").tobytes())
            sys.stdout.buffer.flush()
        return
    started = time.perf_counter()
    written = [Path(options.output)]
    spoken: Speech | Narration
    if options.plot:
        spoken = voice(text, **sampling)
        written = [spoken.save(options.output), spoken.plot(options.plot)]
    else:
        with progress_bar("speaking") as progress:
            spoken = voice.speak_to_file(text, options.output, progress=progress, **sampling)
    took = time.perf_counter() - started
    if options.times:
        written.append(save_times(spoken, options.times))
    for note in spoken.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{spoken.seconds:.2f} s of speech in {took:.2f} s: {', '.join(map(str, written))}")


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[float], None]]:
    """Show a bar on standard error, where that is a terminal; give what is called with the share that is done."""
    if not sys.stderr.isatty():
        yield lambda share: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=1.0)
        yield lambda share: progress.update(task, completed=share)


def add_train(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron train`."""
    parser.add_argument("-c", "--config", required=True, help="JSON config")
    parser.add_argument("-p", "--params", nargs="*", action="extend", default=[], metavar="section.key=value")


def train(options: argparse.Namespace) -> None:
    """Train from a config; the same command goes on after an interruption."""
    from flowtron.config import load_config
    from flowtron.train import train as run

    print(f"saved {run(load_config(options.config, options.params))}")


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron convert`."""
    parser.add_argument("source", help="checkpoint of the original, WaveGlow, Tacotron 2 or HiFi-GAN")
    parser.add_argument("target", help="folder to write")
    parser.add_argument("-c", "--config", default=None, help="its config, for what shapes cannot tell")


def convert(options: argparse.Namespace) -> None:
    """Convert a checkpoint of the original, without running any code in it."""
    from flowtron.convert import convert as run

    print(run(options.source, options.target, options.config))


def add_export(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron export`."""
    parser.add_argument("source", help="checkpoint folder")
    parser.add_argument("target", help=".pt file to write, in the original's layout")


def export(options: argparse.Namespace) -> None:
    """Write a checkpoint in the original's state-dict layout."""
    from flowtron.convert import export as run

    print(run(options.source, options.target))


def add_info(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron info`."""
    parser.add_argument("path", help="checkpoint or vocoder folder")


def info(options: argparse.Namespace) -> None:
    """Tell what a checkpoint is."""
    from flowtron.checkpoint import info as describe

    print(describe(options.path))


COMMANDS = {
    "say": (add_say, say),
    "train": (add_train, train),
    "convert": (add_convert, convert),
    "export": (add_export, export),
    "info": (add_info, info),
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="flowtron", description="Text-to-speech with autoregressive flows.")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, (add, run) in COMMANDS.items():
        add(subparsers.add_parser(name, help=(run.__doc__ or "").rstrip("."), description=run.__doc__))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = build_parser().parse_args(arguments)
    try:
        COMMANDS[options.command][1](options)
    except InputError as error:
        print(f"flowtron: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
