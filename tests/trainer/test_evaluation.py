import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from service.domain import Float32s, Int64s, ItemId, ItemKey, no_codes
from service.model.memory import Memory
from service.model.recommender import Recommender, unit_rows
from service.settings import MemorySettings
from service.trainer.evaluation import CUTOFF, evaluate, evaluate_alone, recalled
from service.trainer.holdout import HoldoutRows, empty_rows
from service.trainer.sequences import strip
from tests.model.examples import a_recommender, a_vocabulary

VOCABULARY = a_vocabulary(6)
UNKNOWN = 12345
TEMPERATURE = 0.07
SHARES = (0.4, 0.0, 0.8, 1.0)


@pytest.fixture(autouse=True, scope="module")
def _in_32_bits() -> Iterator[None]:
    """As what it is compared with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.model.inference.has_fast_bf16", lambda _: False)
        yield


def rows_of(context: list[list[int]], target: list[int]) -> HoldoutRows:
    """Rows of the vocabulary as held-out interactions; UNKNOWN stays what it is."""
    table = dict(enumerate(VOCABULARY.keys.tolist())) | {UNKNOWN: UNKNOWN}
    item: Int64s = np.array([table[row] for row in target], np.int64)
    keys = np.array([[table[row] for row in rows] for rows in context], np.int64)
    return HoldoutRows(keys, no_codes(*keys.shape), item, item, item, item.astype(np.uint8))


def ndcg(model: Recommender, held: HoldoutRows, *, exclude_seen: bool) -> list[float]:
    """Of the model alone."""
    found = evaluate(
        model,
        VOCABULARY,
        held,
        [],
        temperature=TEMPERATURE,
        shares=(1.0,),
        exclude_seen=exclude_seen,
    )
    alone = evaluate_alone(model, VOCABULARY, held, exclude_seen=exclude_seen)
    np.testing.assert_allclose(alone, found[0], atol=1e-6)
    scores: list[float] = alone.tolist()
    return scores


def test_the_first_is_worth_one_and_what_was_seen_nothing() -> None:
    model = a_recommender(items=6)
    with torch.no_grad():
        state = model(torch.tensor([[1, 2]]))[0, 1]
        model.items.weight[5] = state
        model.items.weight[2] = state
    held = rows_of([[1, 2, 0], [1, 2, 0]], [5, 2])
    assert ndcg(model, held, exclude_seen=True) == [1.0, 0.0]


def test_what_is_unknown_counts_nothing() -> None:
    model = a_recommender(items=6)
    held = rows_of([[1, 2], [0, 0], [UNKNOWN, 0], [UNKNOWN, 1]], [UNKNOWN, 3, 3, 3])
    scores = ndcg(model, held, exclude_seen=False)
    assert scores[:3] == [0.0, 0.0, 0.0]
    assert scores[3] > 0


def test_rows_count_alike_alone_and_together() -> None:
    model = a_recommender(items=6)
    held = rows_of([[1, 2, 3], [4, 0, 0]] * 200, [5, 6] * 200)
    together = ndcg(model, held, exclude_seen=True)
    (alone,) = ndcg(model, held.take(slice(1, 2)), exclude_seen=True)
    assert together[1::2] == pytest.approx([alone] * 200)


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_model_in_the_mode_it_was_in(training: bool) -> None:
    model = a_recommender(items=6).train(training)
    assert ndcg(model, empty_rows(3), exclude_seen=True) == []
    assert model.training is training


def a_memory() -> Memory:
    """It knows 2 to 6, UNKNOWN, and of what follows what some; nothing of 1."""
    memory = Memory(MemorySettings())
    keys = rows_of([], [2, 3, 4, UNKNOWN, 3, 5, 5, 6, 2]).item
    ids = [ItemId(str(key)) for key in keys.tolist()]
    for place, (key, name) in enumerate(zip(keys.tolist(), ids, strict=True)):
        memory.learn(ItemKey(key), name, keys[:place])
    return memory


HELD = rows_of(
    [
        [1, 2, 3],  # the memory passes over 1
        [2, UNKNOWN, 0],
        [1, 0, 0],  # nothing to recall
        [UNKNOWN, 0, 0],  # nothing that the model knows
        [UNKNOWN, UNKNOWN, 4],
        [0, 0, 0],
        [5, 6, 2],
        [3, 4, 5],
    ],
    [4, 5, 6, 3, UNKNOWN, 1, 5, UNKNOWN],
)


@torch.inference_mode()
def dense(model: Recommender, memory: Memory, *, exclude_seen: bool) -> tuple[Float32s, Float32s]:
    """Softmax and memory, each over rows 0 to 6 and UNKNOWN, written out for each of HELD."""
    keys = np.append(VOCABULARY.keys, UNKNOWN)
    table = torch.nn.functional.normalize(model.items.weight[:7], dim=1)
    by_model = np.zeros((len(HELD), 8), np.float32)
    by_memory = np.zeros((len(HELD), 8), np.float32)
    for row, context in enumerate(map(strip, HELD.context)):
        shown = ~np.isin(keys, context) if exclude_seen else np.ones(8, np.bool_)
        shown[0] = False
        rows = [known for known in VOCABULARY.rows(context).tolist() if known]
        if rows:
            state = model(torch.tensor([rows]))[0, -1]
            cosine = (table @ torch.nn.functional.normalize(state, dim=0)).numpy()
            odds = np.exp(cosine / TEMPERATURE) * shown[:7]
            by_model[row, :7] = odds / odds.sum()
        found = memory.recall(context)
        for key, value in zip(found.key, found.value, strict=True):
            by_memory[row, np.flatnonzero(keys == key)] += value
        by_memory[row] *= shown
        by_memory[row] /= by_memory[row].sum() or 1.0
    return by_model, by_memory


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_scores_are_those_of_the_dense_mixture_for_each_share(exclude_seen: bool) -> None:
    model, memory = a_recommender(items=6), a_memory()
    found = evaluate(
        model,
        VOCABULARY,
        HELD,
        recalled(memory, HELD),
        temperature=TEMPERATURE,
        shares=SHARES,
        exclude_seen=exclude_seen,
    )
    by_model, by_memory = dense(model, memory, exclude_seen=exclude_seen)
    target = np.where(HELD.item == UNKNOWN, 7, VOCABULARY.rows(HELD.item))
    expected = np.zeros((len(SHARES), len(HELD)))
    both = 0
    for row, column in enumerate(target.tolist()):
        known = by_model[row].sum() > 0, by_memory[row].sum() > 0
        both += all(known)
        for place, share in enumerate(SHARES):
            weight = share if all(known) else float(known[0])
            mixed = weight * by_model[row] + (1 - weight) * by_memory[row]
            rank = int((mixed >= mixed[column]).sum())
            if mixed[column] > 0 and rank <= CUTOFF:
                expected[place, row] = 1 / math.log2(rank + 1)
    assert 0 < both < len(HELD)
    assert found == pytest.approx(expected, abs=1e-6)
    assert len({tuple(scores) for scores in found.round(3).tolist()}) > 2  # the share matters


@pytest.mark.parametrize("memory", [None, a_memory()], ids=["alone", "with a memory"])
def test_a_model_that_is_not_a_number_scores_nan_at_every_share(memory: Memory | None) -> None:
    model = a_recommender(items=6)
    with torch.no_grad():
        model.items.weight[6, 0] = torch.nan  # of one item: the softmax is of them all
    found = evaluate(
        model,
        VOCABULARY,
        HELD,
        recalled(memory, HELD),
        temperature=TEMPERATURE,
        shares=SHARES,
        exclude_seen=False,
    )
    asked = VOCABULARY.rows(HELD.context).any(axis=1)  # of the others the model knows nothing
    assert 0 < asked.sum() < len(HELD)
    assert (np.isnan(found) == asked).all()


def test_no_rows_are_no_scores() -> None:
    found = evaluate(
        a_recommender(items=6),
        VOCABULARY,
        empty_rows(3),
        [],
        temperature=TEMPERATURE,
        shares=SHARES,
        exclude_seen=True,
    )
    assert found.shape == (len(SHARES), 0)


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_of_a_large_catalogue_shares_score_together_as_alone(exclude_seen: bool) -> None:
    """What is counted among the highest only, or a few items at a time, is the same."""
    items, rows = 5000, 60
    vocabulary, model = a_vocabulary(items), a_recommender(items)
    random = np.random.default_rng(0)
    keys = vocabulary.keys[random.integers(1, items, (rows, 4))]
    with torch.inference_mode():
        state = unit_rows(model(torch.from_numpy(vocabulary.rows(keys[:, :3])))[:, -1])
        near = (state @ unit_rows(model.table(items + 1)).T).topk(15, dim=1).indices
    keys[:, 3] = vocabulary.keys[near[np.arange(rows), random.integers(0, 15, rows)].numpy()]
    item = keys[:, 3].copy()
    held = HoldoutRows(keys[:, :3], no_codes(rows, 3), item, item, item, item.astype(np.uint8))
    memory = Memory(MemorySettings())
    for row in keys[::2]:
        memory.learn(ItemKey(int(row[3])), ItemId("x"), row[:3])

    def scores(*shares: float) -> Float32s:
        return evaluate(
            model,
            vocabulary,
            held,
            recalled(memory if min(shares) < 1 else None, held),
            temperature=TEMPERATURE,
            shares=shares,
            exclude_seen=exclude_seen,
        )

    np.testing.assert_array_equal(scores(0.3, 0.7), np.concatenate([scores(0.3), scores(0.7)]))
    alone = evaluate_alone(model, vocabulary, held, exclude_seen=exclude_seen)
    np.testing.assert_allclose(alone, scores(1.0)[0], atol=1e-6)
    assert 0.2 < (alone > 0).mean() < 0.9
