"""Where withdrawn items stand among those that a batch ranks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.domain import Int64s, item_key
from service.model.mixture import Columns, Recalled
from service.model.vocabulary import Vocabulary
from service.registry.artifact import NO_ITEM
from service.scorer.withdrawn import Withdrawn
from tests.model.examples import item_ids

IDS = item_ids(30)
NOTHING = np.zeros(0, np.int64)
ITEMS = st.sets(st.integers(0, len(IDS) - 1))


def keys_of(items: set[int]) -> Int64s:
    return np.sort(np.array([item_key(IDS[item]) for item in items], np.int64))


def columns_of(known: set[int], met: set[int]) -> Columns:
    """Items in a vocabulary, and others that only the memory has met."""
    strangers = keys_of(met - known)
    recalled = Recalled(NOTHING, NOTHING, NOTHING.astype(np.float32), NOTHING, strangers)
    return Columns(Vocabulary((NO_ITEM, *(IDS[item] for item in sorted(known)))), recalled)


@given(gone=ITEMS, known=st.lists(ITEMS, min_size=1, max_size=3), met=ITEMS)
def test_all_that_stand_somewhere_are_found_in_one_vocabulary_after_the_other(
    gone: set[int], known: list[set[int]], met: set[int]
) -> None:
    withdrawn = Withdrawn(keys_of(gone))
    for one in known:
        columns = columns_of(one, met)
        for _ in "12":
            expected = columns.of(keys_of(gone & (one | met)))
            assert sorted(withdrawn.columns(columns).tolist()) == sorted(expected.tolist())
            assert 0 not in expected


def test_each_is_known_by_its_key() -> None:
    withdrawn = Withdrawn(keys_of({1, 3}))
    assert [item for item in range(5) if item_key(IDS[item]) in withdrawn] == [1, 3]
