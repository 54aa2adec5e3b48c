import numpy as np
import pytest
import torch

from service.domain import Int64s
from service.trainer.evaluation import holdout_ndcg
from service.trainer.holdout import HoldoutRows, empty_rows
from tests.model.examples import a_recommender, a_vocabulary

VOCABULARY = a_vocabulary(6)
UNKNOWN = 12345


def rows_of(context: list[list[int]], target: list[int]) -> HoldoutRows:
    """Rows of the vocabulary as held-out interactions; UNKNOWN stays what it is."""
    table = dict(enumerate(VOCABULARY.keys.tolist())) | {UNKNOWN: UNKNOWN}
    item: Int64s = np.array([table[row] for row in target], np.int64)
    keys = np.array([[table[row] for row in rows] for rows in context], np.int64)
    return HoldoutRows(keys, item, item, item)


def test_the_first_is_worth_one_and_what_was_seen_nothing() -> None:
    model = a_recommender(items=6)
    with torch.no_grad():
        state = model(torch.tensor([[1, 2]]))[0, 1]
        model.items.weight[5] = state
        model.items.weight[2] = state
    held = rows_of([[1, 2, 0], [1, 2, 0]], [5, 2])
    shown = holdout_ndcg(model, VOCABULARY, held, exclude_seen=True)
    assert shown.tolist() == [1.0, 0.0]


def test_what_is_unknown_counts_nothing() -> None:
    model = a_recommender(items=6)
    held = rows_of([[1, 2], [0, 0], [UNKNOWN, 0], [UNKNOWN, 1]], [UNKNOWN, 3, 3, 3])
    scores = holdout_ndcg(model, VOCABULARY, held, exclude_seen=False)
    assert scores[:3].tolist() == [0.0, 0.0, 0.0]
    assert scores[3] > 0


def test_rows_count_alike_alone_and_together() -> None:
    model = a_recommender(items=6)
    held = rows_of([[1, 2, 3], [4, 0, 0]] * 200, [5, 6] * 200)
    together = holdout_ndcg(model, VOCABULARY, held, exclude_seen=True)
    alone = holdout_ndcg(model, VOCABULARY, held.take(slice(1, 2)), exclude_seen=True)
    assert together[1::2].tolist() == pytest.approx([alone[0]] * 200)


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_model_in_the_mode_it_was_in(training: bool) -> None:
    model = a_recommender(items=6).train(training)
    assert len(holdout_ndcg(model, VOCABULARY, empty_rows(3), exclude_seen=True)) == 0
    assert model.training is training
