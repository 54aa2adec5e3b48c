"""Older histories, mixed into every step so that learning the new does not undo the old."""

import numpy as np

from service.domain import NO_KEY, Bools, Float32s, Int32s, Int64s, Offsets
from service.state.histories import HistorySlab
from service.trainer.holdout import event_hash
from service.trainer.sequences import (
    Sequences,
    Slabs,
    Stretch,
    compacted,
    empty_sequences,
    from_lists,
    join,
)
from service.trainer.weighing import Weighing

# Users drawn for each that is wanted: one event alone teaches nothing. Where too few have more,
# twice as many are drawn again, and so on.
_SPARE, _MOST_SPARE = 2, 64


class Replay:
    """Draws users, and of each a stretch of history that ends anywhere in it.

    Events that are held out, or at or after their partition's offset in `through`, are left
    out: the former would leak into the evaluation, the latter are yet to be taught, or held out.
    """

    def __init__(
        self, slabs: Slabs, length: int, seed: int, weighing: Weighing, recency: int = 1
    ) -> None:
        self._slabs = slabs
        self._weighing = weighing
        self._recency = recency
        self._length = length
        self._random = np.random.default_rng(seed)

    def draw(self, rows: int, held: Int64s, through: Offsets, now_ms: int) -> Sequences:
        """Up to `rows` sequences in which all events are targets; fewer while there are few.

        A stretch in which items were turned down gives another for the last of these.
        """
        slabs = [slab for slab in self._slabs.values() if slab.used]
        if rows == 0 or not slabs:
            return empty_sequences(self._length)
        used = np.array([slab.used for slab in slabs])
        share = self._random.multinomial(min(rows, int(used.sum())), used / used.sum())
        drawn: list[Sequences] = []
        for slab, count in zip(slabs, share.tolist(), strict=True):
            slot = self._slots(slab, count)
            events = slab.counts(slot)
            oldest = np.maximum(events - slab.address.width, 0)
            # A history that fits is drawn whole.
            shortest = np.minimum(oldest + self._length, events)
            end = self._random.integers(shortest, events + 1)
            windows = slab.all_windows(slot, end, self._length)
            user = np.broadcast_to(slab.users(slot)[:, None], windows.item.shape)
            keep = (windows.item != NO_KEY) & windows.intact[:, None]
            keep &= windows.offset < through.get(slab.address.partition, 0)
            marks = event_hash(user, windows.item, windows.time).view(np.int64)
            keep &= ~np.isin(marks, held)
            weight = self._weighing.replayed(windows.kind, windows.time, now_ms)
            turned_down = np.isin(windows.kind, slab.address.negative)
            columns = windows.item, windows.codes, weight
            drawn.append(compacted(keep & ~turned_down, *columns))
            drawn.append(self._refusals(keep, turned_down, *columns))
        return join(drawn, self._length)

    def _refusals(
        self, keep: Bools, turned_down: Bools, item: Int64s, codes: Int32s, weight: Float32s
    ) -> Sequences:
        """Of each window in which items were turned down, the last of these after what stands
        before it."""
        found: list[tuple[Stretch, int]] = []
        for row in np.flatnonzero((keep & turned_down).any(axis=1)).tolist():
            last = int(np.flatnonzero(keep[row] & turned_down[row])[-1])
            window = Stretch(item[row], codes[row], weight[row])
            before = window.part(0, last).where((keep & ~turned_down)[row, :last])
            found += [(before.followed_by(window.part(last, last + 1)), 1)] if len(before) else []
        return from_lists(found, self._length)

    def _slots(self, slab: HistorySlab, count: int) -> Int32s:
        """So many users with more than one event; fewer, and none twice, where few of all have
        that."""
        chosen = self._with_two(slab, _SPARE * count)
        spare = 2 * _SPARE
        while len(chosen) < count and spare <= _MOST_SPARE:
            chosen = np.append(chosen, self._with_two(slab, spare * count))
            _, first = np.unique(chosen, return_index=True)
            chosen = chosen[np.sort(first)]
            spare *= 2
        return chosen[:count]

    def _with_two(self, slab: HistorySlab, count: int) -> Int32s:
        """Of so many users drawn, those with more than one event."""
        drawn = self._drawn(slab, count)
        return drawn[slab.counts(drawn) > 1]

    def _drawn(self, slab: HistorySlab, count: int) -> Int32s:
        """Users drawn, each the one with the newest event of as many as `recency` says."""
        slot = self._random.integers(0, slab.used, (count, self._recency)).astype(np.int32)
        newest = slab.newest(slot.ravel()).reshape(slot.shape).argmax(axis=1)
        chosen: Int32s = slot[np.arange(count), newest]
        return chosen
