import math

import numpy as np
import pytest

from service.backtest.scores import mean_of_results, result, score, spread
from service.model.ranking import MISSED

RANKS = np.array([1, 3, 15, MISSED], np.int64)


def test_metrics_are_those_of_the_ranks() -> None:
    found = score(RANKS)
    assert found.queries == 4
    assert (found.recall_at_20, found.recall_at_10, found.hr_at_10) == (0.75, 0.5, 0.5)
    assert found.mrr_at_20 == pytest.approx((1 + 1 / 3 + 1 / 15) / 4)
    assert found.mrr_at_10 == pytest.approx((1 + 1 / 3) / 4)
    assert found.ndcg_at_10 == pytest.approx((1 + 1 / math.log2(4)) / 4)
    hits = [1, 1, 1, 0]
    assert found.margin["recall_at_20"] == pytest.approx(1.96 * np.std(hits, ddof=1) / 2)


def test_without_a_query_all_is_zero() -> None:
    found = score(RANKS[:0])
    assert (found.queries, found.ndcg_at_10, found.margin["ndcg_at_10"]) == (0, 0.0, 0.0)


def test_cold_and_warm_are_told_apart() -> None:
    found = result(RANKS, np.array([False, False, True, True]), 2.0)
    assert (found.cold.queries, found.cold.recall_at_20) == (2, 0.5)
    assert (found.warm.queries, found.warm.recall_at_20) == (2, 1.0)


def test_a_mean_over_parts_weighs_each_the_same() -> None:
    warm = np.zeros(4, bool)
    one, two = result(RANKS, warm, 2.0), result(RANKS[:1], warm[:1], 3.0)
    mean = mean_of_results([one, two])
    assert mean.recall_at_20 == pytest.approx((0.75 + 1) / 2)
    assert (mean.queries, mean.train_seconds) == (5, 5.0)
    assert mean.margin["recall_at_20"] == pytest.approx(one.margin["recall_at_20"] / 2)
    assert mean.cold.queries == 0
    assert mean.warm.recall_at_20 == mean.recall_at_20


def test_a_part_without_a_query_does_not_count() -> None:
    warm = np.zeros(4, bool)
    one, none = result(RANKS, warm, 1.0), result(RANKS[:0], warm[:0], 1.0)
    assert mean_of_results([one, none]).recall_at_20 == 0.75


def test_spread_is_over_seeds() -> None:
    assert spread([score(RANKS)])["recall_at_20"] == 0.0
    found = spread([score(RANKS), score(RANKS[:1])])
    assert found["recall_at_20"] == pytest.approx(np.std([0.75, 1.0], ddof=1))
