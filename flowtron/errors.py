"""The one exception that stands for a mistake of the user, and what a script makes of it."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Input that cannot be used.

    The message is one sentence: the value (with file and line where there is one), what was expected, and the
    remedy. The command line prints it and exits with code 2.
    """


def remedy(extra: str) -> str:
    """What to do where a package of an extra of setup.py is missing, as part of a sentence."""
    return f"run pip install -e '.[{extra}]' in the clone"


def exit_code_of(work: Callable[[], object]) -> int:
    """Do a script's work; return 0, 2 after a mistake, whose sentence goes to standard error, 130 when interrupted."""
    try:
        work()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        return 130
    return 0
