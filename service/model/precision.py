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


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite, by the smallest and the largest: NaN is passed on to
    both. `isfinite` makes tensors of the same
    size, and takes ten times as long or more."""
    if not tensor.numel():
        return True
    least, most = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(least) & torch.isfinite(most))
