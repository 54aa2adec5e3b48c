"""Where the worker computes."""

import functools
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


_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


@functools.cache
def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster there than those of 32 bits: they halve the time of
    a step, or better, on CUDA and on CPUs with instructions for them."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, object] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # not in older torch
    return any(capabilities.get(name, False) for name in _BF16_INSTRUCTIONS)


def choose_threads(wanted: int) -> int:
    """CPU threads for torch; 0 means half the cores, since scorer and worker share them."""
    return wanted or max((os.cpu_count() or 2) // 2, 1)
