"""Where to compute."""

import torch

from flowtron.errors import InputError


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
