"""Which events came before, however they are read."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import Bools, Partition
from service.settings import EventsSettings
from service.state import duplicates
from service.state.duplicates import Duplicates, SeenEvents
from service.stream.codec import EventCodec
from tests.stream.examples import NOW_MS, plain_event, record

Log = list[tuple[int, int]]  # hash and offset


def told(seen: SeenEvents, log: Log) -> list[bool]:
    hashes, offsets = np.array(log, np.int64).reshape(-1, 2).T
    answer: list[bool] = seen.is_first(hashes, offsets).tolist()
    return answer


def plainly(log: Log, window: int) -> list[bool]:
    """One event after the other, by a mapping that forgets nothing."""
    found, first = dict[int, int](), []
    for key, offset in log:
        known = found.get(key)
        first.append(known is None or offset - known > window)
        if first[-1]:
            found[key] = offset
    return first


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """A few ids, with gaps between offsets as compaction and transactions leave."""
    keys = draw(st.lists(st.integers(1, 12), max_size=60))
    steps = draw(st.lists(st.integers(1, 3), min_size=len(keys), max_size=len(keys)))
    return list(zip(keys, np.cumsum(steps).tolist(), strict=True))


@given(logs(), st.integers(1, 20), st.lists(st.integers(0, 60)))
def test_the_answer_is_the_same_however_the_log_is_read(
    log: Log, window: int, cuts: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_NEWEST", 4)
        seen = SeenEvents(window)
        ends = [0, *sorted(min(cut, len(log)) for cut in cuts), len(log)]
        first = [one for start, end in pairwise(ends) for one in told(seen, log[start:end])]
    assert first == plainly(log, window)


@given(logs(), st.integers(1, 20), st.integers(0, 60))
def test_a_snapshot_goes_on_as_if_nothing_had_happened(log: Log, window: int, cut: int) -> None:
    before, after = SeenEvents(window), SeenEvents(window)
    first = told(before, log[:cut])
    after.load(before.dump())
    assert first + told(after, log[cut:]) == plainly(log, window)


@given(logs(), st.integers(1, 20), st.integers(0, 60), st.integers(0, 60), st.booleans())
def test_of_what_is_read_again_the_answer_is_the_same_however_far_back(
    log: Log, window: int, cut: int, start: int, restarts: bool
) -> None:
    seen, first = SeenEvents(window), plainly(log, window)
    told(seen, log[:cut])
    if restarts:
        arrays, seen = seen.dump(), SeenEvents(window)
        seen.load(arrays)
    again = log[min(start, cut) :]
    assert told(seen, again) == first[len(log) - len(again) :]


@given(logs(), st.integers(0, 60))
def test_after_a_snapshot_of_an_earlier_release_the_ring_alone_tells(log: Log, start: int) -> None:
    before, seen = SeenEvents(200), SeenEvents(200)
    first = told(before, log)
    arrays = before.dump()
    seen.load({"hash": arrays["hash"], "offset": arrays["offset"]})
    assert told(seen, log[start:]) == first[start:]


@given(logs(), logs(), st.integers(1, 20), st.integers(0, 130))
def test_what_takes_the_place_of_lost_records_is_told_apart_by_what_is_left(
    log: Log, others: Log, window: int, end: int
) -> None:
    seen = SeenEvents(window)
    told(seen, log)
    seen.cut(end)
    left = [one for one in log if one[1] < end]
    more = [(key, end + offset) for key, offset in others]
    lost = {
        key
        for (key, offset), is_first in zip(log, plainly(log, window), strict=True)
        if is_first and offset >= end
    }
    # Else what was lost may have taken the places of originals in the ring.
    if len(log) <= window and not lost & {key for key, _ in left}:
        assert told(seen, more) == plainly(left + more, window)[len(left) :]
    assert told(seen, left) == plainly(left, window)


def test_of_what_was_left_out_only_so_much_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_LEFT_OUT", 2)
    seen = SeenEvents(3)
    log = [(1, 0), (1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (3, 6), (4, 7), (5, 8)]
    first = told(seen, log)
    assert first == [True, False, False, False, True, False, True, True, True]
    assert seen.dump()["left_out"].tolist() == [3, 5]
    assert told(seen, log) == [True, True, True, False, True, False, True, True, True]


def test_a_smaller_window_takes_the_newest_of_a_snapshot() -> None:
    large, small = SeenEvents(100), SeenEvents(2)
    told(large, [(key, key) for key in range(1, 51)])
    small.load(large.dump())
    assert small.dump()["offset"].tolist() == [49, 50]
    assert told(small, [(50, 51), (48, 52)]) == [False, True]


class TestEvents:
    CODEC = EventCodec(EventsSettings())

    def first(self, window: int, *read: tuple[int, int, str | None]) -> list[bool]:
        """Of events by partition, offset and event_id, in one batch."""
        records = [
            record(plain_event(event_id=event_id), partition=partition, offset=offset)
            for partition, offset, event_id in read
        ]
        batch = self.CODEC.columns([(one, self.CODEC.decode(one, NOW_MS)) for one in records])
        seen = Duplicates(window)
        seen.own([Partition(0), Partition(1)])
        answer: Bools = seen.is_first(batch)
        return list(answer.tolist())

    def test_the_second_of_a_partition_is_one(self) -> None:
        assert self.first(9, (0, 1, "a"), (0, 2, "b"), (0, 3, "a")) == [True, True, False]

    def test_another_partition_has_its_own(self) -> None:
        assert self.first(9, (0, 1, "a"), (1, 1, "a"), (1, 2, "a")) == [True, True, False]

    def test_an_event_without_an_id_is_none(self) -> None:
        assert self.first(9, (0, 1, None), (0, 2, None)) == [True, True]

    def test_nothing_is_one_when_it_is_off(self) -> None:
        assert self.first(0, (0, 1, "a"), (0, 2, "a")) == [True, True]

    def test_of_partitions_owned_anew_those_that_were_kept_have_seen_what_they_had(self) -> None:
        seen = Duplicates(9)
        seen.own([Partition(0), Partition(1)])
        for partition in (0, 1):
            seen.load(Partition(partition), {"hash": np.array([7]), "offset": np.array([3])})
        seen.own([Partition(0), Partition(1), Partition(2)], kept=[Partition(1), Partition(2)])
        assert {one: window["offset"].tolist() for one, window in seen.dump().items()} == {
            0: [],
            1: [3],
            2: [],
        }

    def test_when_it_is_off_there_is_nothing_to_keep(self) -> None:
        seen = Duplicates(0)
        seen.own([Partition(0)])
        seen.load(Partition(0), {"hash": np.array([7]), "offset": np.array([3])})
        assert seen.dump() == {}
