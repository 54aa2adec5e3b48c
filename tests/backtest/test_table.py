import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.backtest.table import join
from service.domain import earlier
from tests.backtest.examples import table_of


@given(st.lists(st.integers(-3, 3)))
def test_earlier_counts_the_same_key_before(keys: list[int]) -> None:
    expected = [keys[:place].count(key) for place, key in enumerate(keys)]
    assert earlier(np.array(keys, np.int64)).tolist() == expected


def test_a_slice_is_events_with_offsets() -> None:
    events = table_of([("a", "x"), ("b", "y"), ("a", "z")]).events(1, 5, 11)
    assert events.offset.tolist() == [11, 12]
    assert (events.user_ids, events.item_ids) == (["b", "a"], ["y", "z"])


def test_tables_are_cut_and_joined() -> None:
    whole = table_of([("a", "x"), ("b", "y"), ("a", "z")])
    head = whole.until(2)
    both = join([head, whole])
    assert both.item_ids == ["x", "y", "x", "y", "z"]
    assert both.user.tolist() == [*head.user.tolist(), *whole.user.tolist()]
    assert len(both) == len(both.timestamp) == len(both.kind) == len(both.value)
