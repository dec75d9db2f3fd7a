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

    parser = build_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for command in commands.choices.values():
        for action in command._actions:
            # What is no fixed choice may be a file.
            if not action.choices and action.nargs != 0:
                action.complete = shtab.FILE
    script = shtab.complete(parser, shell=options.shell)
    return Outcome(script, {"shell": options.shell, "script": script})
