"""Files that outlive a crash: synced before they are renamed, their folder synced after.

A rename is atomic but not durable, and a sync of a file does not cover its name: after
a power cut either half alone can leave an empty file under the final name.
"""

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from service.errors import ConfigurationError, TransientError

# What a crash may leave behind starts with this; a version's folder never does.
TEMPORARY = "."

_FULL = {errno.ENOSPC, errno.EDQUOT}
# EEXIST: the root, or a folder above it, is a file.
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
# Of file servers and disks that were away for a moment, mostly.
_AWAY = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ENOTCONN,
}
_READ_AFTER_S = (0.1, 1.0, 5.0)  # before each further attempt
# File systems without hard links, or a file that has as many as it may.
_NO_LINK = {errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV}


Read = TypeVar("Read")


@contextlib.contextmanager
def storage_faults(root: Path) -> Iterator[None]:
    """Turns what the storage refuses into errors that route.

    A full disk and a file server that does not answer are `TransientError`, a missing permission
    is `ConfigurationError`. Any other `OSError` passes: nothing is known about what to do with it.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise TransientError(
                f"the disk is full under {root}: free some space or keep fewer versions"
            ) from error
        if error.errno in _DENIED:
            raise ConfigurationError(
                f"cannot use {error.filename or root}: {error.strerror}; "
                f"{root} must be a folder that Headwater may read and write"
            ) from error
        if error.errno in _AWAY:
            raise TransientError(
                f"cannot use {error.filename or root} now: {error.strerror}; "
                "see to its disk or file server"
            ) from error
        raise


def patiently(read: Callable[[], Read]) -> Read:
    """What `read` gives. Storage that is away is asked again for some seconds; what is missing, or
    may not be read, is not. Raises the last `OSError`."""
    for pause_s in _READ_AFTER_S:
        try:
            return read()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
            raise
        except OSError:
            time.sleep(pause_s)
    return read()


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; raises `OSError` where the storage does not say."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def temporary_beside(file: Path) -> Path:
    """A name in the same folder that nobody else takes, so that a rename stays one step."""
    return file.with_name(f"{TEMPORARY}{file.name}.{uuid.uuid4().hex}")


def temporaries_in(folder: Path) -> list[Path]:
    """What `temporary_beside` has named there and nobody has taken away: of a crash, or in use."""
    return list(folder.glob(f"{TEMPORARY}*"))


def write_synced(file: Path, data: bytes) -> None:
    """Writes a new file; on return its content is on the disk, its name not yet."""
    with file.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def replace_synced(file: Path, data: bytes) -> None:
    """Writes `file` so that a reader, or a crash, finds the old content or the new one."""
    temporary = temporary_beside(file)
    try:
        write_synced(temporary, data)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """The content of `source` under a new name, durable but for the name."""
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        write_synced(target, source.read_bytes())


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Makes `folder` and what is missing above it, durably; nothing when it is there."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)  # another process may have been faster
    sync_folder(folder.parent)


def remove_folder(folder: Path) -> None:
    """Removes `folder` in one step for readers; nothing when another process was faster."""
    temporary = temporary_beside(folder)
    try:
        folder.rename(temporary)
    except FileNotFoundError:
        return
    shutil.rmtree(temporary, ignore_errors=True)  # a rest is swept as a stale temporary
