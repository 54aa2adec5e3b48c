"""How much an event counts as a target of training.

By its kind, as the settings say, and where it is replayed by its age too. An event by which an item
was turned down has a weight below 0: it is pushed away instead of foretold.
"""

from dataclasses import dataclass

import numpy as np

from service.domain import Float32s, Int64s, Uint8s
from service.settings import Settings

_KINDS = 256  # an event's kind is one byte; one from before the settings changed may have any


@dataclass(frozen=True, slots=True)
class Weighing:
    by_kind: Float32s  # [kinds]
    half_life_ms: float  # infinite where age does not count

    @classmethod
    def of(cls, settings: Settings) -> "Weighing":
        events, half_life_s = settings.events, settings.trainer.replay.half_life_s
        by_kind = np.ones(_KINDS, np.float32)
        by_kind[events.codes(events.weights)] = list(events.weights.values())
        by_kind[events.codes(events.negative)] *= -1
        return cls(by_kind, np.inf if half_life_s is None else half_life_s * 1000)

    def new(self, kind: Uint8s) -> Float32s:
        """Of events that are taught for the first time. Same shape."""
        weight: Float32s = self.by_kind[kind]
        return weight

    def replayed(self, kind: Uint8s, time: Int64s, now_ms: int) -> Float32s:
        """Of events that are taught again: half as much for each half-life since. Same shape."""
        age_ms = np.maximum(now_ms - time, 0)
        return self.new(kind) * np.exp2(-age_ms / self.half_life_ms).astype(np.float32)
