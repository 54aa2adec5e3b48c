"""Micro-batches by count and age, with the offsets that follow them."""

import numpy as np
import pytest

from service.domain import (
    Erasure,
    Events,
    ItemId,
    Offset,
    Partition,
    UserId,
    item_key,
    user_key,
)
from service.settings import BatchSettings
from service.trainer.batcher import Batcher, is_due

SETTINGS = BatchSettings(train_max_events=4, train_max_wait_s=2.0)


def some_events(*places: tuple[int, int]) -> Events:
    """One event at each (partition, offset); its item is named for its offset."""
    count = len(places)
    items = [ItemId(f"i{offset}") for _, offset in places]
    users = [UserId(f"u{partition}") for partition, _ in places]
    return Events(
        partition=np.array([partition for partition, _ in places], np.int32),
        offset=np.array([offset for _, offset in places], np.int64),
        user=np.array([user_key(user) for user in users], np.int64),
        item=np.array([item_key(item) for item in items], np.int64),
        kind=np.zeros(count, np.uint8),
        timestamp=np.arange(count),
        appended=np.arange(count),
        value=np.full(count, np.nan, np.float32),
        codes=np.arange(count, dtype=np.int32)[:, None],
        user_ids=users,
        item_ids=items,
        event_ids=[None] * count,
        traces=[None] * count,
    )


def add(batcher: Batcher, now_s: float, *places: tuple[int, int]) -> None:
    """Slot and ordinal are the partition and the offset, so that a test can tell them."""
    events = some_events(*places)
    batcher.add(events, events.partition, events.offset, now_s)


@pytest.mark.parametrize(
    ("events", "age_s", "due"),
    [(0, 99, False), (1, 1.9, False), (1, 2.0, True), (3, 0, False), (4, 0, True), (9, 0, True)],
)
def test_due_by_count_or_age_and_never_when_empty(events: int, age_s: float, due: bool) -> None:
    assert is_due(events, age_s, SETTINGS) is due


def test_nothing_closes_before_it_is_due() -> None:
    batcher = Batcher(SETTINGS)
    assert batcher.close_if_due(100.0) is None
    add(batcher, 100.0, (0, 1), (0, 2))
    assert batcher.close_if_due(101.9) is None


def test_a_micro_batch_holds_every_event_since_the_last_and_starts_anew() -> None:
    batcher = Batcher(SETTINGS)
    add(batcher, 100.0, (0, 1), (1, 7))
    add(batcher, 101.0, (0, 2), (0, 3))
    batch = batcher.close_if_due(101.0)
    assert batch is not None
    assert batch.offset.tolist() == batch.ordinal.tolist() == [1, 7, 2, 3]
    assert batch.partition.tolist() == batch.slot.tolist() == [0, 1, 0, 0]
    assert batch.next_offsets == {0: 4, 1: 8}
    assert dict(batch.item_ids) == {
        item_key(ItemId(f"i{offset}")): f"i{offset}" for offset in (1, 2, 3, 7)
    }
    assert batcher.close_if_due(999.0) is None


def test_its_age_is_that_of_its_oldest_event() -> None:
    batcher = Batcher(SETTINGS)
    add(batcher, 100.0, (0, 1))
    add(batcher, 101.5, (0, 2))
    batch = batcher.close_if_due(102.0)
    assert batch is not None
    assert batch.opened_s == 100.0


def test_the_age_begins_anew_with_each_micro_batch() -> None:
    batcher = Batcher(SETTINGS)
    add(batcher, 100.0, (0, 1))
    assert batcher.close_if_due(102.0) is not None
    add(batcher, 103.0, (0, 2))
    assert batcher.close_if_due(104.0) is None
    assert batcher.close_if_due(105.0) is not None


def test_no_events_open_no_micro_batch() -> None:
    batcher = Batcher(SETTINGS)
    add(batcher, 100.0)
    add(batcher, 200.0, (0, 1))
    assert batcher.close_if_due(201.0) is None


def test_what_is_discarded_is_in_no_micro_batch() -> None:
    batcher = Batcher(SETTINGS)
    add(batcher, 100.0, (0, 1), (1, 1))
    batcher.discard()
    add(batcher, 101.0, (0, 5))
    batch = batcher.close_if_due(103.0)
    assert batch is not None
    assert batch.offset.tolist() == [5]
    assert batch.next_offsets == {0: 6}


def an_erasure(user: str, offset: int, partition: int = 0) -> Erasure:
    return Erasure(Partition(partition), Offset(offset), UserId(user))


def test_what_is_erased_is_in_no_micro_batch_and_the_erasure_is() -> None:
    batcher = Batcher(SETTINGS)
    add(batcher, 100.0, (0, 1), (1, 1), (0, 2))
    erasure = an_erasure("u0", 3)
    batcher.erase([erasure], 101.0)
    add(batcher, 101.5, (0, 4))
    batch = batcher.close_if_due(102.0)
    assert batch is not None
    assert list(zip(batch.partition.tolist(), batch.offset.tolist(), strict=True)) == [
        (1, 1),
        (0, 4),
    ]
    assert batch.slot.tolist() == [1, 0]
    assert batch.erasures == (erasure,)
    assert batch.next_offsets == {0: 5, 1: 2}
    assert batch.opened_s == 100.0
    assert batcher.close_if_due(999.0) is None


def test_an_erasure_alone_closes_by_age_too() -> None:
    batcher = Batcher(SETTINGS)
    batcher.erase([an_erasure("u0", 3)], 100.0)
    assert batcher.close_if_due(101.9) is None
    batch = batcher.close_if_due(102.0)
    assert batch is not None
    assert len(batch) == 0
    assert batch.next_offsets == {0: 4}
    add(batcher, 200.0, (0, 9))
    later = batcher.close_if_due(202.0)
    assert later is not None
    assert later.erasures == ()
