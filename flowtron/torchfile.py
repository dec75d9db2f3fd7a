"""The containers of PyTorch's files: the zip archive since 1.6 and the stream of pickles before it.

Sizes that a file declares are compared with what it holds before anything is allocated for them.
"""

import contextlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import torch

from flowtron.errors import InputError
from flowtron.unpickle import MAX_NAMES, MAX_PICKLE_BYTES, Refused, Storage, made, plain, run

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def _archive_entries(archive: zipfile.ZipFile, file_size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the entries by their name in the one folder that holds them all."""
    entries = archive.infolist()
    if len(entries) > MAX_NAMES or sum(entry.file_size for entry in entries) > file_size:
        raise Refused("its entries are larger than itself")
    root, named = "", {}
    for entry in entries:
        path = PurePosixPath(entry.filename)
        root = root or path.parts[0]
        unsafe = path.is_absolute() or ".." in path.parts or "\\" in entry.filename or len(path.parts) < 2
        if unsafe or path.parts[0] != root:
            raise Refused(f"it has an entry '{plain(entry.filename)}' outside its folder")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise Refused("its entries are compressed, which PyTorch never does")
        name = "/".join(path.parts[1:])
        if name in named:
            raise Refused(f"it has two entries '{plain(name)}'")
        named[name] = entry
    if "data.pkl" not in named or "constants.pkl" in named:
        raise Refused("it is not an archive that torch.save wrote")
    if named["data.pkl"].file_size > MAX_PICKLE_BYTES:
        raise Refused(f"its pickle has more than {MAX_PICKLE_BYTES} bytes")
    return named


def read_archive(path: Path) -> Any:
    """Read the zip archive of PyTorch since 1.6."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = _archive_entries(archive, size)
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise Refused("its numbers are not little-endian")
        storages: dict[str, Storage] = {}

        def storage(key: str, dtype: torch.dtype, count: int) -> Storage:
            found = storages.get(key) or Storage(dtype, count)
            if (found.dtype, found.count) != (dtype, count):
                raise Refused(f"it describes storage '{plain(key)}' in two ways")
            entry = entries.get(f"data/{key}")
            if entry is None or entry.file_size != found.n_bytes:
                raise Refused(f"it declares {found.n_bytes} bytes for storage '{plain(key)}', which are not there")
            if key not in storages:
                found.content = bytearray(archive.read(entry))
            return storages.setdefault(key, found)

        return made(run(io.BytesIO(archive.read(entries["data.pkl"])), size, storage), {})


def check_archive(path: Path) -> None:
    """Check that a file is an archive as torch.save writes it, uncompressed and no larger than it says.

    Its pickle runs here without the tensors' numbers, so that whoever reads the file then need not fear it.

    Raises:
        InputError: it is missing or something else.
    """
    with refusals(path), zipfile.ZipFile(path) as archive:
        size = path.stat().st_size
        content = archive.read(_archive_entries(archive, size)["data.pkl"])
        run(io.BytesIO(content), size, lambda _, dtype, count: Storage(dtype, count))


def read_stream(path: Path, file: BinaryIO) -> Any:
    """Read the stream of pickles of PyTorch before 1.6: magic number, version, system, object, keys, then storages."""
    size = path.stat().st_size
    stream = io.BytesIO(file.read(min(size, MAX_PICKLE_BYTES)))
    storages: dict[str, Storage] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Storage:
        found = storages.setdefault(key, Storage(dtype, count))
        if (found.dtype, found.count) != (dtype, count):
            raise Refused(f"it describes storage '{plain(key)}' in two ways")
        return found

    if run(stream, size, storage) != LEGACY_MAGIC:
        raise Refused("it is not a file that torch.save wrote")
    version, system = run(stream, size, storage), run(stream, size, storage)
    if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("its version is not 1001, or its byte order not known")
    value, keys = run(stream, size, storage), run(stream, size, storage)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
        raise Refused("its list of storages is not that of its tensors")
    file.seek(stream.tell())
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        n_bytes = storages[key].n_bytes
        if count != storages[key].count or file.tell() + n_bytes > size:
            raise Refused(f"it declares {n_bytes} bytes for storage '{plain(key)}', which are not there")
        storages[key].content = bytearray(file.read(n_bytes))
    return made(value, {})


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn whatever a damaged or hostile file causes into one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; name an existing checkpoint.") from None
    except Refused as refused:
        raise InputError(f"{path}: refused, because {refused}; get the file from a source you trust.") from None
    except InputError:
        raise
    except Exception as error:
        why = plain(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        raise InputError(f"{path}: truncated, altered or no PyTorch file ({why}); get it anew.") from None


def read_file(path: str | Path) -> Any:
    """Read a PyTorch file: tensors, plain values, containers of them, and shells of the modules on the list.

    Raises:
        InputError: it is missing, damaged, or would do anything else than hold data.
    """
    path = Path(path)
    with refusals(path), path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return read_archive(path)
        file.seek(0)
        return read_stream(path, file)
