"""What a learner was given, as ranges of offsets: a manifest tells it, so that others can check
that every event was taught once. Pure."""

from collections.abc import Iterable

import numpy as np

from service.domain import MicroBatch, Offset, Partition
from service.registry.manifest import Taught


def taught_by(batch: MicroBatch) -> list[Taught]:
    """The events of a micro-batch, a range for each partition."""
    ranges = []
    for partition in np.unique(batch.partition).tolist():
        offsets = batch.offset[batch.partition == partition]
        ranges.append(
            Taught(
                partition=Partition(partition),
                first=Offset(int(offsets.min())),
                next=Offset(int(offsets.max()) + 1),
                events=len(offsets),
            )
        )
    return ranges


def joined(ranges: Iterable[Taught], more: Iterable[Taught]) -> tuple[Taught, ...]:
    """Both, in the order of learning. A range that begins exactly where the last one of its
    partition ends becomes part of it; overlaps and gaps stay to be seen."""
    result = list(ranges)
    last = {one.partition: place for place, one in enumerate(result)}
    for one in more:
        place = last.get(one.partition)
        if place is not None and result[place].next == one.first:
            before = result[place]
            result[place] = before.model_copy(
                update={"next": one.next, "events": before.events + one.events}
            )
        else:
            last[one.partition] = len(result)
            result.append(one)
    return tuple(result)
