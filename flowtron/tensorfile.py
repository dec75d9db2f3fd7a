"""Files of tensors and their descriptions: read with every size checked first, written in one go."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from flowtron.errors import InputError

# Far above any real header or description (a model of 1,000 weights needs 0.1 MB).
MAX_JSON_BYTES = 1 << 23
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: it is missing, too big, not JSON or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes are too many for {what}; get the file anew.")
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such {what}; name the folder of a checkpoint.") from None
    except (ValueError, RecursionError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a readable {what} ({brief(error)}); get the file anew.") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected an object for {what}, found {type(values).__name__}; get the file anew.")
    return values


def brief(error: BaseException) -> str:
    """First line of an error, shortened, for a sentence that mentions it."""
    return (str(error).splitlines() or [""])[0][:120] or type(error).__name__


def check_tensor_file(path: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Read the header of a safetensors file; return dtype and shape by name, once all sizes add up to the file's.

    Raises:
        InputError: the file is missing, truncated, or its header does not describe it.
    """

    def refuse(why: str) -> InputError:
        return InputError(f"{path}: {why}, so it is truncated, altered or no safetensors file; get it anew.")

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= header_size <= min(size - 8, MAX_JSON_BYTES):
                raise refuse(f"its {size} bytes do not hold a header of {header_size}")
            header = json.loads(file.read(header_size))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name an existing file.") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise refuse(f"its header is no JSON ({brief(error)})") from None
    if not isinstance(header, dict):
        raise refuse("its header is no object")
    header.pop("__metadata__", None)
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        try:
            dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
            start, end = entry["data_offsets"]
            whole = all(type(n) is int and n >= 0 for n in (*shape, start, end)) and len(shape) <= 16
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole or math.prod(shape) * dtype.itemsize != end - start:
            raise refuse(f"weight {name[:80]!r} is wrongly described")
        shapes[name] = dtype, shape
        spans.append((start, end))
    position = 0
    for start, end in sorted(spans):
        if start != position:
            raise refuse("its weights overlap or leave gaps")
        position = end
    if position != size - 8 - header_size:
        raise refuse(f"its weights take {position} bytes, but {size - 8 - header_size} are there")
    return shapes


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file, checked before anything of the declared sizes is allocated.

    Args:
        path: the file.
        sha256: hash that it must have.

    Raises:
        InputError: the file is missing, damaged, or another than the one hashed.
    """
    check_tensor_file(path)
    data = path.read_bytes()
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"{path}: its hash is not the one noted beside it, so it was altered; get it anew.")
    try:
        return safetensors.torch.load(data)
    except Exception as error:
        raise InputError(f"{path}: not a readable safetensors file ({brief(error)}); get it anew.") from None


def set_usual_mode(path: Path, mode: int) -> None:
    """Give a temporary file or folder, made private, the mode that any other would have."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(mode & ~mask)


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` when it is complete, and never before.

    Raises:
        InputError: it cannot be written.
    """
    path = path.resolve()
    temporary = path
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        set_usual_mode(temporary, 0o666)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be written ({brief(error)}); choose another place.") from None
    finally:
        if temporary != path:
            temporary.unlink(missing_ok=True)


def replace_folder(folder: Path, files: Mapping[str, bytes], own: str) -> None:
    """Write a folder in one go: a reader sees the old folder or the new one, never a part.

    Args:
        folder: where to.
        files: content by name.
        own: file whose presence marks an existing folder as one that may be replaced.

    Raises:
        InputError: something else is in the way, or cannot be written.
    """
    folder = folder.resolve()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / own).is_file()):
        raise InputError(f"{folder}: exists and is not a checkpoint; remove it or choose another name.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".new", dir=folder.parent))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another place.") from None
    old = temporary.with_suffix(".old")
    try:
        for name, content in files.items():
            with (temporary / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        set_usual_mode(temporary, 0o777)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); free some space or choose another."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def pack(state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> bytes:
    """Return the content of a safetensors file, floating weights in `dtype` where one is given.

    Raises:
        InputError: a finite weight is beyond the range of the dtype.
    """
    packed: dict[str, Tensor] = {}
    for name, value in state.items():
        tensor = value.detach().cpu()
        if dtype is not None and tensor.is_floating_point():
            cast = tensor.to(dtype)
            if bool((cast.isfinite() != tensor.isfinite()).any()):
                raise InputError(f"weight '{name}' is beyond the range of {dtype}; keep it in {tensor.dtype}.")
            tensor = cast
        packed[name] = tensor.clone(memory_format=torch.contiguous_format)
    return safetensors.torch.save(packed)
