"""The model that the demo starts from: taught the beginning of the stream, then published.

The same learner as in the worker's process, given all of the events as one round and as many
passes as the holdout goes on improving: the best that can be had from them, so that what the
live model gains later is not a weak start made good. The version is trained through the
offsets after these events: the service applies them to its histories and trains on what follows.
"""

import time

import numpy as np
import torch

from service.domain import Events, MicroBatch, Offset, Offsets, Partition
from service.registry.manifest import Manifest, Origin
from service.registry.registry import Registry
from service.settings import Settings
from service.state.histories import SLACK, HistorySlab
from service.trainer.learner import Learner

_MAX_EPOCHS = 12  # 20 to 30 s on a busy machine; the holdout hardly improves after that
_PATIENCE = 4  # the holdout is small and noisy: stopped too soon, it would be an easy rival


def publish_first_version(events: Events, settings: Settings, registry: Registry) -> Manifest:
    """Teach a new model `events`, in offset order, and publish it. Blocks for some seconds."""
    trainer = settings.trainer.model_copy(update={"max_epochs": _MAX_EPOCHS, "patience": _PATIENCE})
    settings = settings.model_copy(update={"trainer": trainer})
    slabs = {
        Partition(partition): HistorySlab.of(Partition(partition), settings)
        for partition in np.unique(events.partition).tolist()
    }
    try:
        learner = Learner.new(settings, slabs, torch.device("cpu"))
        learner.learn(_micro_batches(events, slabs))
        learner.fit_blend()
        return registry.publish(
            learner.artifact(),
            parent=None,
            origin=Origin.TRAINED,
            trained_through=learner.trained_through,
            topic=settings.topics.events,
            model=learner.shape,
            items=learner.items,
            gate=None,
            now_ms=time.time_ns() // 1_000_000,
        )
    finally:
        for slab in slabs.values():
            slab.close()


def _micro_batches(events: Events, slabs: dict[Partition, HistorySlab]) -> list[MicroBatch]:
    through: dict[Partition, Offset] = {}
    batches = []
    for start in range(0, len(events), SLACK):  # no user may have more events in one append
        part = events.take(np.arange(start, min(start + SLACK, len(events))))
        for partition, slab in slabs.items():
            rows = np.flatnonzero(part.partition == partition)
            if len(rows):
                one = part.take(rows)
                through[partition] = Offset(int(one.offset[-1]) + 1)
                batches.append(_micro_batch(one, slab, dict(through)))
    return batches


def _micro_batch(events: Events, slab: HistorySlab, through: Offsets) -> MicroBatch:
    slot, ordinal = slab.append(
        events.user,
        events.item,
        events.kind,
        events.timestamp,
        events.offset,
        codes=events.codes,
    )
    return MicroBatch(
        partition=events.partition,
        offset=events.offset,
        user=events.user,
        slot=slot,
        ordinal=ordinal,
        item=events.item,
        kind=events.kind,
        timestamp=events.timestamp,
        value=events.value,
        codes=slab.codes(slot, ordinal),
        item_ids=tuple(dict(zip(events.item.tolist(), events.item_ids, strict=True)).items()),
        next_offsets=through,
        opened_s=time.monotonic(),
    )
