"""Files in folders behind a URL, through fsspec: a local path, or any object store it knows.

A file is written whole or not at all: on a local disk by a synced rename, in an object store
because that is how it puts objects.
"""

import contextlib
import shutil
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from service.errors import ConfigurationError
from service.storage.files import (
    make_folder,
    remove_folder,
    replace_synced,
    storage_faults,
    sync_folder,
    temporaries_in,
)


class Store:
    """One folder and what lies below it. All methods block.

    What the storage refuses raises OSError, or what its client raises; on a local disk
    `TransientError` where it is full and `ConfigurationError` where it is forbidden.
    """

    def __init__(self, url: str) -> None:
        """Raises ConfigurationError for a URL that nothing installed can read."""
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(f"cannot use {url} as storage: {error}") from error
        self._local = isinstance(self._files, LocalFileSystem)

    def folders(self, *under: str) -> list[str]:
        """Names of the folders below a folder, sorted; none where it does not exist."""
        try:
            found = self._files.ls(self._path(*under), detail=True, refresh=True)
        except FileNotFoundError:
            return []
        # A crash may have left a temporary beside them.
        names = (one["name"].rstrip("/").rsplit("/", 1)[-1] for one in _directories(found))
        return sorted(name for name in names if not name.startswith("."))

    def read(self, *name: str) -> bytes:
        """Raises FileNotFoundError."""
        data: bytes = self._files.cat_file(self._path(*name))
        return data

    def write(self, data: bytes, *name: str) -> None:
        """Durable on return."""
        path = self._path(*name)
        if self._local:
            with storage_faults(Path(self._root)):
                file = Path(path)
                make_folder(file.parent)
                replace_synced(file, data)
        else:
            self._files.pipe_file(path, data)

    def remove(self, *folder: str) -> None:
        """A folder and all in it; nothing where it is gone."""
        path = self._path(*folder)
        if self._local:
            remove_folder(Path(path))
            if Path(path).parent.is_dir():
                sync_folder(Path(path).parent)
            return
        with contextlib.suppress(FileNotFoundError):
            self._files.rm(path, recursive=True)

    def sweep(self, *under: str) -> None:
        """Remove what a crash has left half removed below a folder of a local disk."""
        if self._local:
            for path in temporaries_in(Path(self._path(*under))):
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, *names: str) -> str:
        return "/".join((self._root.rstrip("/"), *names))


def _directories(found: list[dict[str, str]]) -> list[dict[str, str]]:
    return [one for one in found if one["type"] == "directory"]
