"""What a snapshot promises: the histories at its offset, or nothing, whatever happened since."""

import errno
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain import NO_KEY, Int64s, Offset, Partition, Reached
from service.errors import DamagedSnapshotError, SnapshotCancelledError, TransientError
from service.state.histories import NOWHERE, SLACK, HistorySlab
from service.state.snapshot_parts import UserHistories, decode, encode
from service.state.snapshots import (
    MANIFEST_FILE,
    SEEN_FILE,
    PartRecord,
    Snapshot,
    SnapshotManifest,
    Snapshots,
    next_base,
    to_remove,
)
from service.storage.store import Store
from tests.state.examples import a_slab, append
from tests.storage.damage import Harm, cut, flipped, harmed

USERS, EVENTS = 8, 4
TOPIC, GROUP = "events", "a group/of ours"
FOLDER = "events@a%20group%2Fof%20ours"
NEVER = threading.Event()
END = Offset(10**9)
NAMES = [f"{number:020d}-00000000" for number in range(4)]


def a_store(folder: Path, keep: int = 3, kinds: tuple[str, ...] = ("view", "buy")) -> Snapshots:
    return Snapshots(Store(str(folder)), TOPIC, GROUP, kinds, (), keep)


def reached(applied: int) -> Reached:
    return Reached(Offset(applied), Offset(applied))


def write(folder: Path, slab: HistorySlab, applied: int) -> Snapshot:
    written = a_store(folder).write(slab, reached(applied), NEVER)
    assert written is not None
    return written


@pytest.fixture
def slab() -> Iterator[HistorySlab]:
    with closing(a_slab(USERS, EVENTS)) as made:
        yield made


@pytest.fixture
def other() -> Iterator[HistorySlab]:
    with closing(a_slab(USERS, EVENTS)) as made:
        yield made


def histories(slab: HistorySlab) -> dict[int, list[int]]:
    """The remembered items of each user, oldest first."""
    slot = np.arange(slab.used, dtype=np.int32)
    windows = slab.windows(slot, slab.counts(slot), EVENTS)
    return {
        int(user): [int(item) for item in row if item]
        for user, row in zip(slab.users(slot).tolist(), windows.item, strict=True)
        if user != NO_KEY
    }


def feed(slab: HistorySlab, users: list[int], start: int) -> None:
    """Events whose item and offset are their number from `start` on, one batch an event."""
    for number, user in enumerate(users, start):
        append(slab, [user], [number])


@settings(max_examples=60, deadline=None)
@given(
    before=st.lists(st.integers(1, USERS + 4), max_size=40),
    between=st.lists(st.integers(1, USERS + 4), max_size=40),
    after=st.lists(st.integers(1, USERS + 4), max_size=40),
    again=st.integers(1, 80),
)
def test_with_what_followed_it_is_what_an_uninterrupted_slab_has(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[int],
    between: list[int],
    after: list[int],
    again: int,
) -> None:
    """Also where users were evicted, and some of whom are read again."""
    folder = tmp_path_factory.mktemp("snapshots")
    first, second, end = (
        1 + len(before),
        1 + len(before + between),
        1 + len(before + between + after),
    )
    with closing(a_slab(USERS, EVENTS)) as slab, closing(a_slab(USERS, EVENTS)) as restored:
        feed(slab, before, 1)
        a_store(folder).write(slab, reached(first), NEVER)
        # Late: what came since must not be in it.
        feed(slab, between + after, first)
        a_store(folder).write(slab, reached(second), NEVER)

        a_store(folder).restore(restored, END)
        assert restored.applied == second
        # Some that it has already are read again, as training is behind.
        again = min(again, second)
        feed(restored, (before + between + after)[again - 1 :], again)

        assert histories(restored) == histories(slab)
        slot = np.arange(restored.used, dtype=np.int32)
        assert restored.newest(slot).max(initial=-1) == (end - 1 if end > 1 else -1)


def test_of_an_erased_user_what_is_read_again_takes_nobodys_place(
    slab: HistorySlab, other: HistorySlab, tmp_path: Path
) -> None:
    feed(slab, list(range(1, USERS + 1)), 1)  # no slot is left
    slab.erase(USERS, Offset(USERS + 1))
    feed(slab, [100], USERS + 2)
    write(tmp_path, slab, USERS + 3)
    a_store(tmp_path).restore(other, END)
    assert other.known == USERS

    slot, ordinal = append(other, [USERS, 1], [USERS, USERS + 3])

    assert histories(other) == {**histories(slab), 1: [1, USERS + 3]}
    assert ordinal.tolist() == [NOWHERE, 1]
    for end in (ordinal, ordinal + 1):  # before it, and after
        assert not other.windows(slot, end, EVENTS).item[0].any()
        assert not other.remembered(slot, end)[0][0].any()


def test_events_that_it_has_already_find_the_place_that_they_had(
    slab: HistorySlab, other: HistorySlab, tmp_path: Path
) -> None:
    feed(slab, [1, 2, 1, 1], 10)
    write(tmp_path, slab, 14)
    a_store(tmp_path).restore(other, END)

    slot, ordinal = append(other, [1, 2, 1, 1, 1], [10, 11, 12, 13, 14])

    assert other.users(slot).tolist() == [1, 2, 1, 1, 1]
    assert ordinal.tolist() == [0, 0, 1, 2, 3]
    windows = other.windows(slot, ordinal, EVENTS)
    assert windows.item[3].tolist() == [10, 12, 0, 0]
    assert windows.item[4].tolist() == [10, 12, 13, 0]


def test_evicts_after_a_restore_whom_it_would_have_evicted_before(
    slab: HistorySlab, other: HistorySlab, tmp_path: Path
) -> None:
    feed(slab, [*range(1, USERS + 1), 1], 1)  # 2 is the longest idle now
    write(tmp_path, slab, 10)
    a_store(tmp_path).restore(other, END)
    for one in (slab, other):
        feed(one, [100], 10)
        assert 2 not in histories(one)
        assert len(histories(one)) == USERS


def test_a_delta_holds_only_whom_events_touched(slab: HistorySlab, tmp_path: Path) -> None:
    feed(slab, list(range(1, USERS + 1)), 1)
    base = write(tmp_path, slab, 9)
    feed(slab, [3], 9)
    delta = write(tmp_path, slab, 10)
    feed(slab, [4], 10)
    later = write(tmp_path, slab, 11)

    assert base.manifest.base is None
    assert delta.manifest.base == later.manifest.base == base.name
    assert (base.manifest.users, delta.manifest.users, later.manifest.users) == (8, 1, 2)


def test_nothing_new_is_not_written(slab: HistorySlab, tmp_path: Path) -> None:
    feed(slab, [1], 1)
    write(tmp_path, slab, 2)
    assert a_store(tmp_path).write(slab, reached(2), NEVER) is None


def test_a_full_one_follows_when_half_the_users_have_changed() -> None:
    base = snapshot(NAMES[0], users=10)
    assert next_base(None, None, 3) is None
    assert next_base(base, base, 5) is base
    assert next_base(base, base, 6) is None
    assert next_base(snapshot(NAMES[1], base=NAMES[2]), None, 1) is None


def snapshot(name: str, users: int = 1, base: str | None = None) -> Snapshot:
    manifest = SnapshotManifest(
        topic=TOPIC,
        partition=Partition(0),
        offset=Offset(1),
        base=base,
        kinds=[],
        features=[],
        parts=[PartRecord(sha256="0" * 64, users=users, bytes=1)],
        created_at=0,
    )
    return Snapshot(name, manifest)


def test_keeps_what_the_newest_stand_on() -> None:
    a, b, c, d = NAMES
    found = [snapshot(a), snapshot(b, base=a), snapshot(c), snapshot(d, base=c)]
    assert [one.name for one in to_remove(found, 1)] == [a, b]
    assert [one.name for one in to_remove(found, 3)] == []
    assert [one.name for one in to_remove(found[:3], 1)] == [a, b]


def test_those_that_are_kept_do_not_all_stand_on_one() -> None:
    a, b, c, d = NAMES
    found = [snapshot(a), snapshot(b, base=a), snapshot(c), snapshot(d, base=c)]
    assert [one.name for one in to_remove(found, 2)] == []
    found = [snapshot(a), snapshot(b), snapshot(c, base=b), snapshot(d, base=b)]
    assert [one.name for one in to_remove(found, 2)] == []
    assert [one.name for one in to_remove([snapshot("0"), *found], 2)] == ["0"]


def test_removes_what_is_not_kept(slab: HistorySlab, tmp_path: Path) -> None:
    store = a_store(tmp_path, keep=1)
    for number in range(1, 20):
        feed(slab, [1], number)
        store.write(slab, reached(number + 1), NEVER)
    assert len(list((tmp_path / FOLDER / "00000").iterdir())) <= 2


@pytest.mark.parametrize("harm", [cut, flipped])
def test_damage_anywhere_falls_back_to_the_one_before(
    slab: HistorySlab, tmp_path: Path, harm: Harm
) -> None:
    feed(slab, list(range(1, USERS + 1)), 1)
    write(tmp_path, slab, 9)
    older = histories(slab)
    feed(slab, [3, 4, 5], 9)
    newest = write(tmp_path, slab, 12)
    folder = tmp_path / FOLDER / "00000" / newest.name
    for file in folder.iterdir():
        whole = file.read_bytes()
        for data in harmed(whole, harm):
            file.write_bytes(data)
            with closing(a_slab(USERS, EVENTS)) as restored:
                found = a_store(tmp_path).restore(restored, END)
                assert found is not None
                assert found.manifest.offset == restored.applied == 9
                assert histories(restored) == older
        file.write_bytes(whole)
    with closing(a_slab(USERS, EVENTS)) as restored:
        assert a_store(tmp_path).restore(restored, END) is not None
        assert histories(restored) == histories(slab)


def test_damaged_ones_are_counted_until_they_are_removed(slab: HistorySlab, tmp_path: Path) -> None:
    feed(slab, list(range(1, USERS + 1)), 1)
    written = write(tmp_path, slab, 9)
    (part,) = (tmp_path / FOLDER / "00000" / written.name).glob("*.safetensors")
    part.write_bytes(b"")
    store = a_store(tmp_path)
    with closing(a_slab(USERS, EVENTS)) as restored:
        assert store.restore(restored, END) is None
    assert store.damaged(Partition(0)) == 1
    assert store.damaged(Partition(1)) == 0
    feed(slab, [3], 9)
    store.write(slab, reached(10), NEVER)
    assert store.damaged(Partition(0)) == 0


@pytest.mark.parametrize("harm", [cut, flipped])
def test_damage_anywhere_in_a_base_takes_its_delta_along(
    slab: HistorySlab, tmp_path: Path, harm: Harm
) -> None:
    feed(slab, list(range(1, USERS + 1)), 1)
    base = write(tmp_path, slab, 9)
    feed(slab, [3, 4, 5], 9)
    write(tmp_path, slab, 12)
    for file in (tmp_path / FOLDER / "00000" / base.name).iterdir():
        whole = file.read_bytes()
        for data in harmed(whole, harm):
            file.write_bytes(data)
            with closing(a_slab(USERS, EVENTS)) as restored:
                assert a_store(tmp_path).restore(restored, END) is None
                assert (restored.used, restored.applied) == (0, 0)
        file.write_bytes(whole)
    with closing(a_slab(USERS, EVENTS)) as restored:
        assert a_store(tmp_path).restore(restored, END) is not None
        assert histories(restored) == histories(slab)


class TestEventIdsThatCameLast:
    SEEN: ClassVar = {"hash": np.array([7, -8]), "offset": np.array([3, 4])}

    def snapshot(self, folder: Path, slab: HistorySlab) -> Snapshot:
        written = a_store(folder).write(slab, reached(5), NEVER, self.SEEN)
        assert written is not None
        return written

    def test_lie_beside_the_histories(self, slab: HistorySlab, tmp_path: Path) -> None:
        seen = a_store(tmp_path).seen(self.snapshot(tmp_path, slab))
        assert seen is not None
        assert {name: column.tolist() for name, column in seen.items()} == {
            "hash": [7, -8],
            "offset": [3, 4],
        }

    def test_may_be_none(self, slab: HistorySlab, tmp_path: Path) -> None:
        assert a_store(tmp_path).seen(write(tmp_path, slab, 5)) is None

    @pytest.mark.parametrize("harm", [cut, flipped])
    def test_damaged_anywhere_they_are_refused(
        self, slab: HistorySlab, tmp_path: Path, harm: Harm
    ) -> None:
        written = self.snapshot(tmp_path, slab)
        file = tmp_path / FOLDER / "00000" / written.name / SEEN_FILE
        whole = file.read_bytes()
        for data in harmed(whole, harm):
            file.write_bytes(data)
            with pytest.raises(DamagedSnapshotError):
                a_store(tmp_path).seen(written)
        file.unlink()
        with pytest.raises(DamagedSnapshotError):
            a_store(tmp_path).seen(written)


def test_without_its_base_a_delta_is_passed_over(
    slab: HistorySlab, other: HistorySlab, tmp_path: Path
) -> None:
    feed(slab, [1, 2, 3, 4], 1)
    base = write(tmp_path, slab, 5)
    feed(slab, [1], 5)
    write(tmp_path, slab, 6)
    (tmp_path / FOLDER / "00000" / base.name / MANIFEST_FILE).unlink()
    assert a_store(tmp_path).restore(other, END) is None
    assert (other.used, other.applied) == (0, 0)


@pytest.mark.parametrize("which", ["base", "delta"])
def test_nothing_more_stands_on_what_was_found_damaged(
    slab: HistorySlab, other: HistorySlab, tmp_path: Path, which: str
) -> None:
    feed(slab, list(range(1, USERS + 1)), 1)
    base = write(tmp_path, slab, 9)
    feed(slab, [3], 9)
    delta = write(tmp_path, slab, 10)
    (file,) = (tmp_path / FOLDER / "00000" / (base if which == "base" else delta).name).glob(
        "part*"
    )
    file.write_bytes(b"")
    store = a_store(tmp_path)
    found = store.restore(other, END)
    assert (found is None) is (which == "base")
    feed(other, list(range(1, USERS + 1)), 1)  # read again
    feed(other, [3], 9)
    written = store.write(other, reached(10), NEVER)  # the same offset as the damaged one's
    assert written is not None
    with closing(a_slab(USERS, EVENTS)) as restored:
        found = a_store(tmp_path).restore(restored, END)
        assert found is not None
        assert found.name == written.name
        assert histories(restored) == histories(other)


def test_nothing_stands_on_one_of_a_topic_that_was_made_anew(
    slab: HistorySlab, other: HistorySlab, tmp_path: Path
) -> None:
    feed(slab, [1, 2], 1)
    write(tmp_path, slab, 100)
    store = a_store(tmp_path)
    assert store.restore(other, Offset(3)) is None
    feed(other, [5], 1)
    written = store.write(other, reached(2), NEVER)
    assert written is not None
    assert written.manifest.base is None


def test_what_a_crash_left_unfinished_is_removed_with_the_next(
    slab: HistorySlab, tmp_path: Path
) -> None:
    feed(slab, [1, 2], 1)
    first = write(tmp_path, slab, 3)
    place = tmp_path / FOLDER / "00000"
    (place / f"{2:020d}-0a0a0a0a").mkdir()
    (place / f"{99:020d}-0a0a0a0a").mkdir()  # someone else's, who is ahead of us
    (place / f".{2:020d}-0b0b0b0b.0123").mkdir()
    unreadable = place / f"{1:020d}-0c0c0c0c"
    unreadable.mkdir()
    (unreadable / MANIFEST_FILE).write_text("of another release")
    feed(slab, [1], 3)
    second = write(tmp_path, slab, 4)
    assert folders(tmp_path) == [
        unreadable.name,
        first.name,
        second.name,
        f"{99:020d}-0a0a0a0a",
    ]


def test_one_past_the_end_of_the_log_is_of_another_topic(
    slab: HistorySlab, other: HistorySlab, tmp_path: Path
) -> None:
    feed(slab, [1], 1)
    write(tmp_path, slab, 2)
    assert a_store(tmp_path).restore(other, Offset(1)) is None
    assert a_store(tmp_path).restore(other, Offset(2)) is not None


def test_kinds_are_known_by_name(slab: HistorySlab, tmp_path: Path) -> None:
    numbers = np.array([1, 2, 3])
    slab.append(np.array([7, 7, 8]), numbers, np.array([0, 1, 0], np.uint8), numbers, numbers)
    write(tmp_path, slab, 4)
    with closing(a_slab(USERS, EVENTS)) as restored:
        a_store(tmp_path, kinds=("buy", "like")).restore(restored, END)
        assert histories(restored) == {7: [2]}
        slot = np.array([0], np.int32)
        assert restored.windows(slot, np.array([1]), EVENTS).kind[0, 0] == 0


def test_smaller_histories_keep_the_last_events_of_the_most_recent_users(
    slab: HistorySlab, tmp_path: Path
) -> None:
    feed(slab, [1, 2, 3, 3, 3], 1)
    write(tmp_path, slab, 6)
    with closing(a_slab(2, 2)) as smaller:
        a_store(tmp_path).restore(smaller, END)
        slot = np.arange(2, dtype=np.int32)
        kept = smaller.windows(slot, smaller.counts(slot), 4)
        assert smaller.users(slot).tolist() == [3, 2]
        assert kept.item.tolist() == [[4, 5, 0, 0], [2, 0, 0, 0]]


def test_features_are_known_by_name(tmp_path: Path) -> None:
    numbers: Int64s = np.array([1])
    codes = np.array([[5, 6]], np.int32)
    with (
        closing(a_slab(USERS, EVENTS, features=("a", "b"))) as slab,
        closing(a_slab(USERS, EVENTS, features=("c", "b"))) as restored,
    ):
        slab.append(numbers, numbers, np.zeros(1, np.uint8), numbers, numbers, None, codes)
        store = Store(str(tmp_path))
        Snapshots(store, TOPIC, GROUP, ("view",), ("a", "b"), 3).write(slab, reached(2), NEVER)
        Snapshots(store, TOPIC, GROUP, ("view",), ("c", "b"), 3).restore(restored, END)
        window = restored.windows(np.zeros(1, np.int32), numbers, 1)
        assert window.codes.tolist() == [[[0, 6]]]


def test_one_that_is_cancelled_or_fails_leaves_nothing(
    slab: HistorySlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(slab, [1], 1)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(SnapshotCancelledError):
        a_store(tmp_path).write(slab, reached(2), cancel)

    store = Store(str(tmp_path))
    written = []

    def full(data: bytes, *name: str) -> None:
        written.append(name)
        if name[-1] == MANIFEST_FILE:
            raise OSError("no space")

    monkeypatch.setattr(store, "write", full)
    with pytest.raises(OSError, match="no space"):
        Snapshots(store, TOPIC, GROUP, ("view",), (), 3).write(slab, reached(2), NEVER)
    assert len(written) == 2
    assert not [one for one in tmp_path.glob("*/*/*") if not one.name.startswith(".")]


class Away(Store):
    """A storage that does not give `file`, so many times."""

    def __init__(self, folder: Path, file: str, times: int) -> None:
        super().__init__(str(folder))
        self.file, self.times = file, times

    def read(self, *name: str) -> bytes:
        if name[-1] == self.file and self.times:
            self.times -= 1
            raise OSError(errno.ESTALE, "stale file handle")
        return super().read(*name)


@pytest.mark.parametrize("file", [MANIFEST_FILE, "part-00000.safetensors"])
def test_one_that_cannot_be_read_just_now_is_not_damaged(
    file: str,
    slab: HistorySlab,
    other: HistorySlab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.storage.files._READ_AFTER_S", (0.0,))
    feed(slab, [1, 2], 1)
    write(tmp_path, slab, 3)

    away = Away(tmp_path, file, times=2)
    snapshots = Snapshots(away, TOPIC, GROUP, ("view", "buy"), (), 3)
    with pytest.raises(TransientError, match=r"stale file handle.*\n?.*remove its folder"):
        snapshots.restore(other, END)
    assert snapshots.damaged(Partition(0)) == 0

    away.times = 1
    assert snapshots.restore(other, END) is not None
    assert histories(other) == histories(slab)


def test_a_user_with_more_events_since_than_are_remembered_is_right_once_they_are_applied(
    slab: HistorySlab, other: HistorySlab, tmp_path: Path
) -> None:
    feed(slab, [1, 2, 1], 1)
    feed(slab, [1] * (SLACK + EVENTS + 5), 4)
    write(tmp_path, slab, 4)
    a_store(tmp_path).restore(other, END)
    feed(other, [1] * (SLACK + EVENTS + 5), 4)
    assert histories(other) == histories(slab)


def test_forgets_a_partition(slab: HistorySlab, other: HistorySlab, tmp_path: Path) -> None:
    feed(slab, [1], 1)
    write(tmp_path, slab, 2)
    a_store(tmp_path).forget(Partition(0))
    assert a_store(tmp_path).restore(other, END) is None


def folders(folder: Path) -> list[str]:
    return sorted(one.name for one in (folder / FOLDER / "00000").iterdir())


def users_in(folder: Path) -> set[int]:
    """Of all snapshots on the storage."""
    parts = (folder / FOLDER / "00000").glob("*/part-*")
    return {user for part in parts for user in decode(part.read_bytes()).user.tolist()}


class TestErased:
    def test_the_next_one_is_full_and_those_that_hold_the_user_go(
        self, slab: HistorySlab, other: HistorySlab, tmp_path: Path
    ) -> None:
        feed(slab, list(range(1, USERS + 1)), 1)
        write(tmp_path, slab, 9)
        feed(slab, [3], 9)
        write(tmp_path, slab, 10)
        slab.erase(3, Offset(10))

        written = write(tmp_path, slab, 11)

        assert written.manifest.base is None
        assert folders(tmp_path) == [written.name]
        assert users_in(tmp_path) == set(range(1, USERS + 1)) - {3}
        assert slab.erased == {}
        a_store(tmp_path).restore(other, END)
        assert 3 not in histories(other)
        assert len(histories(other)) == USERS - 1

    def test_where_only_a_delta_holds_the_user_its_base_stays(
        self, slab: HistorySlab, tmp_path: Path
    ) -> None:
        feed(slab, [1, 2, 3, 4], 1)
        base = write(tmp_path, slab, 5)
        feed(slab, [5], 5)
        write(tmp_path, slab, 6)
        slab.erase(5, Offset(6))
        written = write(tmp_path, slab, 7)
        assert written.manifest.base == base.name
        assert folders(tmp_path) == [base.name, written.name]
        assert users_in(tmp_path) == {1, 2, 3, 4}

    def test_where_none_holds_the_user_nothing_else_is_written_or_removed(
        self, slab: HistorySlab, tmp_path: Path
    ) -> None:
        feed(slab, [1, 2, 3, 4], 1)
        base = write(tmp_path, slab, 5)
        slab.erase(9, Offset(5))
        assert write(tmp_path, slab, 6).manifest.base == base.name
        assert base.name in folders(tmp_path)
        assert slab.erased == {}

    def test_whoever_came_back_later_is_held_rightly(
        self, slab: HistorySlab, tmp_path: Path
    ) -> None:
        feed(slab, [1, 2, 3, 4], 1)
        slab.erase(1, Offset(5))
        feed(slab, [1], 6)
        first = write(tmp_path, slab, 7)
        slab.erase(1, Offset(5))  # as it is read again
        assert a_store(tmp_path).write(slab, reached(7), NEVER) is None
        assert folders(tmp_path) == [first.name]
        assert users_in(tmp_path) == {1, 2, 3, 4}

    def test_one_that_was_begun_before_it_is_replaced_too(
        self, slab: HistorySlab, tmp_path: Path
    ) -> None:
        feed(slab, [1, 2, 3, 4], 1)
        before = write(tmp_path, slab, 5)
        slab.erase(1, Offset(7))
        begun = a_store(tmp_path).write(slab, reached(6), NEVER)  # as of before the erasure
        assert begun is not None
        assert slab.erased == {1: 7}
        written = write(tmp_path, slab, 8)
        assert slab.erased == {}
        assert before.name not in folders(tmp_path)
        assert written.name in folders(tmp_path)

    def test_what_another_owner_wrote_further_on_stays(
        self, slab: HistorySlab, other: HistorySlab, tmp_path: Path
    ) -> None:
        feed(slab, [1, 2], 1)
        slab.erase(1, Offset(3))  # and then we were held up while another went on
        feed(other, [2], 4)
        theirs = write(tmp_path, other, 9)
        ours = write(tmp_path, slab, 4)
        assert folders(tmp_path) == [ours.name, theirs.name]

    def test_what_is_of_a_topic_made_anew_goes(
        self, slab: HistorySlab, other: HistorySlab, tmp_path: Path
    ) -> None:
        feed(other, [1, 2], 1)
        write(tmp_path, other, 90)
        store = a_store(tmp_path)
        assert store.restore(slab, Offset(5)) is None
        feed(slab, [2], 1)
        slab.erase(1, Offset(3))
        written = store.write(slab, reached(4), NEVER)
        assert written is not None
        assert folders(tmp_path) == [written.name]

    def test_what_was_not_finished_or_is_damaged_goes_too(
        self, slab: HistorySlab, tmp_path: Path
    ) -> None:
        feed(slab, [1, 2], 1)
        unfinished = write(tmp_path, slab, 3)
        feed(slab, [1], 3)
        damaged = write(tmp_path, slab, 4)
        folder = tmp_path / FOLDER / "00000"
        (folder / unfinished.name / MANIFEST_FILE).unlink()
        (folder / damaged.name / "part-00000.safetensors").write_bytes(b"")
        slab.erase(2, Offset(4))
        written = write(tmp_path, slab, 5)
        assert folders(tmp_path) == [written.name]

    def test_a_crash_before_the_old_ones_are_removed_leaves_that_to_the_next(
        self, slab: HistorySlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        feed(slab, [1, 2], 1)
        old = write(tmp_path, slab, 3)
        slab.erase(2, Offset(3))
        with monkeypatch.context() as patched:
            patched.setattr(Store, "remove", lambda *_: None)
            new = write(tmp_path, slab, 4)
        assert folders(tmp_path) == [old.name, new.name]
        with closing(a_slab(USERS, EVENTS)) as restarted:
            a_store(tmp_path).restore(restarted, END)
            assert set(histories(restarted)) == {1}
            assert a_store(tmp_path).write(restarted, reached(4), NEVER) is None
        assert folders(tmp_path) == [new.name]

    def test_read_again_after_a_restart_it_is_as_it_was(
        self, slab: HistorySlab, other: HistorySlab, tmp_path: Path
    ) -> None:
        feed(slab, [1, 2, 1], 1)
        slab.erase(1, Offset(4))
        feed(slab, [1, 2], 5)
        write(tmp_path, slab, 7)
        a_store(tmp_path).restore(other, END)

        feed(other, [1, 2, 1], 1)
        other.erase(1, Offset(4))
        feed(other, [1, 2], 5)

        assert histories(other) == histories(slab) == {1: [5], 2: [2, 6]}


class TestParts:
    def test_give_back_what_they_got_at_any_width(self) -> None:
        for largest in (1, 2**8, 2**16, 2**40):
            part = UserHistories(
                np.array([-5, 7]),
                np.array([2, 1]),
                np.array([9, -(2**60), 9]),
                np.array([10**12, 10**12 + largest, 10**12]),
                np.array([0, largest, 3]),
                np.array([0, 255, 1], np.uint8),
                np.zeros((3, 0), np.int32),
            )
            again = decode(encode(part))
            for column in UserHistories.__dataclass_fields__:
                assert getattr(again, column).tolist() == getattr(part, column).tolist()

    def test_refuse_what_they_are_not(self) -> None:
        with pytest.raises(DamagedSnapshotError):
            decode(b"no safetensors")
