"""The folders of the versions: how a number is claimed, listed and given up.

root/versions/00000012/   claimed; exists once manifest.json is in it
root/versions/.publish.*  being written, or left behind by a crash
root/versions/.00000003.* being removed
"""

import errno
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from service.domain import Version
from service.registry.manifest import MANIFEST_FILE, FileRecord, Manifest, encode
from service.storage.files import (
    exists,
    make_folder,
    patiently,
    remove_folder,
    replace_synced,
    sync_folder,
    temporaries_in,
    temporary_beside,
)

_NUMBER = re.compile("[0-9]{8}|[1-9][0-9]{8,}")  # as `path` writes it: one name a number
# A publisher still at work after an hour is taken for dead and its folder for litter.
_STALE_S = 3600.0

Fill = Callable[[Path], dict[str, FileRecord]]
Describe = Callable[[Version, dict[str, FileRecord]], Manifest]


class VersionFolders:
    """Lock-free between processes; raises the plain `OSError` of the file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, version: Version) -> Path:
        return self._folder / f"{version:08d}"

    def existing(self) -> list[Version]:
        """Versions with a manifest, ascending."""
        return patiently(lambda: [one for one in self._claimed() if self._exists(one)])

    def add(self, fill: Fill, describe: Describe) -> Manifest:
        """Makes one version, durable on return; nothing of it is left when this raises.

        `fill` writes the files into the folder it is given and says what they must be;
        `describe` makes the manifest once the number is known.
        """
        make_folder(self._folder)
        folder = temporary_beside(self._folder / "publish")
        folder.mkdir()
        try:
            files = fill(folder)
            sync_folder(folder)
            version, folder = self._claim(folder)
            sync_folder(self._folder)
            manifest = describe(version, files)
            replace_synced(folder / MANIFEST_FILE, encode(manifest))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return manifest

    def remove(self, version: Version) -> None:
        """In one step for readers; nothing when another process was faster."""
        remove_folder(self.path(version))

    def sweep(self) -> None:
        """Removes stale temporaries, and numbers that were claimed but never published."""
        claimed = self._claimed()
        # The newest number stays taken even if nothing was published under it.
        for number in claimed[:-1]:
            if not self._exists(number) and _is_stale(self.path(number)):
                self.remove(number)
        for entry in temporaries_in(self._folder):
            if _is_stale(entry):
                shutil.rmtree(entry, ignore_errors=True)

    def _exists(self, version: Version) -> bool:
        return exists(self.path(version) / MANIFEST_FILE)

    def _entries(self) -> list[Path]:
        return list(self._folder.iterdir()) if exists(self._folder) else []

    def newest_claimed(self) -> Version:
        """The highest number that is taken, whether or not there will be a version of it."""
        return self._claimed()[-1]

    def _claimed(self) -> list[Version]:
        """Every number that is taken, with a manifest or without; ascending."""
        names = (entry.name for entry in self._entries())
        return sorted(Version(int(name)) for name in names if _NUMBER.fullmatch(name))

    def _claim(self, folder: Path) -> tuple[Version, Path]:
        """Gives a finished folder the next free number."""
        while True:
            version = Version(max(self._claimed(), default=0) + 1)
            try:
                return version, folder.rename(self.path(version))
            except OSError as error:
                # Another publisher has taken this number between the look and the rename.
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise


def _is_stale(entry: Path) -> bool:
    try:
        # By the wall clock, as the file's time is: another process has written it.
        return time.time() - entry.stat().st_mtime > _STALE_S
    except FileNotFoundError:
        return False  # another process has removed it
