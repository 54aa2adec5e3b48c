"""The share of the model in the mixture with the memory, fitted on the rolling holdout."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from service.domain import Float32s, Float64s

SHARES = tuple(tenth / 10 for tenth in range(11))  # that are tried
# How much the last trial counts at least beside those before it: one holdout is small.
_NEWS = 0.1
# Rows of the holdout that no trial has seen, of which one is a whole trial: where a stream is slow
# the gate is asked again after every few.
_NEW_ROWS = 50
# The NDCG that a share has to gain for each square of its distance from the setting.
_PULL = 0.01
_GAINS, _TRIALS = "mixture.gains", "mixture.fits"  # among a version's tensors for the trainer


@dataclass(frozen=True, slots=True, eq=False)
class ShareFit:
    """How well each of `SHARES` did in the trials so far. Without any it prefers none."""

    setting: float
    gains: Float64s  # [SHARES] mean NDCG@10, the last trials foremost
    trials: float = 0.0

    @classmethod
    def new(cls, setting: float, trainer: Mapping[str, Tensor] | None = None) -> "ShareFit":
        """Going on from what a version's tensors for the `trainer` have, where they have it."""
        kept = (trainer or {}).get(_GAINS)
        if trainer is None or kept is None or len(kept) != len(SHARES):
            return cls(setting, np.zeros(len(SHARES)))
        return cls(setting, kept.numpy(), float(trainer[_TRIALS]))

    def tensors(self) -> dict[str, Tensor]:
        return {_GAINS: torch.from_numpy(self.gains), _TRIALS: torch.tensor([self.trials])}

    def tried(self, gains: Float32s, new_rows: int) -> "ShareFit":
        """With one more trial: NDCG@10 [SHARES, rows], so many of them on `new_rows`."""
        part = min(max(new_rows, 1) / _NEW_ROWS, 1.0)
        trials = self.trials + part
        step = (gains.mean(axis=1) - self.gains) * part * max(1 / trials, _NEWS)
        return replace(self, gains=self.gains + step, trials=trials)

    @property
    def best(self) -> int:
        """Its place in `SHARES`."""
        pull = _PULL * (np.array(SHARES) - self.setting) ** 2
        return int((self.gains - pull).argmax())
