"""Print a script that completes the command line in a shell."""

import argparse

from flowtron.commands import Outcome

EXAMPLES = """\
flowtron completion bash > ~/.local/share/bash-completion/completions/flowtron
flowtron completion zsh > ~/.zfunc/_flowtron
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `flowtron completion`."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="which shell to write for")


def run(options: argparse.Namespace) -> Outcome:
    """Write the script."""
    import shtab

    from flowtron.cli import build_parser

    script = shtab.complete(build_parser(), shell=options.shell)
    return Outcome(script, {"shell": options.shell, "script": script})
