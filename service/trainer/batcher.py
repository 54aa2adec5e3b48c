"""Gathers scored events into micro-batches by count and age."""

import numpy as np

from service.domain import (
    Events,
    Int32s,
    Int64s,
    ItemId,
    ItemKey,
    MicroBatch,
    Offset,
    Partition,
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
        self._events = 0
        self._opened_s = 0.0
        self._next_offsets: dict[Partition, Offset] = {}

    def add(self, events: Events, slot: Int32s, ordinal: Int64s, now_s: float) -> None:
        """Add events that were scored, in order, with their places in the history slabs."""
        if not len(events):
            return
        if not self._parts:
            self._opened_s = now_s
        self._parts.append((events, slot, ordinal))
        self._events += len(events)
        for partition, offset in zip(
            events.partition.tolist(), events.offset.tolist(), strict=True
        ):
            self._next_offsets[Partition(partition)] = Offset(offset + 1)

    def close_if_due(self, now_s: float) -> MicroBatch | None:
        if not is_due(self._events, now_s - self._opened_s, self._settings):
            return None
        parts, self._parts, self._events = self._parts, [], 0
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
        )

    def discard(self) -> None:
        """Forget the open micro-batch; Kafka still has its events."""
        self._parts, self._events, self._next_offsets = [], 0, {}
