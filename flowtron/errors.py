"""The one exception that stands for a mistake of the user."""


class InputError(ValueError):
    """Input that cannot be used.

    The message is one sentence: the value (with file and line where there is one), what was expected, and the
    remedy. The command line prints it and exits with code 2.
    """
