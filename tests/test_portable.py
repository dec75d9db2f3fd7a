"""Nothing ties the package to Linux: no modules of Unix alone, no encoding of the system's, devices by name."""

import ast
import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowtron.device import choose_device, keep_freed_memory
from flowtron.errors import InputError

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "flowtron").rglob("*.py"))
UNIX_ALONE = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty")
CALLS_OF_UNIX = ("fork", "getuid", "geteuid", "mkfifo", "setsid", "killpg", "sched_setaffinity")


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_runs_on_any_system(source):
    tree = ast.parse(source.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & set(UNIX_ALONE)
    for call in ast.walk(tree):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
            continue
        where = f"{source}:{call.lineno}"
        assert call.func.attr not in CALLS_OF_UNIX, where
        if call.func.attr == "get_context":
            assert ast.literal_eval(call.args[0]) == "spawn", where
        if call.func.attr in ("read_text", "write_text"):
            assert any(keyword.arg == "encoding" for keyword in call.keywords), where


def test_the_command_line_imports_without_the_modules_of_unix():
    # The interpreter's own libraries may ask for them, and do without.
    program = "import flowtron.device, soundfile, librosa, accelerate, sys\n"
    program += "\n".join(f"sys.modules[{name!r}] = None" for name in UNIX_ALONE if name != "posix")
    program += "\nimport flowtron.cli, flowtron.synthesizer, flowtron.prepare, flowtron.check, flowtron.train"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_auto_takes_the_best_device_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device().type == choose_device("cpu").type == "cpu"
    with pytest.raises(InputError, match="try auto"):
        choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device().type == choose_device("mps").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device().type == "cuda" and choose_device("cuda:1").index == 1
    with pytest.raises(InputError, match="cuda:2"):
        choose_device("cuda:2")


def test_systems_without_glibc_keep_their_own_ways(monkeypatch):
    for missing in (AttributeError, OSError, TypeError):

        def fails(name, missing=missing):
            raise missing

        monkeypatch.setattr(ctypes, "CDLL", fails)
        keep_freed_memory()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the options are glibc's")
def test_glibc_takes_the_options_of_memory(monkeypatch):
    answers = []
    real = ctypes.CDLL(None)

    class Library:
        def mallopt(self, option, value):
            answers.append(real.mallopt(option, value))

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    keep_freed_memory()
    assert answers == [1, 1]
