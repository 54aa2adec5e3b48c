from contextlib import closing
from itertools import accumulate

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.domain import Int64s, Partition
from service.trainer.sequences import (
    Stretch,
    contexts,
    empty_sequences,
    from_lists,
    join,
    pairs,
    windows_over,
)
from tests.state.examples import a_slab
from tests.trainer.examples import PARTITION, Stream, keys


def numbered(start: int, count: int) -> Int64s:
    return np.arange(start, start + count, dtype=np.int64)


def a_stretch(start: int, count: int) -> Stretch:
    """Events of which the codes are twice the item keys."""
    item = numbered(start, count)
    return Stretch(item, 2 * item[:, None].astype(np.int32), 3 * item.astype(np.float32))


@given(st.integers(0, 12), st.integers(0, 40), st.integers(2, 12))
def test_every_own_event_is_a_target_once_and_follows_what_came_before(
    before: int, count: int, length: int
) -> None:
    context, own = a_stretch(1, before), a_stretch(before + 1, count)
    rows = windows_over(context, own, length)
    sequences = from_lists(rows, length)
    taught = sequences.item[sequences.target]
    with_context = own.item if before else own.item[1:]  # nothing stands before a first event
    assert sorted(taught.tolist()) == with_context.tolist()
    for events, _ in rows:
        assert len(events) <= length
        assert (np.diff(events.item) == 1).all()
    assert not rows or (sequences.codes[..., 0] == 2 * sequences.item).all()
    assert (sequences.weight == 3 * sequences.item).all()


@given(st.integers(20, 60), st.integers(4, 12))
def test_a_target_of_a_long_stretch_has_half_a_window_before_it(count: int, length: int) -> None:
    for events, targets in windows_over(a_stretch(1, 0), a_stretch(1, count), length):
        assert events.item[0] == 1 or len(events) - targets >= length // 2


def test_the_first_place_is_never_a_target() -> None:
    sequences = from_lists([(a_stretch(5, 3), 3), (a_stretch(7, 1), 1)], 4)
    assert sequences.item.tolist() == [[5, 6, 7, 0], [7, 0, 0, 0]]
    assert sequences.target.tolist() == [[False, True, True, False], [False] * 4]


def test_what_has_no_weight_is_no_target() -> None:
    events = a_stretch(1, 4)
    events.weight[2] = 0
    assert from_lists([(events, 4)], 4).target.tolist() == [[False, True, False, True]]


def test_joins_nothing_to_nothing() -> None:
    assert join([], 4).item.shape == (0, 4)
    joined = join([empty_sequences(4), from_lists([(a_stretch(1, 2), 1)], 4)], 4)
    assert len(joined) == 1


def test_a_context_is_what_stood_before_each_event() -> None:
    with closing(a_slab(events=16)) as slab:
        stream = Stream(slab)
        stream.batch([1, 2], [1, 2])
        batch = stream.batch([1, 2, 1], [3, 4, 5])
        item, time, _ = contexts(batch, {PARTITION: slab}, batch.ordinal, 3)
    first, second, third = keys([1]), keys([2]), keys([1, 3])
    assert item.tolist() == [[*first, 0, 0], [*second, 0, 0], [*third, 0]]
    assert time.tolist() == [[0, 0, 0], [1000, 0, 0], [0, 2000, 0]]


def test_an_evicted_user_has_no_context() -> None:
    with closing(a_slab(users=2, events=16)) as slab:
        stream = Stream(slab)
        batch = stream.batch([1, 1, 1, 2, 2], [1, 2, 2, 3, 4])
        stream.batch([3], [5])  # takes the slot of user 1
        item, _, _ = contexts(batch, {PARTITION: slab}, batch.ordinal, 2)
        assert item.tolist() == [[0, 0]] * 4 + [[*keys([3]), 0]]

        stream.batch([2, 2, 1], [5, 6, 7])  # user 1 is back, where user 3 was
        item, _, _ = contexts(batch, {PARTITION: slab}, batch.ordinal, 2)
        assert item[2].tolist() == [0, 0]


@given(st.integers(1, 6))
def test_a_user_who_is_back_has_no_later_event_as_context(events: int) -> None:
    with closing(a_slab(users=2, events=16)) as slab:
        stream = Stream(slab)
        batch = stream.batch([1, 1, 1], [1, 2, 3])
        stream.batch([2, 3, 2], [4, 4, 4])  # user 3 takes the slot of user 1 ...
        back = stream.batch([1] * events, range(5, 5 + events))  # ... who takes it back
        assert set(back.slot.tolist()) == set(batch.slot.tolist())
        item, time, _ = contexts(batch, {PARTITION: slab}, batch.ordinal, 4)
        assert not item.any()
        assert not time.any()

        item, _, _ = contexts(back, {PARTITION: slab}, back.ordinal, 8)
        assert (item != 0).sum(axis=1).tolist() == list(range(events))


def test_events_of_a_partition_without_a_slab_have_no_context() -> None:
    with closing(a_slab(events=16)) as slab:
        batch = Stream(slab).batch([1, 1], [1, 2])
        item, time, _ = contexts(batch, {Partition(9): slab}, batch.ordinal, 2)
    assert not item.any()
    assert not time.any()


@given(st.lists(st.integers(0, 5), max_size=6), st.integers(2, 6))
def test_taking_rows_keeps_items_and_targets_together(counts: list[int], length: int) -> None:
    starts = accumulate(counts, initial=1)
    rows = [(a_stretch(start, min(n, length)), 1) for start, n in zip(starts, counts, strict=False)]
    sequences = from_lists(rows, length)
    turned = sequences.take(np.arange(len(rows))[::-1])
    assert turned.item.tolist() == sequences.item.tolist()[::-1]
    assert turned.target.tolist() == sequences.target.tolist()[::-1]
    assert turned.codes.tolist() == sequences.codes.tolist()[::-1]


def test_pairs_are_of_what_stands_together_in_a_sequence() -> None:
    rows = np.array([[1, 2, 3, 4], [5, 6, 0, 0]], np.int64)
    ones = np.isin(rows, [2, 5])
    others = np.isin(rows, [1, 3, 4])
    found, beside = pairs(rows, ones, others, apart=1)
    assert set(zip(found.tolist(), beside.tolist(), strict=True)) == {(2, 1), (2, 3)}
    found, beside = pairs(rows, ones, others, apart=2)
    assert set(zip(found.tolist(), beside.tolist(), strict=True)) == {(2, 1), (2, 3), (2, 4)}
