"""Scoring the rolling holdout: NDCG@10 of each held-out interaction."""

import numpy as np
import torch

from service.domain import Float32s
from service.model.inference import compact, hide, states_at
from service.model.ranking import ndcg, ranks
from service.model.recommender import Recommender, unit_rows
from service.model.vocabulary import NO_ROW, Vocabulary
from service.trainer.holdout import HoldoutRows

CUTOFF = 10
_ROWS_AT_ONCE = 256  # bounds the score matrix: 256 x catalogue


@torch.inference_mode()
def holdout_ndcg(
    model: Recommender, vocabulary: Vocabulary, held: HoldoutRows, *, exclude_seen: bool
) -> Float32s:
    """NDCG@10 of every held-out row, ranked as the scorer would rank. [rows]

    An item that the model does not know, or a user of whom it knows no item, counts 0.
    """
    was_training = model.training
    model.eval()
    table = unit_rows(model.items.weight[: len(vocabulary)].detach()).float()
    scores = []
    for start in range(0, len(held), _ROWS_AT_ONCE):
        part = held.take(slice(start, start + _ROWS_AT_ONCE))
        context, lengths = compact(vocabulary.rows(part.context))
        target = vocabulary.rows(part.item)
        states = states_at(model, context, lengths[:, None] - 1).squeeze(1)  # [rows, dim]
        ranking = states @ table.T  # [rows, items]
        hide(ranking, context if exclude_seen else np.zeros((len(part), 1), np.int64))
        rank = ranks(ranking, torch.from_numpy(target).to(ranking.device))
        gain = ndcg(rank, CUTOFF).cpu().numpy()
        gain[(lengths == 0) | (target == NO_ROW)] = 0.0
        scores.append(gain)
    model.train(was_training)
    return np.concatenate(scores) if scores else np.zeros(0, np.float32)
