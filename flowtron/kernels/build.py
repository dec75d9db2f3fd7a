"""Compile a C++ source of this folder at first use, cache the library, open it with ctypes.

The sources know nothing of torch or Python, so they build in seconds and any compiler will do. Where there is none,
callers get None and use their pure-torch fallback. FLOWTRON_KERNELS=0 in the environment asks for the fallbacks.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# The last entry has no machine-specific flag, for compilers that know none of the others.
MACHINE_FLAGS = (("-march=native",), ("-mcpu=native",), ())
COMMON_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-fno-trapping-math")
BUILD_SECONDS = 300


def cache_folder(name: str = "kernels") -> Path:
    """Return the user's cache folder of that name, or one in the temporary folder where that cannot be written."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "flowtron" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return _private_folder(name)


@functools.cache
def _private_folder(name: str) -> Path:
    # A shared, guessable one would let another user plant a library.
    return Path(tempfile.mkdtemp(prefix=f"flowtron-{name}-"))


def _machine() -> str:
    """Return what the compiled code depends on: architecture and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.system()} {platform.machine()} {features}"


def _compile(compiler: str, source: Path, library: Path) -> bool:
    """Compile source to library, which appears whole or not at all; return whether it did."""
    handle, scratch = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(handle)
    try:
        complaint = ""
        for machine_flags in MACHINE_FLAGS:
            command = [compiler, *COMMON_FLAGS, *machine_flags, str(source), "-o", scratch]
            done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS)
            if done.returncode == 0:
                os.replace(scratch, library)
                return True
            complaint = complaint or done.stderr
        logger.warning("%s does not compile %s; the slower pure-torch code is used: %s", compiler, source, complaint)
        return False
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("%s cannot compile %s; the slower pure-torch code is used: %s", compiler, source, error)
        return False
    finally:
        Path(scratch).unlink(missing_ok=True)


@functools.cache
def load_library(name: str) -> ctypes.CDLL | None:
    """Return the library compiled from `name`.cpp, or None where it cannot be had.

    Several processes may call this at once: each compiles to a file of its own and moves it into place.
    """
    if os.environ.get("FLOWTRON_KERNELS", "1") == "0":
        return None
    source = Path(__file__).with_name(f"{name}.cpp")
    candidates = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    compiler = next((path for path in map(shutil.which, filter(None, candidates)) if path), None)
    shared = sorted(source.parent.glob("*.hpp"))
    identity = "\n".join(
        [
            *(file.read_text(encoding="utf-8") for file in (source, *shared)),
            repr(COMMON_FLAGS),
            compiler or "",
            _machine(),
        ]
    )
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    library = cache_folder() / f"{name}-{digest}.so"
    if not library.exists():
        if compiler is None:
            logger.warning("No C++ compiler was found; the slower pure-torch code is used for %s", name)
            return None
        if not _compile(compiler, source, library):
            return None
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        logger.warning("%s cannot be opened; the slower pure-torch code is used: %s", library, error)
        return None


def team_size(products: int, per_thread: int) -> int:
    """Threads, torch's number at most, that a loop with so many products a frame is worth.

    per_thread: products that outweigh meeting with one more thread.
    """
    return min(torch.get_num_threads(), 1 + products // per_thread)


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    """Return the address of a tensor's data, null for None."""
    return ctypes.c_void_p(None if x is None else x.data_ptr())
