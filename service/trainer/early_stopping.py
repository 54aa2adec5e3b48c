"""When to end a round's passes over its events, and which pass to keep."""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """What the holdout said so far in this round. Immutable: `saw` gives the next state."""

    patience: int  # passes without an improvement before stopping
    best: float = -math.inf
    since_best: int = 0

    def saw(self, score: float) -> "EarlyStopping":
        """The state after one more pass; a NaN score never improves."""
        if score > self.best:
            return replace(self, best=score, since_best=0)
        return replace(self, since_best=self.since_best + 1)

    @property
    def improved(self) -> bool:
        """Whether the last pass was the best: keep its weights."""
        return self.since_best == 0

    @property
    def stop(self) -> bool:
        return self.since_best >= self.patience
