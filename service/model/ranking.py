"""Ranking metrics from ranks. A rank of 1 is best; ties count against the model.

A model that gives most items the same score must not gain from it, hence the rank is the
number of items that score at least as high as the target (Latifi et al., 2022, on how
optimistic ties inflate session models).
"""

import torch
from torch import Tensor

# The rank of a target that could not be recommended at all.
MISSED = 1 << 40


def ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """The rank of each row's target. [rows] from scores [rows, items] and targets [rows].

    A target whose score is -inf or NaN is `MISSED`.
    """
    target = scores.gather(1, targets[:, None])  # [rows, 1]
    rank = (scores >= target).sum(dim=1)  # [rows]
    return torch.where(target.squeeze(1) > -torch.inf, rank, MISSED)


def ndcg(rank: Tensor, k: int) -> Tensor:
    """NDCG@k of one relevant item per row: 1 / log2(1 + rank) within k, else 0. [rows]

    Järvelin and Kekäläinen, 2002; the ideal ranking has the item first, so its DCG is 1.
    """
    gain = 1.0 / torch.log2(1.0 + rank.double())
    return torch.where(rank <= k, gain, 0.0).float()


def hits(rank: Tensor, k: int) -> Tensor:
    """1 where the target is within the first k, else 0: the mean is HR@k and Recall@k. [rows]"""
    return (rank <= k).float()


def reciprocal_rank(rank: Tensor, k: int) -> Tensor:
    """1 / rank within the first k, else 0: the mean is MRR@k. [rows]"""
    return torch.where(rank <= k, 1.0 / rank.double(), 0.0).float()
