import multiprocessing
import shutil
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain import NO_KEY, Int32s, Int64s, Offset, Partition
from service.errors import ConfigurationError
from service.settings import HistorySettings
from service.state.histories import SLACK, HistorySlab, slab_bytes
from tests.state.examples import a_slab, append, send_windows

USERS, EVENTS = 3, 4


def places(slot: int, end: int) -> tuple[Int32s, Int64s]:
    return np.array([slot], np.int32), np.array([end], np.int64)


class Expected(NamedTuple):
    """What must be readable at one event of a batch."""

    user: int
    ordinal: int
    last: list[int]  # the items up to and with the event, oldest first


class PlainHistories:
    """The slab as a dict of lists, longest idle user first."""

    def __init__(self) -> None:
        self.items: OrderedDict[int, list[int]] = OrderedDict()
        self.evicted = 0

    def append(self, user: int, item: int) -> Expected:
        if user not in self.items and len(self.items) == USERS:
            self.items.popitem(last=False)
            self.evicted += 1
        history = self.items.setdefault(user, [])
        self.items.move_to_end(user)
        history.append(item)
        return Expected(user, len(history) - 1, history[-EVENTS:])


def within_bounds(batch: list[tuple[int, int]]) -> list[int]:
    """Users of a batch in which nobody has too many events and not too many users appear."""
    users: list[int] = []
    for user, times in batch:
        if user in users or len(set(users)) < USERS:
            users += [user] * min(times, SLACK - users.count(user))
    return users


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 40)), max_size=6), max_size=8))
def test_remembers_what_plain_lists_would(batches: list[list[tuple[int, int]]]) -> None:
    plain, item = PlainHistories(), 0
    with closing(a_slab(USERS, EVENTS)) as slab:
        for users in map(within_bounds, batches):
            items = list(range(item + 1, item + 1 + len(users)))
            item += len(users)
            expected = [plain.append(*event) for event in zip(users, items, strict=True)]

            slot, ordinal = append(slab, users, items)
            windows = slab.windows(slot, ordinal + 1, EVENTS)
            kept, kept_ordinal, _ = slab.remembered(slot, ordinal + 1)

            assert slab.users(slot).tolist() == users
            assert windows.intact.all()
            for i, (_, place, last) in enumerate(expected):
                padded = last + [NO_KEY] * (EVENTS - len(last))
                assert ordinal[i] == place
                assert windows.item[i].tolist() == padded
                assert windows.time[i].tolist() == padded
                assert windows.offset[i].tolist() == last + [-1] * (EVENTS - len(last))
                here = kept[i] != NO_KEY
                newest_first = sorted(zip(kept_ordinal[i][here], kept[i][here], strict=True))
                assert newest_first == list(zip(range(place + 1)[-EVENTS:], last, strict=True))
                assert (kept_ordinal[i][~here] == -1).all()
        assert (slab.used, slab.evicted) == (len(plain.items), plain.evicted)


class WrittenAfterFirstLook:
    """The counts of a slab whose writer goes on as soon as a reader has looked at them."""

    def __init__(self, count: Int64s, write: Callable[[], object]) -> None:
        self._count = count
        self._writes = [write]

    def __getitem__(self, slot: Int32s) -> Int64s:
        seen = self._count[slot]
        while self._writes:
            self._writes.pop()()
        return seen


class WrittenBetweenLooks(WrittenAfterFirstLook):
    """And goes on once more just before the reader looks again."""

    def __init__(
        self, count: Int64s, write: Callable[[], object], later: Callable[[], object]
    ) -> None:
        super().__init__(count, write)
        self._later = [later]

    def __getitem__(self, slot: Int32s) -> Int64s:
        while not self._writes and self._later:
            self._later.pop()()
        return super().__getitem__(slot)


@pytest.mark.parametrize(
    ("user", "events", "intact"),
    [
        (1, SLACK, True),  # just as many as the slack takes
        (1, SLACK + 1, False),
        (2, 1, False),  # evicts user 1
    ],
)
def test_a_row_overwritten_while_it_is_read_is_not_intact(
    user: int, events: int, intact: bool
) -> None:
    with closing(a_slab(users=1)) as slab, closing(HistorySlab.attach(slab.address)) as reader:
        append(slab, [1] * 100, [7] * 100)
        columns = reader._open
        hurried = WrittenAfterFirstLook(
            columns.count, lambda: append(slab, [user] * events, [9] * events)
        )
        reader._columns = replace(columns, count=cast(Int64s, hurried))
        del columns
        windows = reader.windows(*places(slot=0, end=100), 4)
        assert windows.intact.tolist() == [intact]
        assert windows.item.tolist() == [[7] * 4] or not intact


def test_what_was_overwritten_before_is_missing() -> None:
    with closing(a_slab()) as slab:
        append(slab, [1] * 4, [1, 2, 3, 4])
        for _ in range(2):
            append(slab, [1] * SLACK, [9] * SLACK)
        assert slab.windows(*places(slot=0, end=4), 4).item.tolist() == [[NO_KEY] * 4]


def test_a_window_of_a_forgotten_history_is_not_intact() -> None:
    with closing(a_slab(users=1)) as slab:
        slot, ordinal = append(slab, [1] * 4, [1, 2, 3, 4])
        append(slab, [2, 2], [5, 6])
        append(slab, [1], [7])  # back in the same slot, with a shorter history than before
        assert not slab.windows(slot[-1:], ordinal[-1:], 4).intact.any()


def test_a_window_is_limited_to_what_came_before_its_end() -> None:
    with closing(a_slab()) as slab:
        slot, _ = append(slab, [1] * 4, [1, 2, 3, 4])
        assert slab.windows(*places(slot[0], 2), 3).item.tolist() == [[1, 2, NO_KEY]]
        assert slab.windows(*places(slot[0], 0), 3).item.tolist() == [[NO_KEY] * 3]


def test_what_is_not_kept_finds_its_place_and_leaves_none() -> None:
    with closing(a_slab()) as slab:
        users, items = np.array([1, 1, 2, 1], np.int64), np.array([5, 6, 7, 8], np.int64)
        keep = np.array([True, False, False, True])
        slot, ordinal = slab.append(users, items, np.zeros(4, np.uint8), items, items, keep)
        assert ordinal.tolist() == [0, 1, 0, 1]
        assert slab.windows(slot, ordinal, 4).item.tolist() == [
            [NO_KEY] * 4, [5, NO_KEY, NO_KEY, NO_KEY], [NO_KEY] * 4, [5, NO_KEY, NO_KEY, NO_KEY],
        ]  # fmt: skip
        assert slab.counts(slot).tolist() == [2, 2, 0, 2]


def test_another_process_reads_it_and_leaves_it_in_place() -> None:
    processes = multiprocessing.get_context("spawn")
    with closing(a_slab()) as slab:
        slot, _ = append(slab, [1, 2, 1], [5, 6, 7])
        answers, child_end = processes.Pipe(duplex=False)
        reader = processes.Process(
            target=send_windows, args=(slab.address, int(slot[0]), 2, child_end)
        )
        reader.start()
        assert answers.poll(60)
        assert answers.recv() == (2, [[5, 7, NO_KEY, NO_KEY]], [True])
        reader.join(60)
        assert reader.exitcode == 0
        HistorySlab.attach(slab.address).close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.integers()), max_size=20),
        max_size=6,
    )
)
def test_codes_stand_beside_their_events(batches: list[list[tuple[int, bool, int]]]) -> None:
    """The codes are those of their event's item, the gap that of the time before."""
    features, last, item = ("hour", "gap", "category:a"), dict[int, int](), 0
    gaps: dict[int, int] = {}
    with closing(a_slab(USERS, EVENTS, features=features)) as slab:
        for batch in batches:
            if not batch:
                continue
            users, kept = (np.array([one[i] for one in batch]) for i in (0, 1))
            items = np.arange(item + 1, item + 1 + len(batch))
            item += len(batch)
            time = items * 1000
            codes = np.stack([items, np.zeros_like(items), -items], axis=1).astype(np.int32)
            kind = np.zeros(len(batch), np.uint8)
            slot, ordinal = slab.append(users, items, kind, time, time, kept, codes)
            for user, number, stays in zip(users.tolist(), items.tolist(), kept, strict=True):
                if stays:
                    gaps[number] = 1 + number - last[user] if user in last else 0
                    last[user] = number
            windows = slab.windows(slot, ordinal, EVENTS)
            found = windows.item.ravel()
            expected = [[one, gaps.get(one, 0), -one] for one in found.tolist()]
            assert windows.codes.reshape(-1, 3).tolist() == expected
            own = slab.codes(slot[kept], ordinal[kept])
            assert own[:, 0].tolist() == items[kept].tolist()


def test_without_features_a_slab_is_laid_out_as_ever() -> None:
    bounds = HistorySettings(users=10, events=6)
    assert slab_bytes(bounds) == 8 + 10 * (16 + 70 * 25)
    assert slab_bytes(bounds, features=2) == slab_bytes(bounds) + 10 * 70 * 2 * 4
    with closing(a_slab()) as slab:
        slot, ordinal = append(slab, [1], [5])
        assert slab.windows(slot, ordinal + 1, 4).codes.shape == (1, 4, 0)


def test_a_reader_finds_the_codes() -> None:
    with closing(a_slab(features=("hour",))) as slab:
        one = np.array([1], np.int64)
        slot, ordinal = slab.append(
            one, one, np.array([3], np.uint8), one, one, codes=np.array([[7]], np.int32)
        )
        with closing(HistorySlab.attach(slab.address)) as reader:
            assert reader.windows(slot, ordinal + 1, 2).codes.tolist() == [[[7], [0]]]


def test_close_removes_the_segment() -> None:
    slab = a_slab()
    slab.close()
    with pytest.raises(FileNotFoundError):
        HistorySlab.attach(slab.address)
    with pytest.raises(ValueError, match="closed"):
        _ = slab.used


@pytest.mark.parametrize("users", [10**7, 10**12])
def test_too_little_shared_memory_is_an_error_of_configuration(
    users: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=64_000_000))
    with pytest.raises(ConfigurationError, match=r"lower history\.users"):
        HistorySlab.create(Partition(0), HistorySettings(users=users, events=128))


def test_what_was_turned_down_is_remembered_but_stands_in_no_window() -> None:
    settings = HistorySettings(users=4, events=6)
    items = np.arange(1, 8)
    kinds = np.array([0, 2, 0, 2, 2, 0, 2], np.uint8)
    with closing(HistorySlab.create(Partition(0), settings, negative=(2,))) as slab:
        slot, ordinal = slab.append(np.full(7, 9), items, kinds, 10 * items, 100 * items)
        windows = slab.windows(slot[-1:], ordinal[-1:] + 1, 5)
        every = slab.all_windows(slot[-1:], ordinal[-1:] + 1, 5)
        kept, kept_ordinal, turned_down = slab.remembered(slot[-1:], ordinal[-1:] + 1)
    assert windows.item.tolist() == [[3, 6, NO_KEY, NO_KEY, NO_KEY]]
    assert windows.time.tolist() == [[30, 60, 0, 0, 0]]
    assert windows.offset.tolist() == [[300, 600, -1, -1, -1]]
    assert every.item.tolist() == [[3, 4, 5, 6, 7]]
    assert every.kind.tolist() == [[0, 2, 2, 0, 2]]
    assert set(kept[kept_ordinal >= 0].tolist()) == {2, 3, 4, 5, 6, 7}
    assert set(kept[turned_down].tolist()) == {2, 4, 5, 7}


def remembered(slab: HistorySlab, user: int) -> list[int]:
    """Items of a user's history, oldest first; found by the key, as any reader does."""
    slot = np.flatnonzero(slab.users(np.arange(slab.used, dtype=np.int32)) == user).astype(np.int32)
    windows = slab.windows(slot, slab.counts(slot), EVENTS)
    return [int(item) for item in windows.item.ravel() if item != NO_KEY]


class TestErase:
    def test_nothing_of_the_user_is_left_and_others_are_as_they_were(self) -> None:
        with closing(a_slab(users=4)) as slab:
            append(slab, [1, 2, 1], [5, 6, 7])
            slab.erase(1, Offset(8))
            assert remembered(slab, 1) == []
            assert remembered(slab, 2) == [6]
            assert (slab.known, slab.used, slab.evicted) == (1, 2, 0)
            key = (5).to_bytes(8, "little")
            assert slab._memory.buf is not None
            assert key not in bytes(slab._memory.buf)
            assert slab.since(Offset(0)).tolist() == [1]

    def test_what_comes_later_begins_a_new_history(self) -> None:
        with closing(a_slab(users=4)) as slab:
            append(slab, [1, 1], [5, 6])
            slab.erase(1, Offset(7))
            _, ordinal = append(slab, [1, 1], [8, 9])
            assert ordinal.tolist() == [0, 1]
            assert remembered(slab, 1) == [8, 9]

    def test_a_history_that_began_later_stays_when_the_erasure_is_read_again(self) -> None:
        with closing(a_slab(users=4)) as slab:
            append(slab, [1, 1], [8, 9])
            slab.erase(1, Offset(7))
            assert remembered(slab, 1) == [8, 9]

    def test_a_user_of_whom_nothing_is_known_leaves_only_the_note_for_snapshots(self) -> None:
        with closing(a_slab(users=4)) as slab:
            append(slab, [2], [5])
            slab.erase(1, Offset(7))
            assert slab.erased == {1: 7}
            assert (slab.known, remembered(slab, 2)) == (1, [5])

    def test_freed_slots_are_taken_before_anybody_is_evicted(self) -> None:
        with closing(a_slab(users=3)) as slab:
            append(slab, [1, 2, 3], [1, 2, 3])
            slab.erase(2, Offset(4))
            slot, ordinal = append(slab, [4], [5])
            assert (slot.tolist(), ordinal.tolist()) == ([1], [0])
            assert (slab.evicted, slab.known) == (0, 3)
            append(slab, [5], [6])
            assert (slab.evicted, slab.known) == (1, 3)
            assert [remembered(slab, user) for user in (1, 3, 4, 5)] == [[], [3], [5], [6]]

    def test_a_row_erased_while_it_is_read_is_not_intact(self) -> None:
        with closing(a_slab()) as slab, closing(HistorySlab.attach(slab.address)) as reader:
            append(slab, [1] * 4, [1, 2, 3, 4])
            columns = reader._open
            hurried = WrittenAfterFirstLook(columns.count, lambda: slab.erase(1, Offset(5)))
            reader._columns = replace(columns, count=cast(Int64s, hurried))
            del columns
            assert not reader.windows(*places(slot=0, end=4), 4).intact.any()

    @pytest.mark.parametrize("late", [False, True], ids=["at once", "while it is copied"])
    @pytest.mark.parametrize("back", [0, 1, 4, 6], ids=str)
    def test_a_copy_for_a_snapshot_has_nothing_of_it_however_soon_the_user_is_back(
        self, back: int, late: bool
    ) -> None:
        with closing(a_slab(users=1)) as slab, closing(HistorySlab.attach(slab.address)) as reader:
            append(slab, [1] * 4, [1, 2, 3, 4])
            columns = reader._open

            def come_back() -> None:
                append(slab, [1] * back, list(range(6, 6 + back)))

            def write() -> None:
                slab.erase(1, Offset(5))
                if not late:
                    come_back()

            hurried = WrittenAfterFirstLook(columns.count, write)
            if late:
                hurried = WrittenBetweenLooks(columns.count, write, come_back)
            reader._columns = replace(columns, count=cast(Int64s, hurried))
            del columns
            copied = reader.copied(np.zeros(1, np.int32), Offset(5))
            assert len(copied) == 0
