"""Where the worker computes."""

import os

import torch

from service.errors import ConfigurationError
from service.settings import Device


def choose_device(wanted: Device) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU. Raises ConfigurationError."""
    available = torch.cuda.is_available()
    if wanted is Device.CUDA and not available:
        raise ConfigurationError("trainer.device = 'cuda', but no CUDA device is usable here")
    return torch.device("cuda" if available and wanted is not Device.CPU else "cpu")


def choose_threads(wanted: int) -> int:
    """CPU threads for torch; 0 means half the cores, since scorer and worker share them."""
    return wanted or max((os.cpu_count() or 2) // 2, 1)
