"""Training sequences: from a micro-batch and the histories before it.

A sequence is one user's events in order, at most `length` of them, padded at the end. Every
event of a micro-batch is the target of exactly one place in one sequence; what stands before
it is context.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from service.domain import NO_KEY, Bools, Float32s, Int32s, Int64s, MicroBatch, Partition, no_codes
from service.state.histories import HistorySlab

Slabs = Mapping[Partition, HistorySlab]

MASKED = -(1 << 63)  # in place of the key of an item that is blotted out in a copy


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some of a user's events in order, without padding."""

    item: Int64s  # [events]
    codes: Int32s  # [events, features]
    weight: Float32s  # [events] how much each counts as a target; below 0: it was turned down
    user: int = NO_KEY  # whose; nobody's where it is not to be kept

    def __len__(self) -> int:
        return len(self.item)

    def part(self, start: int, end: int) -> "Stretch":
        return self.where(slice(start, end))

    def where(self, kept: Bools | slice) -> "Stretch":
        return Stretch(self.item[kept], self.codes[kept], self.weight[kept], self.user)

    def followed_by(self, later: "Stretch") -> "Stretch":
        return Stretch(
            np.concatenate([self.item, later.item]),
            np.concatenate([self.codes, later.codes]),
            np.concatenate([self.weight, later.weight]),
            self.user,
        )


@dataclass(frozen=True, slots=True)
class Sequences:
    """Rows of item keys, and which of them are targets. The first place is never one, and one that
    was turned down has the last place: nothing is foretold from it."""

    item: Int64s  # [rows, length], NO_KEY where padded
    target: Bools  # [rows, length]
    codes: Int32s  # [rows, length, features]
    weight: Float32s  # [rows, length], of targets
    user: Int64s  # [rows] user keys, NO_KEY where nobody is named

    def __len__(self) -> int:
        return len(self.item)

    def take(self, rows: Int64s) -> "Sequences":
        return Sequences(
            self.item[rows],
            self.target[rows],
            self.codes[rows],
            self.weight[rows],
            self.user[rows],
        )

    def without(self, users: Int64s) -> "Sequences":
        """Without those of these users."""
        return self.take(np.flatnonzero(~np.isin(self.user, users)))

    def stretch(self, row: int, start: int, end: int) -> Stretch:
        """Some of the events of a row."""
        return Stretch(
            self.item[row, start:end], self.codes[row, start:end], self.weight[row, start:end]
        )


def empty_sequences(length: int) -> Sequences:
    none = np.zeros((0, length), np.int64)
    return Sequences(
        none,
        none.astype(np.bool_),
        no_codes(0, length),
        none.astype(np.float32),
        np.zeros(0, np.int64),
    )


def join(parts: list[Sequences], length: int) -> Sequences:
    parts = [part for part in parts if len(part)]
    if not parts:
        return empty_sequences(length)
    return Sequences(
        np.concatenate([part.item for part in parts]),
        np.concatenate([part.target for part in parts]),
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.weight for part in parts]),
        np.concatenate([part.user for part in parts]),
    )


def from_lists(rows: list[tuple[Stretch, int]], length: int) -> Sequences:
    """Sequences from (events, number of places at the end that are targets). What has no weight is
    no target."""
    features = rows[0][0].codes.shape[1] if rows else 0
    item = np.zeros((len(rows), length), np.int64)
    target = np.zeros((len(rows), length), np.bool_)
    codes = np.zeros((len(rows), length, features), np.int32)
    weight = np.zeros((len(rows), length), np.float32)
    for i, (events, targets) in enumerate(rows):
        end = len(events)
        item[i, :end], codes[i, :end], weight[i, :end] = events.item, events.codes, events.weight
        target[i, max(end - targets, 1) : end] = True
    user = np.array([events.user for events, _ in rows], np.int64)
    return Sequences(item, target & (weight != 0), codes, weight, user)


def compacted(kept: Bools, item: Int64s, codes: Int32s, weight: Float32s) -> Sequences:
    """Sequences of what is `kept` [rows, length] of rows of nobody's events, all but the first of
    which are targets. Rows with fewer than two are left out."""
    order = np.argsort(~kept, axis=1, kind="stable")
    weight = np.take_along_axis(np.where(kept, weight, np.float32(0)), order, axis=1)
    target = weight != 0
    target[:, 0] = False
    sequences = Sequences(
        np.take_along_axis(np.where(kept, item, NO_KEY), order, axis=1),
        target,
        np.take_along_axis(np.where(kept[..., None], codes, 0), order[..., None], axis=1),
        weight,
        np.full(len(item), NO_KEY),
    )
    return sequences.take(np.flatnonzero(kept.sum(axis=1) > 1))


def contexts(
    batch: MicroBatch, slabs: Slabs, end: Int64s, length: int
) -> tuple[Int64s, Int64s, Int32s]:
    """Items, times and codes of the events before ordinal `end` of each event's user.

    [rows, length] each, codes [rows, length, features]; NO_KEY and 0 where there is nothing: no
    history, or one that the writer has overwritten since. A user who was forgotten and came back
    to the same slot has other events at the same ordinals, all of them after the event: none is
    its context.
    """
    item = np.zeros((len(batch), length), np.int64)
    time = np.zeros((len(batch), length), np.int64)
    codes = np.zeros((len(batch), length, batch.codes.shape[1]), np.int32)
    for partition in np.unique(batch.partition).tolist():
        slab = slabs.get(Partition(partition))
        if slab is None:
            continue
        here = np.flatnonzero(batch.partition == partition)
        slot = batch.slot[here]
        windows = slab.windows(slot, end[here], length)
        earlier = windows.offset < batch.offset[here, None]  # [rows, length]
        usable = windows.intact & (slab.users(slot) == batch.user[here]) & earlier.all(axis=1)
        item[here[usable]] = windows.item[usable]
        time[here[usable]] = windows.time[usable]
        codes[here[usable]] = windows.codes[usable]
    return item, time, codes


def windows_over(context: Stretch, own: Stretch, length: int) -> list[tuple[Stretch, int]]:
    """(events, targets at the end) windows in which each of `own` is a target once.

    `context` comes before `own`. A user with many events gets several windows, each of which
    reaches half a window back into what the one before it taught.
    """
    events = context.followed_by(own)
    stride = max(length // 2, 1)
    rows = []
    end = len(events)
    while end > len(context):
        start = max(end - length, 0)
        targets = min(stride, end - len(context)) if start else end - len(context)
        rows.append((events.part(start, end), targets))
        end -= targets
    return rows


def strip(item: Int64s) -> Int64s:
    """A padded row without its padding."""
    known: Int64s = item[item != NO_KEY]
    return known


def stretch(item: Int64s, codes: Int32s, user: int = NO_KEY) -> Stretch:
    """A padded row [length] and its codes [length, features] without the padding, as context: no
    target of its own."""
    known = item != NO_KEY
    return Stretch(item[known], codes[known], np.zeros(int(known.sum()), np.float32), user)


def pairs(rows: Int64s, ones: Bools, others: Bools, apart: int) -> tuple[Int64s, Int64s]:
    """What stands together in sequences, up to `apart` places from each other, in either order.

    rows [sequences, length]; one of each pair is where `ones` is true, the other where `others`
    is. [pairs] each
    """
    found, beside = [], []
    for distance in range(1, apart + 1):
        ahead, behind = np.s_[:, :-distance], np.s_[:, distance:]
        for here, there in ((ahead, behind), (behind, ahead)):
            both = ones[here] & others[there]
            found.append(rows[here][both])
            beside.append(rows[there][both])
    return np.concatenate(found), np.concatenate(beside)
