"""Histories: one columnar slab in shared memory for each input partition.

The scoring thread of the main process is the only writer; the trainer worker attaches by
name and reads without a copy or a lock. A user has a slot, and in it a ring of the last
events: the event with ordinal n stands at n modulo the ring's width. A reader learns from
`count` which ordinals are still there and asks again after copying, so that a row which
was overwritten under its hands is found out and left out.

    used   [1]             slots that were ever in use
    user   [users]         user key, NO_KEY where a slot changes hands or was erased
    count  [users]         events ever appended
    item   [users, width]  item keys
    time   [users, width]  epoch ms
    offset [users, width]  Kafka offsets in the partition
    codes  [users, width, features]  what `state/features.py` keeps of the context
    kind   [users, width]  index in the settings' kinds
"""

import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np

from service.domain import NO_KEY, Bools, Int32s, Int64s, Offset, Partition, Uint8s, no_codes
from service.errors import ConfigurationError
from service.settings import HistorySettings, Settings
from service.state.features import gap_codes, gap_place, keys_of
from service.state.snapshot_parts import UserHistories

# Room beyond the remembered events, so that the histories at every event of a scored batch can
# be read after the whole batch was appended. A user with more events in one batch splits it.
SLACK = 64

# The ordinal of an event whose user had a history and has none any more.
NOWHERE = -1

# Looked through at once, so that a look at all users takes little memory.
_LOOK_USERS = 16_384

_SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps it


@dataclass(frozen=True, slots=True)
class SlabAddress:
    """What a reader in another process needs to attach."""

    partition: Partition
    name: str
    users: int
    width: int
    features: tuple[str, ...] = ()  # keys of the columns of codes
    negative: tuple[int, ...] = ()  # kinds by which users turn an item down


@dataclass(frozen=True, slots=True)
class Windows:
    """Events before some ordinals, one row a user, oldest first, padded at the end."""

    item: Int64s  # [rows, length], NO_KEY where padded
    time: Int64s  # [rows, length], 0 where padded
    offset: Int64s  # [rows, length], -1 where padded
    codes: Int32s  # [rows, length, features], 0 where padded
    kind: Uint8s  # [rows, length], of no meaning where padded
    intact: Bools  # [rows], False where a row was overwritten while it was read

    def without(self, kinds: Sequence[int]) -> "Windows":
        """The same without events of these kinds; what follows them moves up."""
        if not kinds:
            return self
        gone = np.isin(self.kind, kinds) | (self.item == NO_KEY)
        order = np.argsort(gone, axis=1, kind="stable")
        gone = np.take_along_axis(gone, order, axis=1)
        at = np.arange(len(order))[:, None], order
        item, time, offset = self.item[at], self.time[at], self.offset[at]
        codes, kind = self.codes[at], self.kind[at]
        item[gone], time[gone], offset[gone], codes[gone] = NO_KEY, 0, -1, 0
        return Windows(item, time, offset, codes, kind, self.intact)


@dataclass(frozen=True, slots=True)
class _Columns:
    used: Int64s  # [1]
    user: Int64s  # [users]
    count: Int64s  # [users]
    item: Int64s  # [users, width]
    time: Int64s  # [users, width]
    offset: Int64s  # [users, width]
    codes: Int32s  # [users, width, features]
    kind: Uint8s  # [users, width]


class HistorySlab:
    """The histories of one partition, written by one thread."""

    def __init__(
        self, address: SlabAddress, memory: shared_memory.SharedMemory, *, owner: bool
    ) -> None:
        """Use `create` or `attach`."""
        self.address = address
        self.evicted = 0  # longest idle users that made room for others
        self._memory = memory
        self._owner = owner
        self._columns: _Columns | None = _map(address, memory)
        self._gap = gap_place(address.features)
        # The writer's own index, longest idle first (a dict keeps the order of insertion).
        self._slots: dict[int, int] = {}
        self._freed: deque[int] = deque()  # slots of erased users, the first to be freed foremost
        # Events before it are in the histories that were restored, or kept from an assignment to
        # the next; 0 where they began empty.
        self.applied = Offset(0)
        # Offsets of erasures by user key, until no snapshot holds what they erase.
        self.erased: dict[int, Offset] = {}

    @classmethod
    def create(
        cls,
        partition: Partition,
        settings: HistorySettings,
        features: Sequence[str] = (),
        negative: Sequence[int] = (),
    ) -> "HistorySlab":
        """Make an empty slab with a column for each of the `features`, in which events of a
        `negative` kind are remembered but stand in no window. Raises ConfigurationError where
        shared memory is too small."""
        require_room(settings, slabs=1, features=len(features))
        width = settings.events + SLACK
        size = slab_bytes(settings, len(features))
        memory = shared_memory.SharedMemory(create=True, size=size)
        address = SlabAddress(
            partition, memory.name, settings.users, width, tuple(features), tuple(negative)
        )
        return cls(address, memory, owner=True)

    @classmethod
    def of(cls, partition: Partition, settings: Settings) -> "HistorySlab":
        """An empty slab as the settings want it; raises as `create` does."""
        return cls.create(
            partition,
            settings.history,
            keys_of(settings.model.context),
            settings.events.codes(settings.events.negative),
        )

    @classmethod
    def attach(cls, address: SlabAddress) -> "HistorySlab":
        """Open another process's slab for reading. Raises FileNotFoundError when it is gone."""
        return cls(address, shared_memory.SharedMemory(name=address.name), owner=False)

    def close(self) -> None:
        """Let go of the memory; where this process created it, also remove it."""
        self._columns = None  # a buffer that arrays point into refuses to close
        self._memory.close()
        if self._owner:
            self._memory.unlink()

    @property
    def used(self) -> int:
        """Slots that were ever in use, 0 .. used - 1; some may be of erased users, and empty."""
        return int(self._open.used[0])

    @property
    def known(self) -> int:
        """Users that have a slot."""
        return len(self._slots)

    @property
    def _open(self) -> _Columns:
        if self._columns is None:
            raise ValueError(f"the slab of partition {self.address.partition} is closed")
        return self._columns

    def append(
        self,
        user: Int64s,
        item: Int64s,
        kind: Uint8s,
        time: Int64s,
        offset: Int64s,
        keep: Bools | None = None,
        codes: Int32s | None = None,
    ) -> tuple[Int32s, Int64s]:
        """Add events in order; give each one's slot and its ordinal in the user's history.

        One that is not to `keep` (None: all are) only finds its place: its ordinal is that of the
        event which comes next. So does one that was in the histories when they were restored; its
        ordinal is the one that it has, or the oldest that is remembered if it is forgotten. Where
        its whole user is, evicted or erased since, nobody makes room: its slot is any, and its
        ordinal NOWHERE, before which there is nothing.
        Without `codes` [events, features] nothing is known of the context.

        No user may have more than SLACK events in one call, or `windows` at the first of
        them would no longer be whole.
        """
        columns, slots = self._open, self._slots
        slot = np.empty(len(user), np.int32)
        ordinal = np.empty(len(user), np.int64)
        counts: dict[int, int] = {}  # of the slots that this call touches
        kept = np.ones(len(user), np.bool_) if keep is None else keep
        restored = offset < self.applied
        if restored.any():
            kept = kept & ~restored
        for i, (key, stays, is_old) in enumerate(
            zip(user.tolist(), kept.tolist(), restored.tolist(), strict=True)
        ):
            place = slots.pop(key, None)
            if place is None:
                if is_old:
                    slot[i], ordinal[i] = 0, NOWHERE
                    continue
                place = self._take_slot(key)
                counts[place] = 0
            slots[key] = place  # now the last to be evicted
            seen = counts.get(place)
            if seen is None:
                seen = int(columns.count[place])
            slot[i], ordinal[i] = place, seen
            counts[place] = seen + stays
        if restored.any():
            found = np.flatnonzero(restored & (ordinal != NOWHERE))
            ordinal[found] = self._found(slot[found], offset[found])
        at = slot[kept], ordinal[kept] % self.address.width
        columns.item[at] = item[kept]
        columns.time[at] = time[kept]
        columns.offset[at] = offset[kept]
        columns.kind[at] = kind[kept]
        if self.address.features:
            columns.codes[at] = 0 if codes is None else codes[kept]
        if self._gap is not None:
            before = columns.time[slot[kept], (ordinal[kept] - 1) % self.address.width]
            columns.codes[(*at, self._gap)] = gap_codes(time[kept], before, ordinal[kept] == 0)
        # Last: a reader trusts an ordinal only below the count.
        touched = np.fromiter(counts, np.int64, len(counts))
        columns.count[touched] = np.fromiter(counts.values(), np.int64, len(counts))
        return slot, ordinal

    def _found(self, slot: Int32s, offset: Int64s) -> Int64s:
        """How many events each slot ever had before an offset, as far as they are remembered."""
        columns, width = self._open, self.address.width
        count = columns.count[slot]
        is_there = np.arange(width) < count[:, None]
        later = (columns.offset[slot] >= offset[:, None]) & is_there
        found: Int64s = count - later.sum(axis=1)
        return found

    def _take_slot(self, key: int) -> int:
        """A free slot, or that of the longest idle user, whose history is forgotten.

        Slots of erased users come last: whoever still reads one finds it empty."""
        columns = self._open
        if self.used < self.address.users:
            place = self.used
            columns.used[0] = place + 1
        elif self._freed:
            place = self._freed.popleft()
        else:
            place = self._slots.pop(next(iter(self._slots)))
            columns.user[place] = NO_KEY
            self.evicted += 1
        columns.count[place] = 0
        columns.user[place] = key
        return place

    def erase(self, user: int, before: Offset) -> None:
        """Forget a user whose history began before an offset; one that began later stays.

        Readers see as at an eviction that the slot changes hands: first the key goes, then the
        count, then the events.
        """
        self.erased[user] = before
        place = self._slots.get(user)
        if place is None:
            return
        columns, width = self._open, self.address.width
        count = int(columns.count[place])
        if count and columns.offset[place, max(count - width, 0) % width] >= before:
            return
        del self._slots[user]
        columns.user[place] = NO_KEY
        columns.count[place] = 0
        for column in (columns.item, columns.time, columns.offset, columns.codes, columns.kind):
            column[place] = 0
        self._freed.append(place)

    def restore(self, histories: UserHistories) -> None:
        """Give new slots to users that have none yet, as far as there is room. Whoever restores
        then says with `begin` up to which offset."""
        columns, start = self._open, len(self._slots)
        histories = histories.only(np.arange(len(histories)) < self.address.users - start)
        remembered = self.address.width - SLACK
        place = _places(histories.events)
        forgotten = place < np.repeat(histories.events - remembered, histories.events)
        if forgotten.any():
            histories = histories.without(forgotten)
        end = start + len(histories)
        slot = np.repeat(np.arange(start, end), histories.events)
        at = slot * self.address.width + _places(histories.events)
        for column, values in (
            (columns.item, histories.item),
            (columns.time, histories.time),
            (columns.offset, histories.offset),
            (columns.kind, histories.kind),
        ):
            column.reshape(-1)[at] = values  # a view
        if self.address.features:
            columns.codes.reshape(-1, len(self.address.features))[at] = histories.codes
        columns.count[start:end] = histories.events
        columns.user[start:end] = histories.user
        columns.used[0] = end
        self._slots.update(zip(histories.user.tolist(), range(start, end), strict=True))

    def begin(self, applied: Offset) -> None:
        """All events before `applied` are in what was restored."""
        self.applied = applied
        newest = self.newest(np.arange(self.used, dtype=np.int32))
        users = self._open.user
        # The order in which they are evicted.
        self._slots = {int(users[slot]): slot for slot in newest.argsort(kind="stable").tolist()}

    def latest(self, offsets: int) -> Int64s:
        """Item keys of the remembered events of the last so many offsets, oldest first, but for
        those that turned an item down."""
        columns, used = self._open, self.used
        start, found = max(int(self.applied) - offsets, 0), []
        for at in range(0, used, _LOOK_USERS):
            rows = slice(at, min(at + _LOOK_USERS, used))
            there = np.arange(self.address.width) < columns.count[rows, None]
            there &= columns.offset[rows] >= start
            there &= ~np.isin(columns.kind[rows], self.address.negative)
            found.append((columns.offset[rows][there], columns.item[rows][there]))
        if not found:
            return np.zeros(0, np.int64)
        offset, item = (np.concatenate(parts) for parts in zip(*found, strict=True))
        latest: Int64s = item[np.argsort(offset)]
        return latest

    def since(self, offset: Offset) -> Int32s:
        """Slots with an event at or after an offset, most recent first; another thread may call."""
        slot = np.arange(self.used, dtype=np.int32)
        newest = np.where(self.counts(slot) > 0, self.newest(slot), -1)
        order = np.argsort(-newest, kind="stable")
        return slot[order[: int((newest >= offset).sum())]]

    def copied(self, slot: Int32s, applied: Offset) -> UserHistories:
        """The remembered events before an offset of some slots; another thread may call.

        Users without any are left out. Of users with more than SLACK events since then the oldest
        may be missing: they are forgotten once these events are applied again.
        """
        columns, width = self._open, self.address.width
        user, before = columns.user[slot], columns.count[slot]
        start = np.maximum(before - width, 0)
        ordinal = start[:, None] + np.arange(width)  # [rows, width]
        at = slot[:, None], ordinal % width
        item, time, offset = columns.item[at], columns.time[at], columns.offset[at]
        kind, codes = columns.kind[at], columns.codes[at]
        # As in `all_windows`: an append meanwhile has written over the oldest. A slot that changed
        # hands has nothing from before `applied` any more; one that was erased has no items.
        after = columns.count[slot]
        intact = (columns.user[slot] == user) & (after >= before)
        whole = ordinal >= (after - width)[:, None]
        taken = whole & (ordinal < before[:, None]) & (offset < applied) & intact[:, None]
        taken &= item != NO_KEY
        surplus = taken.sum(axis=1) - (width - SLACK)
        taken &= np.cumsum(taken, axis=1) > surplus[:, None]
        histories = UserHistories(
            user, taken.sum(axis=1), item[taken], time[taken], offset[taken], kind[taken],
            codes[taken],
        )  # fmt: skip
        return histories.only(histories.events > 0)

    def windows(self, slot: Int32s, end: Int64s, length: int) -> Windows:
        """Of the up to `length` events before ordinal `end` in each slot, as far as still kept,
        those by which nothing was turned down."""
        return self.all_windows(slot, end, length).without(self.address.negative)

    def all_windows(self, slot: Int32s, end: Int64s, length: int) -> Windows:
        """As `windows`, with events of negative kinds in their places."""
        columns, width = self._open, self.address.width
        before = columns.count[slot]
        start = np.maximum(end - length, 0)
        start = np.maximum(start, before - width)
        ordinal = start[:, None] + np.arange(length)  # [rows, length]
        ring = ordinal % width
        item = columns.item[slot[:, None], ring]
        time = columns.time[slot[:, None], ring]
        offset = columns.offset[slot[:, None], ring]
        kind = columns.kind[slot[:, None], ring]
        codes = no_codes(len(slot), length)
        if self.address.features:  # to take nothing takes time too
            codes = columns.codes[slot[:, None], ring]
        missing = ordinal >= end[:, None]
        item[missing] = NO_KEY
        time[missing] = 0
        offset[missing] = -1
        if self.address.features:
            codes[missing] = 0
        after = columns.count[slot]
        # An append may have written `after - before` places of the ring meanwhile, the oldest
        # first; an eviction sets the count back, and before the count has grown to `end` again
        # the ring still holds what was forgotten.
        intact = (end <= before) & (after >= before) & (after - width <= start)
        return Windows(item, time, offset, codes, kind, intact)

    def remembered(self, slot: Int32s, end: Int64s) -> tuple[Int64s, Int64s, Bools]:
        """The remembered items from before ordinal `end` in each slot, their ordinals, and which of
        these events turned them down.

        [rows, width] each, in no order; NO_KEY and -1 where there is none. What the slack still
        keeps is left out, so that the answer does not depend on how events were batched.
        """
        columns, width = self._open, self.address.width
        newest = columns.count[slot][:, None] - 1  # [rows, 1]
        ordinal = newest - (newest - np.arange(width)) % width  # [rows, width]
        item = columns.item[slot]
        oldest = np.maximum(end - (width - SLACK), 0)[:, None]
        missing = (ordinal < oldest) | (ordinal >= end[:, None])
        item[missing] = NO_KEY
        ordinal[missing] = -1
        negative = self.address.negative
        if not negative:
            return item, ordinal, np.zeros(item.shape, np.bool_)
        return item, ordinal, np.isin(columns.kind[slot], negative) & ~missing

    def codes(self, slot: Int32s, ordinal: Int64s) -> Int32s:
        """The codes of events that were just appended, none of them NOWHERE. [events, features]"""
        return self._open.codes[slot, ordinal % self.address.width]

    def users(self, slot: Int32s) -> Int64s:
        """The user key at each slot."""
        return self._open.user[slot]

    def newest(self, slot: Int32s) -> Int64s:
        """The offset of the last event at each slot; of no meaning where there is none."""
        columns = self._open
        return columns.offset[slot, (columns.count[slot] - 1) % self.address.width]

    def counts(self, slot: Int32s) -> Int64s:
        """Events ever appended at each slot."""
        return self._open.count[slot]


def _places(counts: Int64s) -> Int64s:
    """0 .. n - 1 for each of the counts n, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(counts.sum()) - np.repeat(ends - counts, counts)


def require_room(settings: HistorySettings, slabs: int, features: int, beside: int = 0) -> None:
    """Raises ConfigurationError where shared memory has no room for so many new slabs, and so many
    bytes `beside` them.

    Asked for all of them at once, before the first is made: Linux reserves what it does not
    have, and writing to a page that cannot be had kills the process with SIGBUS, much later.
    """
    size = slabs * slab_bytes(settings, features) + beside
    if _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free < size:
        raise ConfigurationError(
            f"cannot reserve {size / 1e6:.0f} MB of shared memory for histories: lower "
            "history.users or history.events (in a backtest, which has a place for each user, "
            "--events), or enlarge /dev/shm (Docker: --shm-size)"
        )


def slab_bytes(settings: HistorySettings, features: int = 0) -> int:
    """What one partition's slab takes of shared memory."""
    width = settings.events + SLACK
    return 8 + settings.users * (8 + 8 + width * (8 + 8 + 8 + 4 * features + 1))


def _map(address: SlabAddress, memory: shared_memory.SharedMemory) -> _Columns:
    users, width = address.users, address.width
    buffer, start = memory.buf, 0

    def int64s(*shape: int) -> Int64s:
        nonlocal start
        column: Int64s = np.ndarray(shape, np.int64, buffer, start)
        start += column.nbytes
        return column

    used, user, count = int64s(1), int64s(users), int64s(users)
    item, time, offset = (int64s(users, width) for _ in range(3))
    codes: Int32s = np.ndarray((users, width, len(address.features)), np.int32, buffer, start)
    kind: Uint8s = np.ndarray((users, width), np.uint8, buffer, start + codes.nbytes)
    return _Columns(used, user, count, item, time, offset, codes, kind)
