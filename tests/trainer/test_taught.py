import numpy as np

from service.domain import Offset, Partition
from service.registry.manifest import Taught
from service.trainer.taught import joined, taught_by
from tests.trainer.examples import PARTITION, Stream


def taught(first: int, after: int, events: int, partition: int = 0) -> Taught:
    return Taught(
        partition=Partition(partition), first=Offset(first), next=Offset(after), events=events
    )


def test_a_batch_is_a_range_for_each_partition_with_its_events_counted(stream: Stream) -> None:
    batch = stream.batch([1, 2, 3, 1], [1, 2, 3, 4])
    assert taught_by(batch.take(np.array([0, 3]))) == [taught(0, 4, 2, PARTITION)]
    other = batch.partition.copy()
    other[2:] = 9
    moved = type(batch)(other, *(getattr(batch, name) for name in batch.__slots__[1:]))
    assert taught_by(moved) == [taught(0, 2, 2, PARTITION), taught(2, 4, 2, 9)]
    assert taught_by(batch.take(np.array([], np.int64))) == []


def test_ranges_that_follow_each_other_are_one() -> None:
    ranges = joined([taught(0, 5, 5)], [taught(5, 7, 2), taught(0, 3, 3, 1), taught(7, 9, 1)])
    assert ranges == (taught(0, 9, 8), taught(0, 3, 3, 1))


def test_a_gap_and_an_overlap_stay_to_be_seen() -> None:
    gap, overlap = taught(6, 9, 3), taught(8, 10, 2)
    assert joined([taught(0, 5, 5)], [gap, overlap]) == (taught(0, 5, 5), gap, overlap)
