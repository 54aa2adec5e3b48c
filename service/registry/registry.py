"""The registry: versions in a folder, published whole or not at all.

    root/versions/00000012/weights.safetensors
                           frozen.safetensors    where something is; a link of the parent's file
                           vocabulary.json
                           trainer.safetensors
                           manifest.json         last: a version without one does not exist
    root/pin.json
    root/serving.lock

Several processes may publish, read and prune at once without a lock: a number is claimed
by the rename of a finished folder, and a version is removed by a rename away. Nothing in
a version changes once its manifest is there. Only services exclude each other, by `lock.py`.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from service.domain import Offsets, Version
from service.errors import ConfigurationError, DamagedVersionError, OvertakenError
from service.registry.artifact import (
    FROZEN_FILE,
    Artifact,
    read_artifact,
    read_frozen,
    verify_files,
    write_artifact,
)
from service.registry.folders import VersionFolders
from service.registry.manifest import (
    MANIFEST_FILE,
    FileRecord,
    GateSummary,
    Manifest,
    Origin,
    Taught,
    decode,
)
from service.registry.pin import read_pin, write_pin
from service.registry.policy import version_to_serve, versions_to_remove
from service.registry.reading import read_file
from service.settings import RegistrySettings, Settings
from service.storage.files import link_or_copy, storage_faults

log = logging.getLogger(__name__)

# Manifests are some kilobytes: a file past this is none, and is not read into memory.
_MAX_MANIFEST_BYTES = 64 * 1024 * 1024

_Files = dict[str, FileRecord]


class Registry:
    """The versions under one root; nothing is read or written before a method is called.

    One caller at a time: what was refused is remembered here, without a lock. Everything
    else is on disk. All methods block on the disk. A storage root that may not be read or
    written raises `ConfigurationError`, one that is away for some seconds `TransientError`: what
    cannot be read now is not damaged for it.
    """

    def __init__(self, root: Path, settings: RegistrySettings) -> None:
        self._root = root
        self._folders = VersionFolders(root / "versions")
        self._pin_file = root / "pin.json"
        self._keep_versions = settings.keep_versions
        self._refused: set[Version] = set()
        self._missing_pin: Version | None = None  # already logged
        # The weights that are never trained, as they were last read: most versions have the same.
        self._frozen: tuple[FileRecord | None, dict[str, Tensor]] = (None, {})

    @classmethod
    def of(cls, settings: Settings) -> "Registry":
        return cls(settings.storage.registry, settings.registry)

    def versions(self) -> list[Version]:
        """The numbers of the versions that exist, damaged or not; ascending."""
        with storage_faults(self._root):
            return self._folders.existing()

    def require(self, version: Version) -> None:
        """Raises `ConfigurationError`, with the versions that are kept, if there is no such."""
        versions = self.versions()
        if version not in versions:
            kept = ", ".join(map(str, versions)) or "none"
            raise ConfigurationError(f"there is no version {version}; kept: {kept}")

    def manifest(self, version: Version) -> Manifest:
        """Raises `DamagedVersionError` if it is missing, altered, or another version's."""
        file = self._folders.path(version) / MANIFEST_FILE
        try:
            with storage_faults(self._root):
                manifest = decode(read_file(file, _MAX_MANIFEST_BYTES))
        except DamagedVersionError as error:
            raise DamagedVersionError(f"version {version}: {error}") from error
        if manifest.version != version:
            raise DamagedVersionError(
                f"version {version}: its manifest belongs to version {manifest.version}"
            )
        return manifest

    def publish(
        self,
        artifact: Artifact,
        *,
        parent: Version | None,
        origin: Origin,
        trained_through: Offsets,
        model: Mapping[str, Any],
        items: int,
        gate: GateSummary | None,
        now_ms: int,
        topic: str | None = None,
        same_frozen: bool = False,
        taught: Sequence[Taught] = (),
        given_up: int = 0,
        after: Version | None = None,
    ) -> Manifest:
        """Publishes under the next number; the weights and their offsets appear in one step.

        `topic` is that of the offsets. With `same_frozen` the weights that are never trained are
        the parent's: its file of them is linked to, where it is still there.

        On return the version is durable. When this raises, or the process dies, there is no
        version: `NonFiniteError` for weights that are not finite, `TransientError` where the disk
        is full, or away (then there may be one, which overtakes the next attempt),
        `OvertakenError` where another version than `after` came before this one.
        """

        def describe(version: Version, files: _Files) -> Manifest:
            others = [one for one in self._folders.existing() if one < version]
            if after is not None and others[-1:] != [after]:
                raise OvertakenError(f"version {after} was not the newest any more")
            return Manifest(
                version=version,
                parent=parent,
                origin=origin,
                created_at=now_ms,
                trained_through=dict(trained_through),
                topic=topic,
                items=items,
                model=dict(model),
                gate=gate,
                taught=tuple(taught),
                given_up=given_up,
                files=files,
            )

        def fill(folder: Path) -> _Files:
            present: _Files = {}
            if same_frozen and parent is not None:
                present = self._link_frozen(parent, folder)
            return write_artifact(folder, artifact, present)

        with storage_faults(self._root):
            return self._folders.add(fill, describe)

    def load(self, version: Version, *, with_trainer: bool = False) -> tuple[Manifest, Artifact]:
        """Raises `DamagedVersionError`, also when the version is pruned meanwhile."""
        manifest = self.manifest(version)
        folder = self._folders.path(version)
        try:
            with storage_faults(self._root):
                frozen = None if with_trainer else self._read_frozen(folder, manifest.files)
                artifact = read_artifact(folder, manifest.files, frozen, with_trainer=with_trainer)
                return manifest, artifact
        except DamagedVersionError as error:
            raise DamagedVersionError(f"version {version}: {error}") from error

    def to_serve(self) -> Version | None:
        """The version that should serve by what is known so far; cheap enough to poll.

        Nothing is verified. None when no version exists or all were refused. Raises
        `ConfigurationError` if the pin is unreadable.
        """
        versions = self.versions()
        pin = self.pinned()
        # A number that an operator has removed by hand may be given out again.
        self._refused.intersection_update(versions)
        missing = pin if pin not in versions else None
        if missing is not None and missing != self._missing_pin:
            log.error("pinned version %d does not exist: serving the newest instead", missing)
        self._missing_pin = missing
        return version_to_serve(versions, self._refused, pin)

    def load_newest(self, *, with_trainer: bool = False) -> tuple[Manifest, Artifact] | None:
        """Loads the newest version, going back past damaged ones, each refused once.

        What training goes on from: a pin holds what is served, not what is learned. None when
        no version exists or, with an error in the log, when none is intact.
        """
        while (version := version_to_serve(self.versions(), self._refused, None)) is not None:
            try:
                return self.load(version, with_trainer=with_trainer)
            except DamagedVersionError as error:
                # A version that was pruned while it was read is not damaged, only gone.
                if version in self.versions():
                    self.refuse(version, str(error))
        if self._refused:
            log.error("no intact version is left under %s", self._root)
        return None

    def refuse(self, version: Version, reason: str) -> None:
        """Never offer `version` from this object again, say because its model fails to build."""
        if version not in self._refused:
            log.error("refused version %d: %s", version, reason)
            self._refused.add(version)

    def pin(self, version: Version | None) -> None:
        """Serve `version` whatever is newer, in every process; None unpins.

        Raises `ConfigurationError` if there is no such version and `DamagedVersionError` if
        its manifest cannot be read.
        """
        if version is None:
            return self._write_pin(None)
        self.require(version)
        self.manifest(version)
        try:
            before = self.pinned()
        except ConfigurationError:
            before = None
        self._write_pin(version)
        try:
            self.require(version)
        except ConfigurationError:  # pruned meanwhile
            self._write_pin(before)
            raise

    def _write_pin(self, version: Version | None) -> None:
        with storage_faults(self._root):
            write_pin(self._pin_file, version)

    def pinned(self) -> Version | None:
        """None when nothing is pinned. Raises `ConfigurationError` if the pin is unreadable."""
        with storage_faults(self._root):
            return read_pin(self._pin_file)

    def rollback(self, to: Version | None, now_ms: int) -> Manifest:
        """Publishes the files of `to` again as the newest version, with `to` as its parent.

        Its `trained_through` is the newest version's: what was learned since `to` is
        dropped and is not trained again. None goes back to the parent of the newest, and
        one further every time: a rollback counts as the version whose files it has. While
        there is a pin, that goes on serving.

        Raises `ConfigurationError` if there is no such version and `DamagedVersionError` if
        it is not intact.
        """
        target = self._before(self._newest_readable()) if to is None else to
        self.require(target)
        # In full, the trainer's state too: a damaged version must not become the newest.
        old, _ = self.load(target, with_trainer=True)

        def describe(version: Version, files: _Files) -> Manifest:
            newest = self._newest_readable()  # by now: to read the old one may have taken long
            return Manifest(
                version=version,
                parent=target,
                origin=Origin.ROLLBACK,
                created_at=now_ms,
                trained_through=newest.trained_through,
                topic=newest.topic,
                items=old.items,
                model=old.model,
                gate=None,
                files=files,
            )

        source = self._folders.path(target)
        with storage_faults(self._root):
            made = self._folders.add(lambda folder: _share(old.files, source, folder), describe)
            newest_claimed = self._folders.newest_claimed()
        # A trainer was as fast, and may not have seen this one: its version must not serve.
        return made if newest_claimed == made.version else self.rollback(target, now_ms)

    def prune(self) -> None:
        """Removes versions beyond the newest `keep_versions`, and what crashes left behind.

        The pinned and the newest intact version stay; to know the latter its files are read
        whenever there is something to remove. A reader of a version that is removed gets
        `DamagedVersionError`. While the pin cannot be read no version is removed: the one that
        it named may be any.
        """
        with storage_faults(self._root):
            self._folders.sweep()
            versions = self.versions()
            if len(versions) <= self._keep_versions:
                return
            newest_intact = self._newest_intact(versions)
            # Last, as reading all of a version's files may have taken long.
            try:
                pin = self.pinned()
            except ConfigurationError as error:
                log.error("no version is removed: %s", error)
                return
            for version in versions_to_remove(
                versions, keep=self._keep_versions, pin=pin, newest_intact=newest_intact
            ):
                self._folders.remove(version)

    def _read_frozen(self, folder: Path, files: _Files) -> dict[str, Tensor]:
        """Read once for all versions that have the same, which then share memory too: servables
        do not change theirs. A trainer may, and reads its own."""
        record = files.get(FROZEN_FILE)
        if record != self._frozen[0]:
            self._frozen = (record, read_frozen(folder, files))
        return self._frozen[1]

    def _link_frozen(self, parent: Version, folder: Path) -> _Files:
        """The parent's file under its name in `folder`; nothing where it is gone."""
        try:
            files = {FROZEN_FILE: self.manifest(parent).files[FROZEN_FILE]}
            return _share(files, self._folders.path(parent), folder)
        except (DamagedVersionError, KeyError):
            return {}

    def _newest_readable(self) -> Manifest:
        for version in reversed(self.versions()):
            try:
                return self.manifest(version)
            except DamagedVersionError as error:
                log.warning("passed over %s", error)
        raise ConfigurationError(f"there is no version under {self._root} to go back from")

    def _before(self, manifest: Manifest) -> Version:
        while manifest.origin is Origin.ROLLBACK and manifest.parent is not None:
            self.require(manifest.parent)
            manifest = self.manifest(manifest.parent)
        if manifest.parent is None:
            raise ConfigurationError(
                f"version {manifest.version} is the first: there is nothing to go back to"
            )
        return manifest.parent

    def _newest_intact(self, versions: Sequence[Version]) -> Version | None:
        for version in reversed(versions):
            try:
                verify_files(self._folders.path(version), self.manifest(version).files)
            except DamagedVersionError:
                continue  # refused, with the reason logged, by whoever loads it
            return version
        return None


def _share(files: _Files, source: Path, folder: Path) -> _Files:
    try:
        for name in files:
            link_or_copy(source / name, folder / name)
    except FileNotFoundError as error:
        raise DamagedVersionError(f"version {int(source.name)} was pruned meanwhile") from error
    return files
