"""The memory against the same transitions in a plain dictionary."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain import NO_KEY, Int64s, ItemId, ItemKey
from service.model.memory import Memory
from service.model.vocabulary import Vocabulary
from service.settings import MemorySettings

_LOOSE = MemorySettings(fanout=64, half_life_events=7)


def _learn(memory: Memory, history: list[int]) -> None:
    for n, item in enumerate(history):
        memory.learn(ItemKey(item), ItemId(str(item)), _keys(history[:n]))


def _keys(items: list[int]) -> Int64s:
    return np.array(items, np.int64)


def _vocabulary(items: int) -> Vocabulary:
    ids = tuple(ItemId(str(item)) for item in range(items + 1))
    return Vocabulary().extended([(ItemKey(item), ids[item]) for item in range(1, items + 1)])


def _recalled(memory: Memory, history: list[int]) -> dict[int, float]:
    total: dict[int, float] = defaultdict(float)
    found = memory.recall(_keys(history))
    for key, value in zip(found.key.tolist(), found.value.tolist(), strict=True):
        total[key] += value
    assert total.pop(NO_KEY, 0.0) == 0.0
    return dict(total)


def _expected(
    streams: list[list[int]], asked: list[int], with_: MemorySettings
) -> dict[int, float]:
    """What `asked` brings to mind after `streams`, by the definition."""
    weight: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    count: dict[int, float] = defaultdict(float)
    met, repeated = [0.0] * with_.depth, [0.0] * with_.depth
    faded = 0.5 ** (1 / with_.half_life_events)
    for stream in streams:
        for n, item in enumerate(stream):
            for ends in weight.values():
                for end in ends:
                    ends[end] *= faded
            for known in count:
                count[known] *= faded
            count[item] += 1
            met, repeated = [faded * one for one in met], [faded * one for one in repeated]
            for step, before in enumerate(stream[max(n - with_.depth, 0) : n][::-1]):
                met[step] += 1
                repeated[step] += before == item
            for lag, before in enumerate(stream[max(n - with_.lag, 0) : n][::-1]):
                added = with_.lag_decay**lag
                weight[before][item] += added
                weight[item][before] += with_.backward * added
    value: dict[int, float] = defaultdict(float)
    known_items = [item for item in asked[-with_.depth :][::-1] if item in count]
    for step, item in enumerate(known_items):
        total = sum(weight[item].values())
        for end, amount in weight[item].items():
            often = max(count[end], 1.0) ** with_.popularity_penalty
            part = amount / (total + with_.shrinkage)
            value[end] += with_.step_decay**step * part / often
    for step, item in enumerate(known_items):
        value[item] += with_.repeat * repeated[step] / max(met[step], 1e-30)
    return dict(value)


_histories = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=9), min_size=1, max_size=6)


@settings(deadline=None)
@given(_histories, st.lists(st.integers(1, 8), max_size=12))
def test_recalls_what_the_definition_says(streams: list[list[int]], asked: list[int]) -> None:
    memory = Memory(_LOOSE)
    for stream in streams:
        _learn(memory, stream)
    assert _recalled(memory, asked) == pytest.approx(_expected(streams, asked, _LOOSE), rel=1e-3)


def test_an_event_is_recalled_at_once() -> None:
    memory = Memory(MemorySettings(repeat=0.0, shrinkage=0.0))
    _learn(memory, [1, 2])
    assert _recalled(memory, [1]) == {2: 1.0}


def test_an_item_that_was_met_more_often_says_more() -> None:
    memory = Memory(MemorySettings(repeat=0.0, lag=1, backward=0.0, step_decay=1.0, shrinkage=3.0))
    for _ in range(9):
        _learn(memory, [1, 2])
    _learn(memory, [3, 4])
    assert _recalled(memory, [1, 3]) == pytest.approx({2: 9 / 12 / 9**0.1, 4: 1 / 4}, rel=1e-3)


def test_an_item_keeps_its_name_where_it_is_met_without_one() -> None:
    memory = Memory(MemorySettings(items=2))
    _learn(memory, [1])
    memory.learn(ItemKey(1), ItemId(""), _keys([]))
    assert memory.item_id(1) == "1"
    _learn(memory, [2])
    memory.learn(ItemKey(3), ItemId(""), _keys([]))  # in the place of the first
    assert memory.item_id(3) is None


def test_nothing_is_recalled_of_an_unknown_item() -> None:
    memory = Memory(MemorySettings())
    _learn(memory, [1, 2])
    assert _recalled(memory, [3]) == {}
    assert _recalled(memory, []) == {}


def test_the_items_of_a_history_are_recalled_as_often_as_users_go_back_so_far() -> None:
    memory = Memory(MemorySettings(repeat=1.0, depth=2, lag=1, backward=0.0))
    _learn(memory, [1, 2, 1, 2, 3])  # two of the three that could went two events back
    assert _recalled(memory, [3]) == {3: 0.0}  # nothing follows 3, and nobody stays
    assert _recalled(memory, [3, 1])[3] == pytest.approx(2 / 3, rel=1e-4)


def test_repeats_are_counted_on_with_another_depth() -> None:
    def again(of: Memory) -> torch.Tensor:
        return of.tensors()["memory.again"]

    memory = Memory(MemorySettings(depth=2))
    _learn(memory, [1, 2, 1, 2, 3])
    for depth in (1, 2, 3):
        other = Memory(MemorySettings(depth=depth))
        other.load(memory.tensors(), _vocabulary(3))
        kept = min(depth, 2)
        assert torch.equal(again(other)[:kept], again(memory)[:kept])
        assert not again(other)[kept:].any()
    older = memory.tensors()
    del older["memory.again"]  # as versions had before repeats were counted
    other.load(older, _vocabulary(3))
    assert not again(other).any()


def test_a_full_row_gives_up_its_weakest_transition() -> None:
    memory = Memory(MemorySettings(fanout=2, lag=1, backward=0.0, repeat=0.0))
    for end in (2, 2, 3, 4, 4, 4):
        _learn(memory, [1, end])
    assert set(_recalled(memory, [1])) == {2, 4}


def test_forgets_the_items_that_were_seen_longest_ago() -> None:
    memory = Memory(MemorySettings(items=4, repeat=0.0))
    _learn(memory, [1, 2, 3, 4])
    _learn(memory, [2, 5])
    assert len(memory) == 4
    assert _recalled(memory, [1]) == {}
    assert 1 not in _recalled(memory, [2])
    assert memory.item_id(5) == "5"


def test_what_was_recalled_keeps_its_meaning_when_rows_are_given_to_other_items() -> None:
    memory = Memory(MemorySettings(items=4, repeat=0.0, lag=1, backward=0.0))
    _learn(memory, [1, 2])
    earlier = memory.recall(_keys([1]))
    _learn(memory, [11, 12, 13, 14, 15, 16])
    later = memory.recall(_keys([15]))
    assert set(earlier.key[earlier.value > 0].tolist()) == {2}
    assert set(later.key[later.value > 0].tolist()) == {16}
    assert earlier.keys is not later.keys


def test_rows_are_of_one_array_while_none_is_given_away() -> None:
    memory = Memory(MemorySettings())
    _learn(memory, [1, 2])
    earlier = memory.recall(_keys([1]))
    _learn(memory, [3, 1])
    assert memory.recall(_keys([1, 3])).keys is earlier.keys


def test_counts_are_the_same_after_they_were_scaled_back() -> None:
    memory = Memory(MemorySettings(half_life_events=3, popularity_penalty=1.0))
    _learn(memory, [1, 2, 2, 2, 2, 3, 1, 4])
    before = _recalled(memory, [1, 2])
    memory.tensors()  # scales them back
    assert _recalled(memory, [1, 2]) == pytest.approx(before)


@pytest.mark.parametrize("fanout", [_LOOSE.fanout, 2 * _LOOSE.fanout, 5])
def test_takes_back_what_it_gave(fanout: int) -> None:
    # No item here has more than 5 transitions, so that none of the bounds is too small.
    memory, other = Memory(_LOOSE), Memory(_LOOSE.model_copy(update={"fanout": fanout}))
    streams = [[1, 2, 3], [3, 2], [5, 1, 1]]
    for stream in streams:
        _learn(memory, stream)
    other.load(memory.tensors(), _vocabulary(5))
    for both in (memory, other):
        _learn(both, [2, 4, 5])
    for item in range(1, 6):
        assert _recalled(other, [item]) == pytest.approx(_recalled(memory, [item]))
        assert other.item_id(item) == str(item)


def test_gives_back_forgotten_items_as_no_transitions() -> None:
    settings = MemorySettings(items=32, fanout=4)
    memory, other = Memory(settings), Memory(settings)
    _learn(memory, list(range(1, 80)))
    other.load(memory.tensors(), _vocabulary(80))
    assert len(other) == len(memory)
    for item in range(1, 80):
        assert _recalled(other, [item]) == pytest.approx(_recalled(memory, [item]))


@pytest.mark.parametrize(
    "smaller",
    [MemorySettings(fanout=2, lag=1, backward=0.0), MemorySettings(items=3)],
    ids=["fanout", "items"],
)
def test_starts_empty_where_a_bound_has_become_too_small(smaller: MemorySettings) -> None:
    memory = Memory(smaller.model_copy(update={"fanout": 4, "items": 10}))
    for end in (2, 3, 4):  # three transitions lead away from 1
        _learn(memory, [1, end])
    other = Memory(smaller)
    _learn(other, [6, 7])  # forgotten as well
    other.load(memory.tensors(), _vocabulary(4))
    assert len(other) == 0
    assert _recalled(other, [1, 6]) == {}
    _learn(other, [1, 2])
    assert set(_recalled(other, [1])) == {1, 2}


def test_a_larger_fanout_has_room_for_more_transitions() -> None:
    narrow = MemorySettings(fanout=2, lag=1, backward=0.0, repeat=0.0)
    memory, other = Memory(narrow), Memory(narrow.model_copy(update={"fanout": 4}))
    for end in (2, 3):
        _learn(memory, [1, end])
    other.load(memory.tensors(), _vocabulary(3))
    for end in (4, 5):
        _learn(other, [1, end])
    assert set(_recalled(other, [1])) == {2, 3, 4, 5}


def test_gives_no_empty_places() -> None:
    memory = Memory(MemorySettings(lag=1, backward=0.0))
    _learn(memory, [1, 2, 3])
    _learn(memory, [1, 3])
    tensors = memory.tensors()
    assert tensors["memory.key"].tolist() == [2, 1, 3]  # longest unseen first
    assert tensors["memory.transitions"].tolist() == [1, 2, 0]
    assert tensors["memory.to"].tolist() == [2, 0, 2]
    assert len(tensors["memory.weight"]) == 3
    assert (tensors["memory.weight"] > 0).all()


def test_takes_back_that_it_knew_nothing() -> None:
    memory = Memory(_LOOSE)
    memory.load(Memory(_LOOSE).tensors(), _vocabulary(0))
    assert len(memory) == 0
    _learn(memory, [1, 2])
    assert memory.item_id(2) == "2"


def test_counts_stay_finite_however_long_it_runs() -> None:
    memory = Memory(MemorySettings(half_life_events=1))
    _learn(memory, [1, 2] * 500)
    values = _recalled(memory, [1]).values()
    assert values
    assert all(map(np.isfinite, values))


def test_the_nearest_is_what_an_item_leads_to_most_strongly_but_for_itself() -> None:
    memory = Memory(MemorySettings(lag=1, backward=0.0))
    _learn(memory, [1, 1, 1, 2, 1, 3, 1, 3])
    assert (memory.nearest(1), memory.nearest(2)) == (3, 1)
    assert memory.nearest(9) is None
    _learn(alone := Memory(_LOOSE), [5])
    assert alone.nearest(5) is None
