"""What products are made in."""

import functools

import torch

_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


@functools.cache
def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster there than those of 32 bits: they halve the time of
    a step or of a forward pass, or better, on CUDA and on CPUs with instructions for them."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, object] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # not in older torch
    return any(capabilities.get(name, False) for name in _BF16_INSTRUCTIONS)
