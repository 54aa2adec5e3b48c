"""Reads a file of a version."""

import errno
from pathlib import Path

from service.errors import DamagedVersionError

# The file is not there or the disk cannot give it back; anything else may pass.
_UNREADABLE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ESTALE}


def read_file(file: Path, max_bytes: int) -> bytes:
    """The file's first `max_bytes`. Raises `DamagedVersionError` if it is gone or unreadable."""
    try:
        with file.open("rb") as stream:
            return stream.read(max_bytes)
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise
        raise DamagedVersionError(f"{file.name} cannot be read: {error.strerror}") from error
