from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import Int64s, no_codes
from service.settings import HoldoutSettings
from service.trainer.holdout import (
    HoldoutRows,
    admit,
    capped,
    empty_rows,
    is_member,
    rows_from_tensors,
)


def held_at(times: list[int]) -> HoldoutRows:
    number = np.array(times, np.int64)
    context = np.tile(number[:, None], 3)
    kind = (number % 5).astype(np.uint8)
    return HoldoutRows(context, no_codes(*context.shape), number + 1, number + 2, number, kind)


def random_keys(count: int, seed: int) -> Int64s:
    return np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, count)


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.3])
def test_membership_is_near_the_fraction_whatever_varies(fraction: float) -> None:
    count = 40_000
    one, many = np.full(count, 7, np.int64), random_keys(count, seed=1)
    running = np.arange(count, dtype=np.int64)
    for user, item, time in (
        (many, one, one),
        (one, many, one),
        (one, one, running),
        (running, one, many),
    ):
        assert is_member(user, item, time, fraction).mean() == pytest.approx(fraction, abs=0.01)


def test_membership_does_not_depend_on_the_events_beside_it() -> None:
    user, item, time = (random_keys(1000, seed) for seed in (1, 2, 3))
    together = is_member(user, item, time, 0.5)
    back = is_member(user[::-1], item[::-1], time[::-1], 0.5)[::-1]
    assert (together == back).all()
    assert (is_member(user[7:9], item[7:9], time[7:9], 0.5) == together[7:9]).all()


def test_membership_is_the_same_on_every_machine() -> None:
    event = np.arange(20, dtype=np.int64)
    members = np.flatnonzero(is_member(event, -event, event * 1000, 0.3))
    assert members.tolist() == [1, 3, 5, 6, 17, 18]


def test_the_oldest_are_released_when_there_are_too_many() -> None:
    settings = HoldoutSettings(window_rows=3, max_age_s=1000)
    held, released = admit(held_at([1, 2]), held_at([3, 4, 5]), settings, now_ms=5, least=0)
    assert held.time.tolist() == [3, 4, 5]
    assert released.time.tolist() == [1, 2]


def test_the_aged_are_released() -> None:
    settings = HoldoutSettings(window_rows=9, max_age_s=1)
    held, released = admit(held_at([10, 500]), held_at([1011]), settings, now_ms=1011, least=0)
    assert held.time.tolist() == [500, 1011]
    assert released.time.tolist() == [10]


def test_in_a_quiet_stream_enough_to_decide_on_does_not_age() -> None:
    settings = HoldoutSettings(window_rows=3, max_age_s=1)
    held, released = admit(held_at([1, 2, 3]), held_at([9000]), settings, now_ms=9000, least=2)
    assert held.time.tolist() == [3, 9000]
    held, released = admit(held, held_at([9001, 9002]), settings, now_ms=9002, least=9)
    assert (held.time.tolist(), released.time.tolist()) == ([9000, 9001, 9002], [3])


@given(st.lists(st.lists(st.integers(0, 5000), max_size=5), max_size=8))
def test_every_row_is_either_held_or_was_released_once(batches: list[list[int]]) -> None:
    settings = HoldoutSettings(window_rows=4, max_age_s=2)
    held, out, now = empty_rows(3), [], 0
    for times in batches:
        now = max([now, *times])
        held, released = admit(held, held_at(times), settings, now, 0)
        out += released.time.tolist()
        assert len(held) <= 4
        assert (held.time >= now - 2000).all()
        assert (held.context[:, 0] == held.time).all()
        assert (held.user + 1 == held.item).all()
    assert sorted(out + held.time.tolist()) == sorted(chain(*batches))


def test_tensors_bring_the_same_rows_back() -> None:
    held = held_at([1, 2, 3]).take(np.array([2, 0], np.int64))
    back = rows_from_tensors({**held.tensors()}, 8)
    assert back.context.tolist() == held.context.tolist()
    assert back.marks().tolist() == held.marks().tolist()
    assert back.kind.tolist() == held.kind.tolist() == [3, 1]


def test_rows_of_versions_from_before_kinds_were_kept_can_be_read() -> None:
    tensors = held_at([1, 2, 3]).tensors()
    del tensors["holdout.kind"]
    assert rows_from_tensors(tensors, 8).kind.tolist() == [0, 0, 0]


def test_kinds_keep_their_names_when_their_order_changes() -> None:
    held = held_at([1, 2, 3, 4])  # of the kinds 1 to 4
    then = ("view", "click", "buy", "gone", "return")
    now = ("view", "return", "click", "buy")
    found = held.in_kinds(then, now)
    assert [now[kind] for kind in found.kind.tolist()] == ["click", "buy", "return"]
    assert found.time.tolist() == [1, 2, 4]
    assert held.in_kinds(then, then).kind.tolist() == held.kind.tolist()


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30),
    st.lists(st.integers(0, 3), max_size=10),
    st.integers(1, 4),
)
def test_no_user_has_more_held_rows_than_the_cap(
    events: list[tuple[int, bool]], held: list[int], most: int
) -> None:
    user = np.array([user for user, _ in events], np.int64)
    member = np.array([is_member for _, is_member in events], np.bool_)
    expected, counts = [], {one: held.count(one) for one in range(4)}
    for one, asked in events:
        expected.append(asked and counts[one] < most)
        counts[one] += expected[-1]
    assert capped(member, user, np.array(held, np.int64), most).tolist() == expected


def test_rows_of_users_are_left_out() -> None:
    rows = held_at([1, 2, 3, 2]).without(np.array([3, 9]))
    assert rows.time.tolist() == [1, 3]
    assert rows.context[:, 0].tolist() == [1, 3]


def test_events_that_are_alike_are_rows_of_their_own() -> None:
    """Where times are dates alone, a user meets an item several times at once."""
    row = held_at([5])
    other = replace(row, context=row.context[:, ::-1] + np.arange(3))
    rows = row.joined(other).joined(row)
    assert len(set(rows.marks().tolist())) == 1
    first, second, third = rows.row_marks().tolist()
    assert first == third != second
