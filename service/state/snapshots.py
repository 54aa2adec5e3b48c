"""State snapshots: the histories of a partition up to an offset, on durable storage.

    URL/TOPIC@GROUP/PARTITION/00000000000000001234-5f3a9c01/part-00000.safetensors
                                                            part-00001.safetensors
                                                            seen.safetensors
                                                            manifest.json    last: none without it

A snapshot is full, or a delta: the users with an event since its base, whole. Both are read from
slabs in use without stopping their writer: what was appended since the offset is left out.
A snapshot that holds what was erased since is removed as soon as a later one, which does not
stand on it, takes its place. An erasure has an offset like any event: whatever snapshot is
restored, those from its offset on are read again.

Which event_ids came last (`service.state.duplicates`) lies beside the histories, whole each time.
What a snapshot does not hold is found elsewhere: what is held out, memory and vocabulary belong to
versions; popularity is counted again from the histories.
"""

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Annotated, Literal
from urllib.parse import quote

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import load, save

from service.domain import Int32s, Offset, Partition, Reached
from service.errors import DamagedSnapshotError, SnapshotCancelledError, TransientError
from service.state.duplicates import Arrays
from service.state.features import kind_codes
from service.state.histories import HistorySlab
from service.state.snapshot_parts import UserHistories, decode, encode
from service.storage.files import patiently
from service.storage.sealed import seal, unseal
from service.storage.store import Store

log = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
SEEN_FILE = "seen.safetensors"
# About 10 MB at 50 events a user.
_PART_USERS = 16_384
# Copied at once: some milliseconds, in which the interpreter may be held.
_COPY_USERS = 1_024
# A delta of more users than this share of its base would be read beside most of the base.
_FULL_FROM = 0.5


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class PartRecord(_Record):
    """What a part must be to be read."""

    sha256: Sha256
    users: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]


FolderName = Annotated[str, Field(pattern="^[0-9]{20}-[0-9a-f]{8}$")]


class SnapshotManifest(_Record):
    """What makes a snapshot exist."""

    format: Literal[1] = 1
    topic: str
    partition: Annotated[Partition, Field(ge=0)]
    offset: Annotated[Offset, Field(ge=0, description="The first that is not in it.")]
    answered: Annotated[Offset, Field(ge=0)] | None = Field(
        default=None, description="What is before it has its recommendation acknowledged."
    )
    base: FolderName | None = Field(description="None where it is full.")
    kinds: list[str] = Field(description="What the parts' kinds stand for.")
    features: list[str] = Field(description="Keys of the columns of codes.")
    parts: list[PartRecord]
    seen_sha256: Sha256 | None = Field(
        default=None, description="Of the event_ids that came last; None where none are kept."
    )
    instead_of: list[FolderName] = Field(
        default=[], description="Snapshots that hold users erased since: to be removed."
    )
    created_at: int = Field(description="Epoch milliseconds.")

    @property
    def users(self) -> int:
        return sum(part.users for part in self.parts)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One that has a manifest."""

    name: str
    manifest: SnapshotManifest

    @property
    def reached(self) -> tuple[Offset, Offset | None]:
        """As a `Reached`; of an earlier release's it is not known what is answered."""
        return self.manifest.offset, self.manifest.answered

    @property
    def base(self) -> str:
        """The name of the full snapshot that it stands on, maybe its own."""
        return self.manifest.base or self.name


def next_base(newest: Snapshot | None, base: Snapshot | None, touched: int) -> Snapshot | None:
    """On which snapshot the next one stands, if `touched` users have changed since `base`; None
    where it has to be full."""
    if newest is None or base is None or touched > _FULL_FROM * base.manifest.users:
        return None
    return base


def to_remove(snapshots: Sequence[Snapshot], keep: int) -> list[Snapshot]:
    """Of the snapshots of a partition, oldest first: all but the newest and what those stand on,
    and those with what was erased.

    Where several are kept they do not all stand on one: damaged, it would take them along. The
    newest that stands on another stays too."""
    gone = {name for one in snapshots for name in one.manifest.instead_of}
    whole = [one for one in snapshots if one.name not in gone and one.manifest.base not in gone]
    newest = whole[-keep:]
    bases = {one.base for one in newest}
    if keep > 1 and len(bases) == 1:
        newest += [one for one in whole if one.base not in bases][-1:]
    kept = {one.name for one in newest} | {one.base for one in newest}
    return [one for one in snapshots if one.name not in kept]


def holds_erased(part: UserHistories, erased: Mapping[int, Offset]) -> bool:
    """Whether there are events in it that stand before an erasure of their user."""
    users = np.flatnonzero(np.isin(part.user, np.fromiter(erased, np.int64, len(erased))))
    starts = np.cumsum(part.events) - part.events
    return any(
        part.events[one] and part.offset[starts[one]] < erased[int(part.user[one])]
        for one in users.tolist()
    )


class Snapshots:
    """Those of one topic and group. All methods block on the storage; one caller at a time."""

    def __init__(
        self,
        store: Store,
        topic: str,
        group: str,
        kinds: Sequence[str],
        features: Sequence[str],
        keep: int,
    ) -> None:
        """`kinds` are the settings' event kinds, `features` the keys of the slabs' codes. Each
        consumer `group` has its own: one writes while another reads on."""
        self._store = store
        self._topic = topic
        self._folder = f"{topic}@{quote(group, safe='')}"
        self._kinds = list(kinds)
        self._features = list(features)
        self._keep = keep
        # Those whose parts could not be read. Nothing more is to stand on them.
        self._damaged: set[tuple[Partition, str]] = set()
        # Those of a topic that was made anew since.
        self._outlived: set[tuple[Partition, str]] = set()

    def write(
        self,
        slab: HistorySlab,
        reached: Reached,
        cancel: threading.Event,
        seen: Arrays | None = None,
    ) -> Snapshot | None:
        """Write the histories up to what is applied, while the slab is in use; None where the
        newest snapshot has them. `seen`: the event_ids up to there, as they were dumped. Of what
        was erased nothing is left on the storage after it. Raises `SnapshotCancelledError`, and
        what the storage does."""
        partition, (applied, answered) = slab.address.partition, reached
        erased = {user: at for user, at in slab.erased.copy().items() if at < applied}
        intact = self._intact(partition)
        found = self._usable(intact, applied)
        held = self._holding(found, erased, cancel) if erased else []
        # Another owner's, who has come further.
        later = {
            one.name
            for one in intact
            if one.manifest.offset > applied and (partition, one.name) not in self._outlived
        }
        _heed(cancel)
        newest = found[-1] if found else None
        if newest is not None and newest.reached == reached and newest.name not in held:
            self._clean(partition, found, later, erased, slab)
            return None
        base = _base_of(newest, found) if newest else None
        base = None if base is not None and base.name in held else base
        slots = slab.since(base.manifest.offset if base else Offset(0))
        base = next_base(newest, base, len(slots))
        if base is None:
            slots = slab.since(Offset(0))
        name = f"{applied:020d}-{secrets.token_hex(4)}"
        try:
            parts = self._write_parts(slab, slots, applied, name, cancel)
            manifest = SnapshotManifest(
                topic=self._topic,
                partition=partition,
                offset=applied,
                answered=answered,
                base=base.name if base else None,
                kinds=self._kinds,
                features=self._features,
                parts=parts,
                seen_sha256=self._write_seen(partition, name, seen),
                instead_of=held,
                created_at=time.time_ns() // 1_000_000,
            )
            _heed(cancel)
            self._store.write(
                seal(manifest.model_dump_json().encode()), *self._at(partition), name, MANIFEST_FILE
            )
        except BaseException:
            self._store.remove(*self._at(partition), name)
            raise
        written = Snapshot(name, manifest)
        _heed(cancel)
        self._clean(partition, [*found, written], later, erased, slab)
        return written

    def _holding(
        self, found: Sequence[Snapshot], erased: Mapping[int, Offset], cancel: threading.Event
    ) -> list[str]:
        """Names of the snapshots that hold what was erased, or that cannot be read."""
        held = []
        for one in found:
            try:
                for part in self._read_parts(one):
                    _heed(cancel)
                    if holds_erased(part, erased):
                        held.append(one.name)
                        break
            except DamagedSnapshotError:
                held.append(one.name)
        return held

    def _clean(
        self,
        partition: Partition,
        found: Sequence[Snapshot],
        later: Set[str],
        erased: Mapping[int, Offset],
        slab: HistorySlab,
    ) -> None:
        """Remove old snapshots, and what is older than the newest and was not finished or has
        damaged parts; after an erasure all that cannot be read or is of a topic made anew, but not
        what is `later`."""
        old = [one.name for one in to_remove(found, self._keep)]
        intact, newest = later | {one.name for one in found}, found[-1].name
        old += [
            name
            for name in self._store.folders(*self._at(partition))
            if name not in intact
            and (erased or (name < newest and self._is_of_no_use(partition, name)))
        ]
        for name in old:
            self._store.remove(*self._at(partition), name)
            self._damaged.discard((partition, name))
        self._store.sweep(*self._at(partition))
        for user, at in erased.items():
            last = slab.erased.pop(user)
            if last != at:  # erased again since, by another thread
                slab.erased.setdefault(user, last)

    def _is_of_no_use(self, partition: Partition, name: str) -> bool:
        """Not finished, or with damaged parts. A manifest that cannot be read just now, or is of
        another release, may be of use to someone."""
        if (partition, name) in self._damaged:
            return True
        try:
            self._store.read(*self._at(partition), name, MANIFEST_FILE)
        except FileNotFoundError:
            return True
        except OSError:
            pass
        return False

    def restore(self, slab: HistorySlab, end: Offset) -> Snapshot | None:
        """Fill an empty slab from the newest snapshot that is intact; None where there is none.

        One past `end`, the partition's end, is of a topic that was made anew: it is passed over.
        Raises TransientError where the storage does not give what it has.
        """
        partition = slab.address.partition
        found = self._intact(partition)
        for snapshot in reversed(found):
            if snapshot.manifest.offset > end:
                log.error(
                    "snapshot %s of partition %d is past the partition's end at %d: passed over",
                    snapshot.name, partition, end,
                )  # fmt: skip
                self._outlived.add((partition, snapshot.name))
                continue
            try:
                parts = list(self._parts_of(snapshot, found))
            except DamagedSnapshotError as error:
                log.error("passed over snapshot %s of partition %d: %s",
                          snapshot.name, partition, error)  # fmt: skip
                self._damaged.add((partition, snapshot.name))
                continue
            for part in parts:
                slab.restore(part)
            slab.begin(snapshot.manifest.offset)
            return snapshot
        if self.damaged(partition):
            log.error(
                "no snapshot of partition %d is whole: histories begin with what Kafka has left",
                partition,
            )
        return None

    def damaged(self, partition: Partition) -> int:
        """How many of a partition's snapshots were found to have damaged parts and still stand."""
        return sum(one == partition for one, _ in self._damaged)

    def seen(self, snapshot: Snapshot) -> Arrays | None:
        """The event_ids that came last before it, None where it keeps none. Raises
        DamagedSnapshotError."""
        manifest = snapshot.manifest
        if manifest.seen_sha256 is None:
            return None
        return load(self._read_checked(snapshot, SEEN_FILE, manifest.seen_sha256))

    def forget(self, partition: Partition) -> None:
        """Remove all snapshots of a partition."""
        self._store.remove(*self._at(partition))

    def _write_parts(
        self,
        slab: HistorySlab,
        slots: Int32s,
        applied: Offset,
        name: str,
        cancel: threading.Event,
    ) -> list[PartRecord]:
        records: list[PartRecord] = []
        for start in range(0, len(slots), _PART_USERS):
            copies = []
            for at in range(start, min(start + _PART_USERS, len(slots)), _COPY_USERS):
                _heed(cancel)
                copies.append(slab.copied(slots[at : at + _COPY_USERS], applied))
            part = joined(copies)
            data = encode(part)
            place = len(records)
            partition = slab.address.partition
            self._store.write(data, *self._at(partition), name, _part_name(place))
            digest = hashlib.sha256(data).hexdigest()
            records.append(PartRecord(sha256=digest, users=len(part), bytes=len(data)))
        return records

    def _write_seen(self, partition: Partition, name: str, seen: Arrays | None) -> str | None:
        if seen is None:
            return None
        data = save(seen)
        self._store.write(data, *self._at(partition), name, SEEN_FILE)
        return hashlib.sha256(data).hexdigest()

    def _parts_of(self, snapshot: Snapshot, found: list[Snapshot]) -> Iterator[UserHistories]:
        """Most recent users first, none twice."""
        base = _base_of(snapshot, found)
        if base is None:
            raise DamagedSnapshotError(f"its base {snapshot.manifest.base} is gone")
        changed = np.zeros(0, np.int64)
        if base is not snapshot:
            for part in self._read_parts(snapshot):
                changed = np.concatenate([changed, part.user])
                yield self._translated(part, snapshot.manifest)
        for part in self._read_parts(base):
            rest = part.only(~np.isin(part.user, changed))
            yield self._translated(rest, base.manifest)

    def _read_parts(self, snapshot: Snapshot) -> Iterator[UserHistories]:
        for place, record in enumerate(snapshot.manifest.parts):
            yield decode(self._read_checked(snapshot, _part_name(place), record.sha256))

    def _read_checked(self, snapshot: Snapshot, file: str, sha256: str) -> bytes:
        try:
            data = self._read(snapshot.manifest.partition, snapshot.name, file)
        except FileNotFoundError:
            raise DamagedSnapshotError(f"{file} is gone") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DamagedSnapshotError(f"{file} is truncated or altered")
        return data

    def _translated(self, part: UserHistories, manifest: SnapshotManifest) -> UserHistories:
        """In the kinds and features of today's settings; events of unknown kinds are left out."""
        if manifest.features != self._features:
            codes = np.zeros((len(part.item), len(self._features)), np.int32)
            for place, feature in enumerate(self._features):
                if feature in manifest.features:
                    codes[:, place] = part.codes[:, manifest.features.index(feature)]
            part = replace(part, codes=codes)
        if manifest.kinds != self._kinds:
            code, is_known = kind_codes(manifest.kinds, self._kinds)
            part = part.without(~is_known[part.kind])
            part = replace(part, kind=code[part.kind])
            part = part.only(part.events > 0)
        return part

    def _usable(self, intact: Sequence[Snapshot], applied: Offset) -> list[Snapshot]:
        """Those on which a new one may stand, oldest first. What is past it is another owner's, or
        of a topic that was made anew."""
        return [
            one
            for one in intact
            if one.manifest.offset <= applied
            and (one.manifest.partition, one.name) not in self._damaged
        ]

    def _intact(self, partition: Partition) -> list[Snapshot]:
        """Those whose manifest can be read, oldest first."""
        found = []
        try:
            names = patiently(lambda: self._store.folders(*self._at(partition)))
        except OSError as error:
            raise TransientError(
                f"the snapshots of partition {partition} cannot be listed now ({error}): mend the "
                "storage"
            ) from error
        for name in names:
            try:
                found.append(Snapshot(name, self._manifest(partition, name)))
            except DamagedSnapshotError as error:
                log.warning("passed over snapshot %s of partition %d: %s", name, partition, error)
        return found

    def _manifest(self, partition: Partition, name: str) -> SnapshotManifest:
        try:
            data = self._read(partition, name, MANIFEST_FILE)
            manifest = SnapshotManifest.model_validate_json(unseal(data))
        except FileNotFoundError:
            raise DamagedSnapshotError("it has no manifest: it was not finished") from None
        except ValidationError as error:
            raise DamagedSnapshotError(
                f"the manifest was not written by this release of Headwater: {error.errors()[0]}"
            ) from None
        except ValueError as error:
            raise DamagedSnapshotError(f"the manifest cannot be used: {error}") from error
        if (manifest.topic, manifest.partition) != (self._topic, partition):
            raise DamagedSnapshotError(
                f"it belongs to partition {manifest.partition} of {manifest.topic!r}"
            )
        return manifest

    def _read(self, partition: Partition, name: str, file: str) -> bytes:
        """A file of a snapshot. One that the storage does not give is not damaged for it: that
        raises TransientError, and FileNotFoundError where there is none."""
        try:
            return patiently(lambda: self._store.read(*self._at(partition), name, file))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise TransientError(
                f"snapshot {name} of partition {partition}: {file} cannot be read now ({error}). "
                "Mend the storage; to go on without what is in that snapshot, remove its folder"
            ) from error

    def _at(self, partition: Partition) -> tuple[str, str]:
        return self._folder, f"{partition:05d}"


def _base_of(snapshot: Snapshot, found: Sequence[Snapshot]) -> Snapshot | None:
    """The full snapshot on which one stands, itself maybe; None where it is gone."""
    return next((one for one in found if one.name == snapshot.base), None)


def joined(parts: Sequence[UserHistories]) -> UserHistories:
    """One after the other; at least one."""
    return UserHistories(
        *(
            np.concatenate([getattr(part, column) for part in parts])
            for column in UserHistories.__dataclass_fields__
        )
    )


def _part_name(place: int) -> str:
    return f"part-{place:05d}.safetensors"


def _heed(cancel: threading.Event) -> None:
    """Before a slab is looked at, which may be gone, and before a snapshot counts: another owner
    may have written one since."""
    if cancel.is_set():
        raise SnapshotCancelledError
