import math

import pytest
import torch

from service.model.ranking import MISSED, hits, ndcg, ranks, reciprocal_rank


def test_ties_count_against_the_model() -> None:
    scores = torch.tensor([[0.5, 0.5, 0.5], [0.1, 0.9, 0.9], [0.3, 0.2, 0.1]])
    assert ranks(scores, torch.tensor([0, 1, 0])).tolist() == [3, 2, 1]


def test_what_cannot_be_recommended_is_missed() -> None:
    scores = torch.tensor([[-math.inf, 0.0], [math.nan, 0.0]])
    rank = ranks(scores, torch.tensor([0, 0]))
    assert rank.tolist() == [MISSED, MISSED]
    assert ndcg(rank, 10).tolist() == [0.0, 0.0]


def test_metrics_by_hand() -> None:
    rank = torch.tensor([1, 2, 3, 10, 11])
    assert ndcg(rank, 10).tolist() == pytest.approx(
        [1, 1 / math.log2(3), 0.5, 1 / math.log2(11), 0]
    )
    assert hits(rank, 10).tolist() == [1, 1, 1, 1, 0]
    assert reciprocal_rank(rank, 10).tolist() == pytest.approx([1, 0.5, 1 / 3, 0.1, 0])
