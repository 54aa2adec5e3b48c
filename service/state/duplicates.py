"""Which events came before: by `event_id`, among the last of their partition.

A producer that sends at least once may append an event twice. Of two records with one event_id the
one with the lower offset counts, whichever is read first. How far back is looked is a distance of
offsets, so the answer does not depend on how records were read in batches.

    hash      [window]  a stable hash of the event_id, NO_KEY where there is none
    offset    [window]  where the event stands in its partition
    left_out  [any]     offsets of duplicates, rising

The first two are rings of the last events that have an event_id and were no duplicates. They are
found by a binary search in a sorted index, the newest, which it does not reach yet, by a mapping.
What is read again, as after a restart, may have had its original further back than the ring goes:
it is told apart as the first time, by what was left out then.
"""

from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from service.domain import NO_KEY, Bools, Events, Int64s, Offsets, Partition, stable_key

Arrays = dict[str, npt.NDArray[Any]]

_LONG_AGO = np.iinfo(np.int64).min // 2  # further back than any window
_NOWHERE = -1
_LEFT_OUT = 100_000  # remembered; what was left out before is told apart by the ring alone
# Events that the index lags behind by. Sorting it anew costs about 1 ms at the default window, and
# a mapping of so many is 1 MB.
_NEWEST = 8_192


class SeenEvents:
    """The window of one partition, read and written by one thread."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._clear()

    def _clear(self) -> None:
        self._hash: Int64s = np.full(self._window, NO_KEY, np.int64)
        self._offset: Int64s = np.full(self._window, _LONG_AGO, np.int64)
        self._count = 0  # ever put into the ring
        self._index = _Index(self._hash, np.zeros(0, np.int64))
        self._newest: dict[int, int] = {}  # places of hashes that came after it was made
        # From `known` up to `judged` everything that is not there was no duplicate.
        self._left_out: Int64s = np.zeros(0, np.int64)
        self._known = self._judged = 0

    def is_first(self, hashes: Int64s, offsets: Int64s) -> Bools:
        """Which of these events, in offset order, have no earlier one within the window; they are
        remembered. Of one that is read again the answer is the same."""
        first = np.empty(len(hashes), np.bool_)
        if not len(hashes):
            return first
        if not self._judged:
            self._known = int(offsets[0])
        start = again = int(np.searchsorted(offsets, self._judged))
        if again:
            first[:again] = self._was_first(hashes[:again], offsets[:again])
        while start < len(hashes):  # parts in which every two are within the window
            end = int(np.searchsorted(offsets, offsets[start] + self._window))
            part = slice(start, end)
            first[part] = self._take(hashes[part], offsets[part])
            start = end
        self._leave_out(offsets[again:][~first[again:]])
        self._judged = max(self._judged, int(offsets[-1]) + 1)
        return first

    def _was_first(self, hashes: Int64s, offsets: Int64s) -> Bools:
        known = self._offset_of(self._find(hashes))
        is_repeated = (known < offsets) & (known >= offsets - self._window)
        place = np.searchsorted(self._left_out, offsets)
        is_left_out = np.append(self._left_out, _NOWHERE)[place] == offsets
        first: Bools = ~np.where(offsets >= self._known, is_left_out, is_repeated)
        return first

    def _leave_out(self, offsets: Int64s) -> None:
        if len(offsets):
            self._left_out = np.concatenate([self._left_out, offsets])
            forgotten = self._left_out[:-_LEFT_OUT]
            if len(forgotten):
                self._left_out = self._left_out[-_LEFT_OUT:]
                self._known = int(forgotten[-1]) + 1

    def _take(self, hashes: Int64s, offsets: Int64s) -> Bools:
        place = self._find(hashes)
        rows = np.flatnonzero(self._offset_of(place) < offsets - self._window)
        _, leading = np.unique(hashes[rows], return_index=True)  # the first of each
        first = np.zeros(len(hashes), np.bool_)
        first[rows[leading]] = True
        outdated = place[first & (place != _NOWHERE)]
        self._hash[outdated], self._offset[outdated] = NO_KEY, _LONG_AGO
        self._remember(hashes[first], offsets[first])
        return first

    def _offset_of(self, place: Int64s) -> Int64s:
        found: Int64s = np.where(place == _NOWHERE, _LONG_AGO, self._offset[place])
        return found

    def cut(self, end: int) -> None:
        """Kafka has no record from `end` on, as a leader had lost some: others come in their
        place."""
        if end < self._judged:
            gone = self._offset >= end
            self._hash[gone], self._offset[gone] = NO_KEY, _LONG_AGO
            self._left_out = self._left_out[self._left_out < end]
            self._known, self._judged = min(self._known, end), end

    def dump(self) -> Arrays:
        """What it remembers, oldest first, as a snapshot keeps it."""
        order = self._places(self._window)
        order = order[self._hash[order] != NO_KEY]
        return {
            "hash": self._hash[order],
            "offset": self._offset[order],
            "left_out": self._left_out,
            "between": np.array([self._known, self._judged], np.int64),
        }

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from what `dump` gave; a smaller window takes the newest."""
        self._clear()
        newest = slice(-self._window, None)
        self._remember(
            arrays["hash"][newest].astype(np.int64), arrays["offset"][newest].astype(np.int64)
        )
        if "left_out" in arrays:
            self._left_out = arrays["left_out"].astype(np.int64)
            self._known, self._judged = arrays["between"].tolist()
        else:  # of an earlier release
            self._known = self._judged = int(arrays["offset"].max(initial=-1)) + 1

    def _places(self, newest: int) -> Int64s:
        """Of so many that came last, as far as they are there, oldest first."""
        return np.arange(self._count - min(newest, self._count), self._count) % self._window

    def _find(self, hashes: Int64s) -> Int64s:
        """The place of each in the ring, or `_NOWHERE`."""
        newest = [self._newest.get(one, _NOWHERE) for one in hashes.tolist()]
        place = np.array(newest, np.int64)
        place[self._hash[place] != hashes] = _NOWHERE
        return np.where(place == _NOWHERE, self._index.find(hashes, self._hash), place)

    def _remember(self, hashes: Int64s, offsets: Int64s) -> None:
        if not len(hashes):
            return
        self._count += len(hashes)
        places = self._places(len(hashes))
        self._hash[places], self._offset[places] = hashes, offsets
        self._newest.update(zip(hashes.tolist(), places.tolist(), strict=True))
        if len(self._newest) >= _NEWEST:
            self._index = _Index(self._hash, self._places(self._window))
            self._newest = {}


class _Index:
    """Some places of a ring, in the order of the hashes that stand there now."""

    def __init__(self, ring: Int64s, places: Int64s) -> None:
        order = np.argsort(ring[places])
        self._places = places[order]
        self._hashes = ring[self._places]

    def find(self, hashes: Int64s, ring: Int64s) -> Int64s:
        """Where each stands; `_NOWHERE` where it does not, or no longer."""
        if not len(self._hashes):
            return np.full(len(hashes), _NOWHERE, np.int64)
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        places = self._places[at]
        return np.where(ring[places] == hashes, places, _NOWHERE)


class Duplicates:
    """The windows of the partitions that this process owns."""

    def __init__(self, window: int) -> None:
        """`window`: offsets to look back in a partition; 0 turns it off."""
        self._window = window
        self._seen: dict[Partition, SeenEvents] = {}

    def own(self, partitions: Iterable[Partition], kept: Container[Partition] = ()) -> None:
        """Go on with these partitions: of those that are not `kept` nothing was seen."""
        wanted = partitions if self._window else ()
        self._seen = {
            one: self._seen[one] if one in kept and one in self._seen else SeenEvents(self._window)
            for one in wanted
        }

    def cut(self, ends: Offsets) -> None:
        """The partitions have no records from there on."""
        for partition, seen in self._seen.items():
            seen.cut(ends.get(partition, 0))

    def dump(self) -> dict[Partition, Arrays]:
        """The windows for the partitions' snapshots."""
        return {partition: seen.dump() for partition, seen in self._seen.items()}

    def load(self, partition: Partition, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from what `dump` gave, in a partition that is owned."""
        if self._window:
            self._seen[partition].load(arrays)

    def is_first(self, events: Events) -> Bools:
        """Which of a batch's events are no duplicates; those without an event_id never are."""
        first = np.ones(len(events), np.bool_)
        if not self._window:
            return first
        named = [(n, text) for n, text in enumerate(events.event_ids) if text is not None]
        rows = np.array([n for n, _ in named], np.int64)
        hashes = np.array([stable_key(text) for _, text in named], np.int64)
        for partition in np.unique(events.partition[rows]).tolist():
            here = events.partition[rows] == partition
            seen = self._seen[Partition(partition)]
            first[rows[here]] = seen.is_first(hashes[here], events.offset[rows[here]])
        return first
