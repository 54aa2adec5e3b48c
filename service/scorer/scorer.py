"""The scorer: applies a batch of events to the histories and ranks items for their users.

Runs in one thread. It takes the champion once per batch; a swap assigns `champion` from
another thread, and the batch under way finishes on the version that it took. One forward
pass serves two ends: the state before an event tells how well the live model foresaw it
(test, then train), the state after it gives the recommendation.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.domain import Bools, Events, Int32s, Int64s, ItemId, Partition, stable_key
from service.model.inference import compact, hide, states_at
from service.model.ranking import MISSED, ranks
from service.model.vocabulary import NO_ROW
from service.registry.servable import Servable
from service.settings import ScorerSettings
from service.state.histories import SLACK, HistorySlab
from service.state.popularity import Popularity

RankedItems = list[tuple[ItemId, float]]


@dataclass(frozen=True, slots=True)
class Places:
    """Where each event stands in the history slabs."""

    slot: Int32s
    ordinal: Int64s


@dataclass(frozen=True, slots=True)
class Scored:
    """The rankings of one batch, all by the same servable."""

    events: Events
    places: Places
    servable: Servable
    rankings: list[RankedItems | None]  # None where no answer was asked for
    ranks: Int64s  # of the events that the live model was tested on; MISSED where not ranked


@dataclass(frozen=True, slots=True)
class _Pasts:
    """Histories at some events, each with the event itself in it."""

    window: Int64s  # [rows, length] item keys, oldest first
    kept: Int64s  # [rows, width] every remembered item key, in no order
    is_earlier: Bools  # [rows, width], False for the event itself


class Scorer:
    """Champion, histories and popularity, as one batch after another sees them."""

    def __init__(
        self,
        champion: Servable,
        slabs: Mapping[Partition, HistorySlab],
        popularity: Popularity,
        settings: ScorerSettings,
        length: int,
    ) -> None:
        self.champion = champion
        self._slabs = slabs
        self._popularity = popularity
        self._settings = settings
        self._length = length

    @property
    def users(self) -> int:
        """Users with a history."""
        return sum(slab.used for slab in self._slabs.values())

    @property
    def evicted(self) -> int:
        """Users forgotten since the slabs at hand were made."""
        return sum(slab.evicted for slab in self._slabs.values())

    def score(self, events: Events, answer: Bools) -> Scored:
        """Apply all events, test the model on and answer those marked in `answer`."""
        servable = self.champion
        places, pasts = self._apply(events, answer)
        rankings: list[RankedItems | None] = [None] * len(events)
        rank = np.zeros(0, np.int64)
        asked = np.flatnonzero(answer)
        if len(asked):
            ranked, rank = self._rank(servable, pasts, events.item[asked])
            for row, ranking in zip(asked.tolist(), ranked, strict=True):
                rankings[row] = ranking
        self._popularity.learn(events.item_ids)
        return Scored(events, places, servable, rankings, rank)

    def _apply(self, events: Events, answer: Bools) -> tuple[Places, _Pasts]:
        """Append all events; give the histories at those marked, as they were just then."""
        slot = np.empty(len(events), np.int32)
        ordinal = np.empty(len(events), np.int64)
        asked = int(answer.sum())
        place = np.cumsum(answer) - 1  # among those asked
        width = max((slab.address.width for slab in self._slabs.values()), default=1)
        window = np.zeros((asked, self._length), np.int64)
        kept = np.zeros((asked, width), np.int64)
        is_earlier = np.zeros((asked, width), np.bool_)
        for partition in np.unique(events.partition).tolist():
            slab = self._slabs[Partition(partition)]
            here = np.flatnonzero(events.partition == partition)
            for rows in _portions(here, events.user, slab.address.users):
                slot[rows], ordinal[rows] = slab.append(
                    events.user[rows],
                    events.item[rows],
                    events.kind[rows],
                    events.timestamp[rows],
                    events.offset[rows],
                )
                rows = rows[answer[rows]]
                end = ordinal[rows] + 1
                window[place[rows]] = slab.windows(slot[rows], end, self._length).item
                kept[place[rows]], kept_ordinal = slab.remembered(slot[rows], end)
                is_earlier[place[rows]] = kept_ordinal < ordinal[rows, None]
        return Places(slot, ordinal), _Pasts(window, kept, is_earlier)

    @torch.inference_mode()
    def _rank(
        self, servable: Servable, pasts: _Pasts, item: Int64s
    ) -> tuple[list[RankedItems], Int64s]:
        """Rankings after each event, and the rank of each tested event before it.

        `item` [batch] are the events' items, the last of each past.
        """
        vocabulary = servable.vocabulary
        rows, lengths = compact(vocabulary.rows(pasts.window))
        target = vocabulary.rows(item)  # [batch]
        before = lengths - 1 - (target != NO_ROW)  # the last place that has not seen the event
        states = states_at(servable.model, rows, np.stack([before, lengths - 1], axis=1))
        scores = states @ servable.table.T  # [batch, 2, items]

        # Row 0 is hidden anyhow, so it stands for what is not to be hidden.
        hidden = vocabulary.rows(pasts.kept) * self._settings.exclude_seen
        rank = _ranks(scores[:, 0], target, hidden * pasts.is_earlier)[before >= 0]

        k = min(self._settings.top_k, len(vocabulary) - 1)
        best, places = hide(scores[:, 1], hidden).topk(k, dim=1)  # [batch, k]
        ranked = [
            self._named(servable, scores_of, rows_of) if length else self._popular(items)
            for scores_of, rows_of, length, items in zip(
                best.tolist(), places.tolist(), lengths.tolist(), pasts.kept, strict=True
            )
        ]
        return ranked, rank

    def _named(self, servable: Servable, scores: list[float], rows: list[int]) -> RankedItems:
        """Item ids for rows; what had to be hidden is left out, so a ranking may be short."""
        ids = servable.vocabulary.ids
        return [
            (ids[row], score) for row, score in zip(rows, scores, strict=True) if score > -torch.inf
        ]

    def _popular(self, seen_keys: Int64s) -> RankedItems:
        """What is shown where the champion knows nothing of the user's history."""
        k = self._settings.top_k
        candidates = self._popularity.top(k + len(seen_keys))
        if self._settings.exclude_seen:
            seen = set(seen_keys.tolist())
            candidates = [item for item in candidates if stable_key(item) not in seen]
        return [(item, self._popularity.score(item)) for item in candidates[:k]]


def _ranks(scores: Tensor, target: Int64s, hidden: Int64s) -> Int64s:
    """The rank of each target [batch] among items that are not hidden [batch, any]."""
    rank = ranks(hide(scores, hidden), torch.from_numpy(target)).numpy()
    rank[target == NO_ROW] = MISSED
    return rank


def _portions(rows: Int64s, user: Int64s, slots: int) -> list[Int64s]:
    """`rows` cut so that a portion has no more than SLACK events of a user and `slots` users.

    With more, an event's history would be gone before it is read.
    """
    _, counts = np.unique(user[rows], return_counts=True)
    if counts.max(initial=0) <= SLACK and len(counts) <= slots:
        return [rows]
    size = min(SLACK, slots)
    return np.split(rows, range(size, len(rows), size))
