"""Where to compute, and with what memory."""

import ctypes

import torch

from flowtron.errors import InputError

# glibc's malloc: numbers of its options, and bytes. A tensor of more than the first goes back to the system when it is
# freed, as does what is free beyond the second at the end of the heap.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MMAP_BYTES, TRIM_BYTES = 32 << 20, 128 << 20


def keep_freed_memory() -> None:
    """Let this process keep the memory of tensors that it freed; for training, whose steps all want the same again.

    Without it up to a twelfth of a small model's step on a CPU goes into pages that the system takes and zeroes anew.
    Systems without glibc keep their own ways.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
    mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)


def choose_device(name: str = "auto") -> torch.device:
    """Return a device by name; 'auto' is a GPU (CUDA, or Apple's MPS) where there is one, else the CPU.

    Raises:
        InputError: this machine has no such device, or there is none of that name.
    """
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device is {name!r}, expected auto, cpu, cuda, cuda:N or mps; choose one of them.") from None
    there = {"cpu": True, "cuda": has_cuda and (device.index or 0) < torch.cuda.device_count(), "mps": has_mps}
    if not there.get(device.type, False):
        raise InputError(f"device is {name!r}, which this machine does not have or we do not use; try auto.")
    return device
