"""Whether, and how far, the click head may put a ranking in another order.

Asked are the held-out clicks: where the item that was clicked stands in the ranking of its
history, as the mixture gives it and as the head would reorder its best items.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.domain import Float32s
from service.model.click_head import ClickHead
from service.model.click_metrics import ClickScores
from service.model.clicks import ranks_after, reordered, without_history
from service.model.memory import Recollection
from service.model.mixture import Blend, Mixture, best, ranks
from service.model.ranking import ndcg
from service.model.recommender import Recommender
from service.model.vocabulary import Vocabulary
from service.settings import GateSettings
from service.trainer.evaluation import CUTOFF, Questions, questions
from service.trainer.labels import LabelledRows

# Exponents of the click probability that are tried; the first leaves the order as it is.
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class ClickReport:
    """The challenger's click head on the labels that are held out."""

    scores: ClickScores
    rerank: float  # the weight that it would have in rankings


@torch.inference_mode()
def reranked(
    model: Recommender,
    head: ClickHead,
    vocabulary: Vocabulary,
    clicks: LabelledRows,
    recollections: Iterable[Recollection],
    blend: Blend,
    *,
    candidates: int,
    exclude_seen: bool,
) -> Float32s:
    """NDCG@10 of every click under each of `WEIGHTS`. [weights, clicks]

    `recollections` are what the memory recalls for each; none where the model ranks alone.
    """
    parts = [np.zeros((len(WEIGHTS), 0), np.float32)]
    for asked in questions(model, vocabulary, clicks, recollections, exclude_seen=exclude_seen):
        found = ranks_reordered(asked, asked.mixture(blend), head, vocabulary, candidates, WEIGHTS)
        parts.append(np.stack([ndcg(rank, CUTOFF).cpu().numpy() for rank in found]))
    return np.concatenate(parts, axis=1)


def ranks_reordered(
    asked: Questions,
    mixture: Mixture,
    head: ClickHead,
    vocabulary: Vocabulary,
    candidates: int,
    weights: tuple[float, ...],
) -> list[Tensor]:
    """The ranks [rows] of the targets once the head has reordered the best of the mixture, for
    each of the weights."""
    rank = ranks(mixture, asked.target)
    chance, column = best(mixture, candidates)
    state = without_history(asked.state, asked.lengths)
    scores = reordered(
        head, vocabulary, asked.table, state, asked.rows.context, chance, column, weights
    )  # [weights, rows, k]
    return [ranks_after(score, column, asked.target, rank) for score in scores]


def best_weight(gains: Float32s, settings: GateSettings) -> float:
    """The weight that ranks clicks best, if it is better than 0 beyond the gate's margin."""
    rows = gains.shape[1]
    if rows < max(settings.min_rows, 2) or not np.isfinite(gains).all():
        return WEIGHTS[0]
    chosen = int(gains.mean(axis=1).argmax())
    gain = gains[chosen].astype(np.float64) - gains[0]
    margin = settings.z_score * float(gain.std(ddof=1)) / math.sqrt(rows)
    return WEIGHTS[chosen] if gain.mean() > margin else WEIGHTS[0]
