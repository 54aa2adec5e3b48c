"""What the live model is compared with, asked the same queries in the demo's own process."""

import numpy as np

from service.backtest.still import StillMemory
from service.domain import Bools, Int64s, Partition
from service.registry.servable import Servable
from service.sandbox.replay import Ratings
from service.sandbox.scoreboard import CUTOFF
from service.scorer.scorer import Scorer
from service.settings import Settings
from service.state.features import Features
from service.state.histories import HistorySlab

_ALL = Partition(0)  # a user's history is the same in one slab as in two


class FrozenModel:
    """The service's own scorer with a champion that is never swapped again.

    Its histories, popularity and what it leaves out as seen go on as in the service: only the
    weights, the vocabulary and the memory stand still.
    """

    def __init__(
        self, servable: Servable, memory: StillMemory, ratings: Ratings, settings: Settings
    ) -> None:
        self._ratings = ratings
        self._features = Features(settings.model.context, settings.events.kinds)
        self._slab = HistorySlab.of(_ALL, settings)
        self._scorer = Scorer.of(settings, servable, {_ALL: self._slab}, memory)

    def freeze(self, servable: Servable, memory: StillMemory) -> None:
        """Answer with this version from now on."""
        self._scorer.champion, self._scorer.memory = servable, memory

    def answer(self, chosen: Int64s, wanted: Bools) -> list[list[int]]:
        """Apply events, in stream order, and rank films after each one that is `wanted`."""
        partition = np.zeros(len(chosen), np.int32)
        events = self._ratings.columns(chosen, partition, chosen, self._features)
        number = self._ratings.number
        return [
            [number[item] for item, _ in ranking or ()]
            for ranking in self._scorer.score(events, wanted).rankings
        ]

    def close(self) -> None:
        self._slab.close()


class PopularFilms:
    """The films most watched so far that the user has not, older events counting less.

    The half-life is the service's own for users without history. Counted to the last event.
    """

    def __init__(self, ratings: Ratings, half_life_events: int) -> None:
        self._ratings = ratings
        self._decay = 0.5 ** (1.0 / half_life_events)
        self._counts = np.zeros(len(ratings.item_ids))
        self._unseen = np.ones((len(ratings.user_ids), len(ratings.item_ids)), bool)

    def answer(self, chosen: Int64s) -> list[list[int]]:
        """Apply events, in stream order, and rank films after each."""
        return [
            self._after(user, item)
            for user, item in zip(
                self._ratings.user[chosen].tolist(),
                self._ratings.item[chosen].tolist(),
                strict=True,
            )
        ]

    def _after(self, user: int, item: int) -> list[int]:
        self._counts *= self._decay
        self._counts[item] += 1.0
        unseen = self._unseen[user]
        unseen[item] = False
        counts = np.where(unseen, self._counts, 0.0)
        best = (
            np.argpartition(counts, -CUTOFF)[-CUTOFF:]
            if len(counts) > CUTOFF
            else np.arange(len(counts))
        )
        ranking: list[int] = best[np.argsort(-counts[best], kind="stable")].tolist()
        return [film for film in ranking if counts[film] > 0.0]
