"""Prequential scores of several recommenders over the same queries.

A query is an event whose user has been answered before. The ranking that it is held against
is the answer to that user's previous event, so it was computed before anything had seen this
one (test, then train). All recommenders are asked the same queries and judged by the same
rule: the place of the event's item in a ranking of ten. Nothing here reads a clock or a topic.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from service.domain import Bools, Int64s

CUTOFF = 10  # length of a ranking: HR@10 and NDCG@10
MISSED = CUTOFF + 1  # the rank of an item that is not in the ranking
_UNKNOWN = 0
_NONE = -1


class Recommender(enum.StrEnum):
    """Whom the scoreboard compares."""

    LIVE = "live"  # the service, learning from the stream
    FROZEN = "frozen"  # the version it started from, its weights never changed
    POPULARITY = "popularity"
    FROZEN_AT_HALF = "frozen_at_half"  # the version that served half-way, never changed after


@dataclass(frozen=True, slots=True)
class Score:
    """Means over queries; 0 without a query."""

    queries: int
    hr_at_10: float
    ndcg_at_10: float


@dataclass(frozen=True, slots=True)
class Curve:
    """A windowed score along the stream."""

    event: Int64s  # how many events of the stream had passed, from its first on
    ndcg_at_10: dict[Recommender, list[float]]
    hr_at_10: dict[Recommender, list[float]]


class Scoreboard:
    """Ranks of every query by recommender, filled in as answers arrive, in any order."""

    def __init__(self, user: Int64s, item: Int64s, first: int) -> None:
        """`user` and `item`: small integers, element i of both is event i of the stream, in
        stream order. Answers count from event `first` on."""
        self._item = item
        self._following = _following(user)
        self._following[:first] = _NONE
        self.queries = np.sort(self._following[self._following != _NONE])  # event indices
        self._ranks: dict[Recommender, Int64s] = {
            who: np.zeros(len(user), np.int64) for who in Recommender
        }

    def asked(self, events: Int64s) -> Bools:
        """Which of these events' answers some query is held against."""
        asked: Bools = self._following[events] != _NONE
        return asked

    def answered(self, who: Recommender, event: int, ranking: Sequence[int]) -> None:
        """`who` answered `event` with `ranking`, best first: it is held against the user's
        following event. Only the first answer to an event counts, as a consumer that drops
        repeated recommendations would see it."""
        following = int(self._following[event])
        if following == _NONE or self._ranks[who][following] != _UNKNOWN:
            return
        self._ranks[who][following] = place(ranking, int(self._item[following]))

    def settled(self, compared: Sequence[Recommender]) -> int:
        """How many of the first queries all of `compared` are judged on, without a gap."""
        known = np.ones(len(self.queries), bool)
        for who in compared:
            known &= self._ranks[who][self.queries] != _UNKNOWN
        return len(known) if known.all() else int(known.argmin())

    def score(self, who: Recommender, queries: slice) -> Score:
        """Over a range of queries, all of which must be settled."""
        rank = self._ranks[who][self.queries[queries]]
        if not len(rank):
            return Score(0, 0.0, 0.0)
        return Score(len(rank), float(_hits(rank).mean()), float(_gains(rank).mean()))

    def since(self, event: int) -> int:
        """The place in `queries` of the first one at or after an event."""
        return int(np.searchsorted(self.queries, event))

    def curve(self, compared: Mapping[Recommender, int], window: int, points: int) -> Curve:
        """Scores over the last `window` queries, at up to `points` evenly spaced places.

        `compared` says from which event on each recommender is drawn. Every recommender's own
        window is cut at its start, and NaN stands where it holds no query yet.
        """
        end = self.settled([who for who, start in compared.items() if start == 0])
        ends = np.unique(np.linspace(min(window // 5, end), end, points).astype(int))
        curve = Curve(
            self.queries[np.maximum(ends - 1, 0)] + 1 if end else np.zeros(0, np.int64), {}, {}
        )
        for who, start in compared.items():
            first = self.since(start)
            rank = self._ranks[who][self.queries]
            known = rank[:end] != _UNKNOWN
            known[:first] = False
            hits, gains = _hits(rank[:end]) * known, _gains(rank[:end]) * known
            curve.hr_at_10[who] = _windowed(hits, known, ends, window)
            curve.ndcg_at_10[who] = _windowed(gains, known, ends, window)
        return curve


def place(ranking: Sequence[int], item: int) -> int:
    """The rank of an item in a ranking, from 1; `MISSED` when not among the first ten."""
    for rank, candidate in enumerate(ranking[:CUTOFF], start=1):
        if candidate == item:
            return rank
    return MISSED


def _following(user: Int64s) -> Int64s:
    """The index of the same user's next event, or `_NONE`."""
    order = np.argsort(user, kind="stable")
    same = user[order[1:]] == user[order[:-1]]
    following = np.full(len(user), _NONE, np.int64)
    following[order[:-1][same]] = order[1:][same]
    return following


def _hits(rank: Int64s) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return (rank <= CUTOFF).astype(np.float64)


def _gains(rank: Int64s) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """NDCG@10 of one relevant item: 1 / log2(1 + rank) (Järvelin and Kekäläinen, 2002)."""
    return np.where(rank <= CUTOFF, 1.0 / np.log2(1.0 + np.maximum(rank, 1)), 0.0)


def _windowed(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    known: Bools,
    ends: Int64s,
    window: int,
) -> list[float]:
    """Means of the known values among the `window` places before each end."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    count = np.concatenate([[0], np.cumsum(known)])
    starts = np.maximum(ends - window, 0)
    counted = count[ends] - count[starts]
    mean = (total[ends] - total[starts]) / np.where(counted == 0, np.nan, counted)
    return [float(value) for value in mean]
