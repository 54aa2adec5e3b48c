"""Metrics from ranks, with what is needed to tell a difference from noise."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from service.domain import Bools, Int64s
from service.model.ranking import hits, ndcg, reciprocal_rank

COLD = 5  # an item with fewer events so far is cold
_Z = 1.96  # 95 % of a normal distribution

METRICS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "recall_at_20": partial(hits, k=20),
    "recall_at_10": partial(hits, k=10),
    "mrr_at_20": partial(reciprocal_rank, k=20),
    "mrr_at_10": partial(reciprocal_rank, k=10),
    "ndcg_at_10": partial(ndcg, k=10),
    "hr_at_10": partial(hits, k=10),
}


class Plain(BaseModel):
    """Plain data of the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(Plain):
    """Means over queries, 0 without one. One item is right, so Recall@10 and HR@10 are the same."""

    queries: int
    recall_at_20: float
    recall_at_10: float
    mrr_at_20: float
    mrr_at_10: float
    ndcg_at_10: float
    hr_at_10: float
    # Half-widths of 95 % intervals, by metric. The queries are taken as independent.
    margin: dict[str, float]


class Result(Score):
    """A model's, over the run or a part of it."""

    train_seconds: float
    cold: Score  # over items with fewer than COLD events so far
    warm: Score


def score(rank: Int64s) -> Score:
    ranks = torch.from_numpy(rank)
    means, margins = {}, {}
    for name, metric in METRICS.items():
        values = metric(ranks).double()
        means[name] = float(values.mean()) if len(rank) else 0.0
        spread = float(values.std()) if len(rank) > 1 else 0.0
        margins[name] = _Z * spread / math.sqrt(max(len(rank), 1))
    return Score(queries=len(rank), margin=margins, **means)


def result(rank: Int64s, cold: Bools, train_seconds: float) -> Result:
    """Ranks of all queries, and which of their items are cold."""
    return Result(
        **score(rank).model_dump(),
        train_seconds=train_seconds,
        cold=score(rank[cold]),
        warm=score(rank[~cold]),
    )


def mean_of_parts(parts: Sequence[Score]) -> Score:
    """Each part weighs the same; those without a query do not count."""
    asked = [part for part in parts if part.queries]
    count = max(len(asked), 1)
    return Score(
        queries=sum(part.queries for part in asked),
        margin={
            name: math.hypot(*(part.margin[name] for part in asked)) / count for name in METRICS
        },
        **{name: sum(getattr(part, name) for part in asked) / count for name in METRICS},
    )


def mean_of_results(parts: Sequence[Result]) -> Result:
    """Over periods: means of the metrics, sums of queries and seconds."""
    return Result(
        **mean_of_parts(parts).model_dump(),
        train_seconds=sum(part.train_seconds for part in parts),
        cold=mean_of_parts([part.cold for part in parts]),
        warm=mean_of_parts([part.warm for part in parts]),
    )


def spread(scores: Sequence[Score]) -> dict[str, float]:
    """Standard deviations over seeds, by metric; 0 for a single one."""
    if len(scores) < 2:
        return dict.fromkeys(METRICS, 0.0)
    return {name: float(np.std([getattr(one, name) for one in scores], ddof=1)) for name in METRICS}
