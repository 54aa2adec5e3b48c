"""The sparse mixture against the same thing written out over the whole catalogue."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain import NO_KEY, ItemId, item_key
from service.model import mixture as mixture_module
from service.model.memory import Recollection
from service.model.mixture import (
    Blend,
    Columns,
    MemoryRows,
    add_up,
    best,
    blended,
    mix,
    ranks,
    reweighed,
    stack,
)
from service.model.ranking import MISSED
from service.model.ranking import ranks as dense_ranks
from service.model.vocabulary import Vocabulary


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.8, 1.0]))
def test_ranks_and_best_are_those_of_the_whole_mixture(seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    events, columns = 6, 9
    logits = torch.from_numpy(random.normal(size=(events, columns)).astype(np.float32))
    hidden = random.random((events, columns)) < 0.2
    hidden[:, 0] = True
    logits[torch.from_numpy(hidden)] = -torch.inf
    logits[0] = -torch.inf  # an event of which the model knows nothing
    entries = 14
    event = random.integers(0, events - 1, entries)  # and one of which the memory knows nothing
    column = random.integers(0, columns, entries)
    value = random.random(entries).astype(np.float32) + 0.1
    mixture = mix(logits, add_up(event, column, value, hidden), share)

    recalled = np.zeros((events, columns), np.float32)
    np.add.at(recalled, (event, column), value)
    recalled[hidden] = 0.0
    total = recalled.sum(axis=1, keepdims=True)
    recalled = np.divide(recalled, total, out=recalled, where=total > 0)
    softmax = torch.softmax(logits, dim=1).nan_to_num(0.0)
    weight = torch.full((events, 1), share)
    weight[torch.from_numpy(total[:, 0] == 0)] = 1.0
    weight[(softmax.sum(dim=1) == 0) & torch.from_numpy(total[:, 0] > 0)] = 0.0
    dense = weight * softmax + (1 - weight) * torch.from_numpy(recalled)
    target = torch.from_numpy(random.integers(0, columns, events))
    got = ranks(mixture, target)
    chance, places = best(mixture, 4)
    wanted = dense.topk(4, dim=1)
    torch.testing.assert_close(chance, wanted.values)
    torch.testing.assert_close(dense.gather(1, places)[chance > 0], chance[chance > 0])
    # Probabilities that are equal but for rounding may change places.
    at = dense.gather(1, target[:, None])
    low, high = ((dense >= at * factor).sum(dim=1) for factor in (1 + 1e-5, 1 - 1e-5))
    seen = at.squeeze(1) > 0
    assert bool((got[~seen] == MISSED).all())
    assert bool(((got >= low.clamp(min=1)) & (got <= high))[seen].all())


def test_without_a_memory_it_ranks_as_the_model_does() -> None:
    logits = torch.tensor([[-torch.inf, 0.5, 0.5, 2.0]])
    none = np.zeros(0, np.int64)
    nothing = add_up(none, none, np.zeros(0, np.float32), np.zeros((1, 4), np.bool_))
    mixture = mix(logits, nothing, 0.5)
    for target in (1, 2, 3):
        wanted = torch.tensor([target])
        assert ranks(mixture, wanted) == dense_ranks(logits, wanted)


def test_ties_count_against_the_target() -> None:
    logits = torch.full((1, 4), 1.0)
    value = np.ones(2, np.float32)
    entries = add_up(np.zeros(2, np.int64), np.array([1, 2]), value, np.zeros((1, 4), np.bool_))
    mixture = mix(logits, entries, 0.5)
    assert ranks(mixture, torch.tensor([1])) == 2
    assert ranks(mixture, torch.tensor([3])) == 4


def test_what_only_the_memory_knows_stands_behind_the_vocabulary() -> None:
    vocabulary = Vocabulary((ItemId(""), ItemId("a"), ItemId("b")))
    a, new = item_key(ItemId("a")), item_key(ItemId("new"))
    keys = np.array([new, a, NO_KEY])
    once, twice = np.ones(1, np.float32), np.ones(3, np.float32)
    memory_rows = MemoryRows(vocabulary)
    recalled, more = (
        stack([Recollection(np.array(rows, np.int32), value, keys)], memory_rows)
        for rows, value in (([0], once), ([1, 0, -1], twice))
    )
    columns = Columns(vocabulary, recalled, more)
    assert columns.of_recalled(more).tolist() == [1, 3, 0]
    assert columns.of(np.array([a, new, 7])).tolist() == [1, 3, 0]
    assert [columns.met(column) for column in (1, 3)] == [None, new]
    cosines = torch.zeros(1, 3)
    shown = blended(cosines, columns, np.zeros((1, 1), np.int64), recalled, Blend(1.0, 0.4))
    chance, column = best(shown, 3)
    assert column.tolist()[0][0] == 3
    torch.testing.assert_close(chance, torch.tensor([[0.6, 0.2, 0.2]]))
    hidden = blended(cosines, columns, np.array([[3]]), recalled, Blend(1.0, 0.4))
    assert best(hidden, 3)[0].tolist()[0] == [0.5, 0.5, 0.0]


def test_rows_are_read_by_the_keys_that_they_were_recalled_with() -> None:
    vocabulary = Vocabulary((ItemId(""), ItemId("a"), ItemId("b")))
    a, b = (item_key(ItemId(name)) for name in "ab")
    rows, value = np.array([0, 1, -1], np.int32), np.ones(3, np.float32)
    old, new = np.array([a, 7, NO_KEY]), np.array([8, b, NO_KEY])
    memory_rows = MemoryRows(vocabulary)
    for _ in range(2):  # as before and after the events of a batch
        recalled = stack([Recollection(rows, value, keys) for keys in (old, old, new)], memory_rows)
        assert recalled.event.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert recalled.row.tolist() == [1, 0, 0, 1, 0, 0, 0, 2, 0]
        assert recalled.stranger.tolist() == [1, 4, 6]
        assert recalled.stranger_key.tolist() == [7, 7, 8]


def test_a_row_that_was_filled_since_is_looked_up() -> None:
    vocabulary = Vocabulary((ItemId(""), ItemId("a"), ItemId("b")))
    keys = np.array([item_key(ItemId("a")), NO_KEY, NO_KEY])
    memory_rows = MemoryRows(vocabulary)
    assert memory_rows.of(keys, np.array([0, -1], np.int32)).tolist() == [1, 0]
    keys[1] = item_key(ItemId("b"))
    assert memory_rows.of(keys, np.array([1, 0], np.int32)).tolist() == [2, 1]


def test_nothing_recalled_is_no_entry() -> None:
    recalled = stack([], MemoryRows(Vocabulary()))
    assert not len(recalled.event) + len(recalled.row) + len(recalled.value)


def test_a_large_catalogue_is_summed_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 30)
    none = np.zeros(0, np.int64)
    nothing = add_up(none, none, np.zeros(0, np.float32), np.zeros((7, 30), np.bool_))
    target = torch.arange(7)
    whole = mix(logits, nothing, 0.5)
    monkeypatch.setattr(mixture_module, "_LOGITS_AT_ONCE", 64)
    parts = mix(logits, nothing, 0.5)
    torch.testing.assert_close(parts.log_sum, whole.log_sum)
    assert torch.equal(ranks(parts, target), dense_ranks(logits, target))


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_another_share_is_as_if_it_had_been_mixed_so(share: float) -> None:
    logits = torch.randn(3, 5)
    logits[:, 0] = -torch.inf
    logits[1] = -torch.inf  # the model knows nothing of it; the memory nothing of the last
    event, column = np.array([0, 0, 1]), np.array([2, 4, 3])
    entries = add_up(event, column, np.ones(3, np.float32), np.zeros((3, 5), np.bool_))
    found, wanted = reweighed(mix(logits, entries, 0.7), share), mix(logits, entries, share)
    assert found.share.tolist() == pytest.approx([share, 0.0, 1.0])
    torch.testing.assert_close(best(found, 5), best(wanted, 5))
    for target in range(5):
        asked = torch.full((3,), target)
        assert torch.equal(ranks(found, asked), ranks(wanted, asked))


def test_what_is_not_a_number_is_no_ignorance() -> None:
    logits = torch.tensor([[-torch.inf, 0.5, torch.nan], [-torch.inf] * 3])
    entries = add_up(
        np.array([0, 1]), np.array([1, 1]), np.ones(2, np.float32), np.zeros((2, 3), np.bool_)
    )
    mixture = mix(logits, entries, 0.7)
    assert mixture.log_sum.isnan().tolist() == [True, False]
    assert mixture.both.tolist() == [True, False]
