"""Reads a file of a version."""

import errno
from pathlib import Path

from service.errors import DamagedVersionError
from service.storage.files import patiently

# There is no such file; anything else may pass.
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}


def read_file(file: Path, max_bytes: int) -> bytes:
    """The file's first `max_bytes`. Raises `DamagedVersionError` if it is gone, and `OSError` where
    the storage does not give it for some seconds."""

    def read() -> bytes:
        with file.open("rb") as stream:
            return stream.read(max_bytes)

    try:
        return patiently(read)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        raise DamagedVersionError(f"{file.name} cannot be read: {error.strerror}") from error
