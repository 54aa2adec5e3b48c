"""Few sizes in place of any: a CPU compiles a product anew for every size that it meets.

oneDNN takes about 2 ms to compile one, several times what running it takes, and keeps 1,024 of
them: a few hundred MB. Batches of every size had each of theirs compiled, and pushed out again.
"""

_SIZES = 8  # between one power of two and the next


def common_size(size: int) -> int:
    """The least of the sizes in use that is no smaller: at most an eighth more."""
    step = 1 << max(size.bit_length() - _SIZES.bit_length(), 0)
    return -(-size // step) * step
