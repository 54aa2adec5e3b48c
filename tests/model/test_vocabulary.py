import numpy as np

from service.domain import ItemId, ItemKey, item_key
from service.model.vocabulary import NO_ROW, Vocabulary
from tests.model.examples import a_vocabulary, item_ids


def pairs(ids: list[ItemId]) -> list[tuple[ItemKey, ItemId]]:
    return [(item_key(item), item) for item in ids]


def test_rows_are_places_in_the_ids() -> None:
    vocabulary = a_vocabulary(50)
    assert vocabulary.rows(vocabulary.keys).tolist() == list(range(51))
    assert [vocabulary.ids[row] for row in (1, 50)] == ["item-1", "item-50"]


def test_rows_keep_the_shape_and_unknown_items_have_none() -> None:
    vocabulary = a_vocabulary(2)
    keys = np.array([[item_key(ItemId("item-2")), 0], [-(2**63), 2**63 - 1]], np.int64)
    assert vocabulary.rows(keys).tolist() == [[2, NO_ROW], [NO_ROW, NO_ROW]]


def test_an_empty_one_knows_nothing() -> None:
    assert len(Vocabulary()) == 1
    assert Vocabulary().rows(np.array([0, 7], np.int64)).tolist() == [NO_ROW, NO_ROW]


def test_extending_adds_unknown_items_at_the_end_and_leaves_the_old_one_alone() -> None:
    old = a_vocabulary(2)
    a, b = ItemId("a"), ItemId("b")
    new = old.extended(pairs([b, *item_ids(2), a, b]))
    assert new.ids == (*old.ids, b, a)
    assert new.rows(np.array([item_key(a), item_key(b)], np.int64)).tolist() == [4, 3]
    assert len(old) == 3
    assert old.rows(np.array([item_key(a)], np.int64)).tolist() == [NO_ROW]
    assert Vocabulary(new.ids).rows(new.keys).tolist() == new.rows(new.keys).tolist()


def test_extending_by_nothing_new_gives_the_same_object() -> None:
    vocabulary = a_vocabulary(2)
    assert vocabulary.extended(pairs(item_ids(2))) is vocabulary
    assert vocabulary.extended([]) is vocabulary
