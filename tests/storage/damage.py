"""What a disk does to a file: it ends too early, or a bit is another."""

from collections.abc import Callable, Iterator

Harm = Callable[[bytes, int], bytes]


def cut(data: bytes, at: int) -> bytes:
    return data[:at]


def flipped(data: bytes, at: int) -> bytes:
    altered = bytearray(data)
    altered[at] ^= 1 << at % 8
    return bytes(altered)


def harmed(whole: bytes, harm: Harm) -> Iterator[bytes]:
    """Harmed at every hundredth of its length."""
    for at in sorted({len(whole) * hundredth // 100 for hundredth in range(100)}):
        yield harm(whole, at)
