"""The subcommands of `flowtron`, one module each.

A module has a docstring, whose first line is its help; EXAMPLES, shown below the options; `add_options(parser)`; and
`run(options)`, which does the work and returns an Outcome. It imports what is slow to import inside `run`. To add a
subcommand, write its module here and name it in COMMANDS.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowtron.errors import InputError

if TYPE_CHECKING:
    from flowtron.synthesizer import Synthesizer

# In the order of the help.
COMMANDS = (
    "say",
    "prepare",
    "check",
    "train",
    "serve",
    "evaluate",
    "score",
    "style",
    "mels",
    "convert",
    "export",
    "info",
    "completion",
)
PICTURES = (".png", ".jpg", ".pdf", ".svg")


@dataclass(frozen=True)
class Outcome:
    """What a subcommand did: for people, for scripts (--json), and its exit code."""

    text: str
    values: dict[str, Any] = field(default_factory=dict)
    code: int = 0


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options that every subcommand has."""
    group = parser.add_argument_group("output")
    group.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    group.add_argument("--json", action="store_true", help="print the result as one JSON object, for scripts")
    group.add_argument("--debug", action="store_true", help="show where an error comes from")


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Option that chooses where to compute."""
    parser.add_argument("-d", "--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")


def add_voice_options(parser: argparse.ArgumentParser, positional: bool = False) -> None:
    """Options that choose a voice; `load_voice` reads them."""
    described = "checkpoint folder or name of a bundled voice"
    if positional:
        parser.add_argument("model", metavar="MODEL", help=described)
    else:
        parser.add_argument("-m", "--model", default=None, help=f"{described}; the first bundled one if absent")
    parser.add_argument("-v", "--vocoder", default=None, help="a vocoder's name or folder; the voice's own if absent")
    add_device_option(parser)
    parser.add_argument("--engine", default="auto", help="what computes the frames: auto, kernel or torch")
    parser.add_argument("--dtype", default="float32", help="weights of the kernel: float32, bfloat16 or int8")


def load_voice(options: argparse.Namespace) -> "Synthesizer":
    """Load the voice that the options choose.

    Raises:
        InputError: there is no such voice, vocoder or device.
    """
    from flowtron.device import choose_device
    from flowtron.synthesizer import Synthesizer, bundled_voices

    model = options.model
    if model is None:
        voices = bundled_voices()
        if not voices:
            raise InputError("no voice is bundled; name a checkpoint folder with --model.")
        model = voices[0]
    vocoder = {} if options.vocoder is None else {"vocoder": options.vocoder}
    device = str(choose_device(options.device))
    return Synthesizer.load(model, **vocoder, device=device, engine=options.engine, dtype=options.dtype)


def check_writable(*paths: str | Path | None) -> None:
    """Refuse files that cannot be written, before any work is done in vain; None and '-' are skipped.

    Raises:
        InputError: a folder does not exist, or the path is a folder.
    """
    for path in paths:
        if path is None or str(path) == "-":
            continue
        if not Path(path).resolve().parent.is_dir():
            raise InputError(f"{path}: its folder does not exist; create it or choose another.")
        if Path(path).is_dir():
            raise InputError(f"{path}: it is a folder, where a file was expected; add the file's name.")


def check_no_input(inputs: Iterable[str | Path], *outputs: str | Path | None) -> None:
    """Refuse to write over a file that is read; None is skipped.

    Raises:
        InputError: an output is one of the inputs.
    """
    read = {Path(each).resolve() for each in inputs}
    for output in outputs:
        if output is not None and Path(output).resolve() in read:
            raise InputError(f"{output}: it is read here, and would be written over; choose another name to write.")


def check_picture(path: str | Path | None) -> None:
    """Refuse a picture's name before any work is done in vain; None is skipped.

    Raises:
        InputError: its suffix is of no format that is drawn.
    """
    if path and Path(path).suffix.lower() not in PICTURES:
        raise InputError(f"{path}: pictures are written as {', '.join(PICTURES)}; choose one of these suffixes.")


def tell_notes(notes: Iterable[str], options: argparse.Namespace) -> None:
    """Print once each what is to be known of speech, but characters without a symbol: a warning told those."""
    for note in dict.fromkeys(notes) if not options.quiet else ():
        if not note.startswith("no symbol"):
            print(f"note: {note}", file=sys.stderr)


@contextmanager
def progress_bar(title: str, options: argparse.Namespace) -> Iterator[Callable[[float], None]]:
    """Show a bar with the time left on standard error, if that is a terminal; give what takes the share done."""
    if options.quiet or not sys.stderr.isatty():
        yield lambda share: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=1.0)
        yield lambda share: progress.update(task, completed=share)
