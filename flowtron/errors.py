"""The one exception that stands for a mistake of the user, and what a script makes of it."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Input that cannot be used.

    The message is one sentence: the value (with file and line where there is one), what was expected, and the
    remedy. The command line prints it and exits with code 2.
    """


def exit_code_of(work: Callable[[], object]) -> int:
    """Do a script's work; return 0, or 2 when a mistake ended it, whose sentence goes to standard error."""
    try:
        work()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
