"""What the live model is compared with, asked the same queries in the same order."""

from collections import deque
from dataclasses import asdict
from typing import Protocol

import numpy as np

from service.backtest.engine import PARTITION, Engine
from service.domain import Bools, Events, Int64s, Version
from service.model.memory import Memory
from service.model.ranking import MISSED
from service.model.recommender import Recommender
from service.registry.artifact import NO_ITEM, Artifact
from service.registry.servable import Servable, build_servable, first_blend
from service.scorer.scorer import Scorer
from service.settings import Settings
from service.state.histories import HistorySlab

# Counts are kept in growing units of now; past this they are scaled back.
_LARGEST_UNIT = 1e100


def empty_servable(settings: Settings) -> Servable:
    """A model that knows no item: who is given it leaves all to the memory."""
    model = Recommender.new(settings.model)
    shape = {**model.shape, "blend": asdict(first_blend(settings))}
    return build_servable(shape, Artifact(model.state_dict(), (NO_ITEM,), {}), Version(0), 0, {})


class Contestant(Protocol):
    """Ranks events one after the other, each before it knows it."""

    def rank(self, events: Events, asked: Bools) -> Int64s:
        """Apply events. The rank of each of those `asked`, whose users have a history."""

    def close(self) -> None: ...


class Live:
    """The service itself. Its weights learn when the engine is told to."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def rank(self, events: Events, asked: Bools) -> Int64s:
        return self._engine.rank(events, asked).ranks

    def close(self) -> None:
        self._engine.close()


class Follower:
    """The service's scorer over histories of its own, with the model that it is given."""

    def __init__(self, settings: Settings, champion: Servable, memory: Memory | None) -> None:
        self._slab = HistorySlab.of(PARTITION, settings)
        self._scorer = Scorer.of(settings, champion, {PARTITION: self._slab}, memory)

    def use(self, champion: Servable, memory: Memory | None) -> None:
        """Rank with these from now on."""
        self._scorer.champion, self._scorer.memory = champion, memory

    def rank(self, events: Events, asked: Bools) -> Int64s:
        return self._scorer.score(events, asked).ranks

    def close(self) -> None:
        self._slab.close()


class Popular:
    """The items with the most events so far, an event weighing half as much a half-life later."""

    def __init__(self, half_life_events: float, settings: Settings) -> None:
        """With an infinite half-life all events weigh the same."""
        self._growth = 2.0 ** (1.0 / half_life_events)
        self._unit = 1.0
        self._remembered = settings.history.events
        self._exclude_seen = settings.scorer.exclude_seen
        self._shown = settings.events.codes(settings.events.shown)
        self._negative = settings.events.codes(settings.events.negative)
        self._column: dict[int, int] = {}  # by item key
        self._counts = np.zeros(1024)
        # By user key: columns, and whether each was turned down.
        self._seen: dict[int, deque[tuple[int, bool]]] = {}

    def rank(self, events: Events, asked: Bools) -> Int64s:
        ranks = []
        done = ~np.isin(events.kind, self._shown)
        taken = ~np.isin(events.kind, self._negative)
        for user, item, wanted, counts in zip(
            events.user[done].tolist(),
            events.item[done].tolist(),
            asked[done].tolist(),
            taken[done].tolist(),
            strict=True,
        ):
            column = self._column.setdefault(item, len(self._column))
            if column == len(self._counts):
                self._counts = np.pad(self._counts, (0, column))
            seen = self._seen.setdefault(user, deque(maxlen=self._remembered))
            if wanted:
                hidden = {one for one, down in seen if down or self._exclude_seen}
                ranks.append(self._rank(column, hidden))
            seen.append((column, not counts))
            if counts:
                self._count(column)
        return np.array(ranks, np.int64)

    def _rank(self, column: int, hidden: set[int]) -> int:
        """Ties count against it."""
        counts: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = self._counts
        if column in hidden or counts[column] == 0.0:
            return MISSED
        better = counts[: len(self._column)] >= counts[column]
        return int(better.sum()) - int(better[list(hidden)].sum())

    def _count(self, column: int) -> None:
        self._unit *= self._growth
        self._counts[column] += self._unit
        if self._unit > _LARGEST_UNIT:
            self._counts /= self._unit
            self._unit = 1.0

    def close(self) -> None:
        pass
