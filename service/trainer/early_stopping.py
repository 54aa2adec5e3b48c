"""When to stop passing over the same data, and which pass to keep. Decides only; whoever trains
keeps the weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.domain import Float32s

# Of each row of what is held out, a score in which higher is better; some kinds of rows, or none.
Scores = Sequence[Float32s]

# What fewer rows than this say is chance, and how much chance nobody knows.
_FEWEST = 10
# Standard errors by which a pass must be worse to be undone: chance is seldom so large.
_PLAINLY = 2.0


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """What the holdout said so far in this round. Immutable: `saw` gives the next state."""

    patience: int  # passes without an improvement before stopping
    best: Scores | None = None
    since_best: int = 0
    # Whether the last pass is to be kept. On some hundred rows two passes differ by less than
    # chance: to keep the better one would undo every other pass for nothing.
    keeps: bool = True

    def saw(self, scores: Scores) -> "EarlyStopping":
        """The state after one more pass, of the same rows; what is not a number never improves."""
        if self.best is None or not _is_finite(self.best):
            return replace(self, best=scores)
        gain, error = _gain(self.best, scores)
        if gain > 0:
            return replace(self, best=scores, since_best=0, keeps=True)
        keeps = gain >= -_PLAINLY * error
        return replace(self, since_best=self.since_best + 1, keeps=keeps)

    @property
    def stop(self) -> bool:
        return self.since_best >= self.patience


def _is_finite(scores: Scores) -> bool:
    return all(bool(np.isfinite(one).all()) for one in scores)


def _gain(before: Scores, after: Scores) -> tuple[float, float]:
    """The sum of the kinds' mean gains, and its standard error; of kinds with some rows."""
    gain, variance = 0.0, 0.0
    for one, other in zip(before, after, strict=True):
        if len(one) >= _FEWEST:
            gains = other.astype(np.float64) - one
            gain += float(gains.mean())
            variance += float(gains.var(ddof=1)) / len(gains)
    return gain, math.sqrt(variance)
