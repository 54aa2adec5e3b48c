"""A disk of a few megabytes, and filling it."""

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

_FILLER = "filler"
_AT_ONCE = bytes(64 * 1024)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int | None) -> Iterator[None]:
    """Mounted at `folder`; nothing when None. Raises RuntimeError to who is not root."""
    if megabytes is None:
        yield
        return
    if os.geteuid() != 0:
        raise RuntimeError("only root can mount the small disk that this fault fills")
    folder.mkdir(parents=True)
    size = f"size={megabytes}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """Not a byte is left meanwhile."""
    filler = folder / _FILLER
    try:
        with filler.open("wb", buffering=0) as stream:
            for chunk in (_AT_ONCE, b"0"):
                _fill(stream.fileno(), chunk)
        yield
    finally:
        filler.unlink(missing_ok=True)


def _fill(descriptor: int, chunk: bytes) -> None:
    try:
        while True:
            os.write(descriptor, chunk)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
