"""The `flowtron` command: thin, one module a subcommand; a mistake is answered in one sentence, with exit code 2."""

import argparse
import importlib
import io
import json
import math
import os
import signal
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowtron import __version__
from flowtron.commands import COMMANDS, Outcome, add_common_options
from flowtron.errors import InputError

# What a file or its name holds must not steer the terminal.
ESCAPED = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="flowtron", description="Text-to-speech with autoregressive flows.")
    parser.add_argument("--version", action="version", version=f"flowtron {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"flowtron.commands.{name}")
        help = (module.__doc__ or "").split("\n")[0].rstrip(".")
        examples = textwrap.indent(module.EXAMPLES, "  ")
        command = subparsers.add_parser(
            name,
            help=help,
            description=module.__doc__,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_options(command)
        add_common_options(command)
        command.set_defaults(run=module.run)
    return parser


def _report(outcome: Outcome, options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps(_plain(outcome.values), allow_nan=False))
    elif not options.quiet and outcome.text:
        print(outcome.text.translate(ESCAPED))
    sys.stdout.flush()
    return outcome.code


def _plain(value: Any) -> Any:
    """Values as JSON has them: a number that is not finite is null."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fail(sentence: str, code: int, options: argparse.Namespace) -> int:
    if options.debug:
        traceback.print_exc()
    if options.json:
        print(json.dumps({"error": sentence}))
    print(f"flowtron {options.command}: {sentence}".translate(ESCAPED), file=sys.stderr)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 1 for a failure that is not the user's or for faults that `check` found, 2 for a mistake of the user,
        130 when interrupted.
    """
    try:
        options = build_parser().parse_args(arguments)
    except KeyboardInterrupt:
        print("flowtron: interrupted.", file=sys.stderr)
        return 130
    # A terminal or pipe that lacks a character, and a file name that is no text, must not cost the result.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # What is half written is removed, as after Ctrl-C. Training and the server have their own ways.
    handles = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if handles:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    before = warnings.showwarning
    if not options.debug:
        warnings.showwarning = lambda message, category, filename, *_: _note(message, filename, options)
    try:
        return _report(options.run(options), options)
    except InputError as error:
        return _fail(str(error), 2, options)
    except KeyboardInterrupt as stop:
        return _fail(f"interrupted; {stop}." if str(stop) else "interrupted.", 130, options)
    except BrokenPipeError:
        # The reader had enough; what is still in the buffer must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}.", 1, options)
    except MemoryError:
        return _fail("not enough memory; use a shorter text, a smaller batch or a smaller model.", 1, options)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return _fail(f"a fault of flowtron itself ({what}); please report it with what --debug shows.", 1, options)
    finally:
        warnings.showwarning = before
        if handles:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _note(message: Warning | str, filename: str, options: argparse.Namespace) -> None:
    """Print a warning's sentence, without the line of code it came from, and nothing of what libraries outgrow."""
    is_ours = Path(filename).is_relative_to(Path(__file__).parent)
    if not options.quiet and (is_ours or "deprecated" not in str(message)):
        print(f"note: {message}".translate(ESCAPED), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
