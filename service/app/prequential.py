"""Prequential metrics of the live model: each event was ranked before anything learned from it."""

import numpy as np
import torch

from service.domain import Int64s
from service.model.ranking import hits, ndcg

_WINDOW = 2_000  # events; enough for a stable mean, few enough to show an hour's change
_CUTOFF = 10


class PrequentialWindow:
    """Means over the last events that the live model was tested on."""

    def __init__(self) -> None:
        self._ranks: Int64s = np.zeros(0, np.int64)

    def add(self, ranks: Int64s) -> None:
        self._ranks = np.concatenate([self._ranks, ranks])[-_WINDOW:]

    def hit_rate(self) -> float:
        return float(hits(torch.from_numpy(self._ranks), _CUTOFF).mean())

    def ndcg(self) -> float:
        return float(ndcg(torch.from_numpy(self._ranks), _CUTOFF).mean())
