"""Decayed event counts of items: what users without a known history are shown."""

import heapq
from collections.abc import Iterable, Iterator

from service.domain import ItemId

# Counts are kept in ever growing units of "now" instead of being decayed one by one; past
# this they are scaled back, long before a float64 loses its precision.
_LARGEST_UNIT = 1e100
# A ranking is kept for this many events: sorting a large catalogue for every batch would cost
# more than scoring it, and popularity hardly moves within so few.
_REFRESH_EVENTS = 1000
_WALK_FIRST = 64  # items; then twice as many, and so on
# An item whose count has decayed below this is forgotten, so that they do not gather for ever.
_FORGOTTEN = 2.0**-10


class Popularity:
    """Counts of items in which an event weighs half as much `half_life_events` later."""

    def __init__(self, half_life_events: int) -> None:
        self._growth = 2.0 ** (1.0 / half_life_events)
        self._half_life = half_life_events
        self.clear()

    def clear(self) -> None:
        """Forget all counts, as when the events are about to be read again."""
        self._unit = 1.0
        self._counts: dict[ItemId, float] = {}
        self._ranking: list[ItemId] = []
        self._since_ranking = 0
        self._since_pruning = 0

    def __len__(self) -> int:
        return len(self._counts)

    def learn(self, items: Iterable[ItemId]) -> None:
        counts = self._counts
        for item in items:
            self._unit *= self._growth
            counts[item] = counts.get(item, 0.0) + self._unit
            self._since_ranking += 1
            self._since_pruning += 1
        if self._since_pruning >= self._half_life:
            least = _FORGOTTEN * self._unit
            self._counts = {item: count for item, count in counts.items() if count >= least}
            self._since_pruning = 0
        if self._unit > _LARGEST_UNIT:
            self._counts = {item: count / self._unit for item, count in self._counts.items()}
            self._unit = 1.0

    def top(self, k: int) -> list[ItemId]:
        """The k most popular items, best first, at most 1,000 events old."""
        too_short = len(self._ranking) < min(k, len(self._counts))
        if too_short or self._since_ranking >= _REFRESH_EVENTS:
            self._ranking = heapq.nlargest(k, self._counts, key=self._counts.__getitem__)
            self._since_ranking = 0
        return self._ranking[:k]

    def walk(self) -> Iterator[ItemId]:
        """All items, none twice, best first: however many the caller passes over. The first are as
        old as `top`, those behind them maybe of another ranking. Nothing may be learned
        meanwhile."""
        k, given = _WALK_FIRST, set[ItemId]()
        while len(given) < len(self._counts):
            for item in self.top(k):
                if item not in given:
                    given.add(item)
                    yield item
            k *= 2

    def score(self, item: ItemId) -> float:
        """The decayed count, in events of now."""
        return self._counts.get(item, 0.0) / self._unit
