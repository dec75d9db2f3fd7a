"""What happens once, before the tests are shared among processes."""

import importlib

# The modules of librosa that have numba's cached gufuncs.
WITH_GUFUNCS = ("librosa.util.utils", "librosa.core.audio", "librosa.core.pitch", "librosa.beat")


def pytest_configure(config):
    """Fill numba's cache in this process alone: processes that fill it at once mix their halves of a compiled gufunc,
    and whoever calls it then dies (https://github.com/numba/numba/issues/10128)."""
    if not hasattr(config, "workerinput"):
        for name in WITH_GUFUNCS:
            importlib.import_module(name)
