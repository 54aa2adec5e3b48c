"""The lock on a registry: one service trains on it.

The worker of a second one would find versions that are not its own, start again from there,
and publish in its turn: each would restart the other for ever. Commands that only look at
versions, choose among them or roll back take no lock.
"""

import contextlib
import errno
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

from service.errors import ConfigurationError
from service.storage.files import make_folder, storage_faults

LOCK_FILE = "serving.lock"

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}


@contextlib.contextmanager
def only_service(root: Path) -> Iterator[None]:
    """Holds the registry under `root`; raises ConfigurationError while another service does.

    The kernel lets go when the process ends, however it ends, and the worker, which is
    no fork of it, does not inherit it: the next service need not wait for it. The file stays.
    """
    with storage_faults(root):
        make_folder(root)
        file = (root / LOCK_FILE).open("ab")  # for writing: NFS has it so
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"another `headwater serve` runs on {root}: stop it, or give this one a "
                "storage.root of its own"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logging.getLogger(__name__).warning(
                "%s cannot be locked (%s): nothing keeps a second service from it",
                root,
                error.strerror,
            )
        yield
