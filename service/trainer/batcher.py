"""Gathers scored events into micro-batches by count and age."""

from collections.abc import Sequence

import numpy as np

from service.domain import (
    Erasure,
    Events,
    Int32s,
    Int64s,
    ItemId,
    ItemKey,
    MicroBatch,
    Offset,
    Partition,
    no_events,
)
from service.settings import BatchSettings


def is_due(events: int, age_s: float, settings: BatchSettings) -> bool:
    """Whether a micro-batch closes now."""
    return events >= settings.train_max_events or (
        events > 0 and age_s >= settings.train_max_wait_s
    )


class Batcher:
    """The micro-batch that is open."""

    def __init__(self, settings: BatchSettings) -> None:
        self._settings = settings
        self._parts: list[tuple[Events, Int32s, Int64s]] = []
        self._erasures: list[Erasure] = []
        self._events = 0  # and erasures
        self._opened_s = 0.0
        self._next_offsets: dict[Partition, Offset] = {}

    def add(self, events: Events, slot: Int32s, ordinal: Int64s, now_s: float) -> None:
        """Add events that were scored, in order, with their places in the history slabs."""
        if not len(events):
            return
        self._open(now_s)
        self._parts.append((events, slot, ordinal))
        self._events += len(events)
        for partition, offset in zip(
            events.partition.tolist(), events.offset.tolist(), strict=True
        ):
            self._next_offsets[Partition(partition)] = Offset(offset + 1)

    def erase(self, erasures: Sequence[Erasure], now_s: float) -> None:
        """Leave out the events that these erase, and hand them on with the micro-batch."""
        self._open(now_s)
        for place, (events, slot, ordinal) in enumerate(self._parts):
            rows = np.flatnonzero(~events.erased(erasures))
            self._parts[place] = events.take(rows), slot[rows], ordinal[rows]
        self._erasures += erasures
        self._events = sum(len(events) for events, _, _ in self._parts) + len(self._erasures)
        for one in erasures:
            self._next_offsets[one.partition] = Offset(one.offset + 1)

    def _open(self, now_s: float) -> None:
        if not self._parts and not self._erasures:
            self._opened_s = now_s

    def close_if_due(self, now_s: float) -> MicroBatch | None:
        if not is_due(self._events, now_s - self._opened_s, self._settings):
            return None
        none = no_events()
        parts, self._parts = self._parts or [(none, none.partition, none.offset)], []
        erasures, self._erasures, self._events = tuple(self._erasures), [], 0
        offsets, self._next_offsets = self._next_offsets, {}
        batches = [events for events, _, _ in parts]
        ids: dict[ItemKey, ItemId] = {}
        for events in batches:
            ids |= zip(map(ItemKey, events.item.tolist()), events.item_ids, strict=True)
        return MicroBatch(
            partition=np.concatenate([events.partition for events in batches]),
            offset=np.concatenate([events.offset for events in batches]),
            user=np.concatenate([events.user for events in batches]),
            slot=np.concatenate([slot for _, slot, _ in parts]),
            ordinal=np.concatenate([ordinal for _, _, ordinal in parts]),
            item=np.concatenate([events.item for events in batches]),
            kind=np.concatenate([events.kind for events in batches]),
            timestamp=np.concatenate([events.timestamp for events in batches]),
            value=np.concatenate([events.value for events in batches]),
            codes=np.concatenate([events.codes for events in batches]),
            item_ids=tuple(ids.items()),
            next_offsets=offsets,
            opened_s=self._opened_s,
            erasures=erasures,
        )

    def discard(self) -> None:
        """Forget the open micro-batch; Kafka still has its events."""
        self._parts, self._erasures, self._events, self._next_offsets = [], [], 0, {}
