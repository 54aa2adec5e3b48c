"""The scorer: applies a batch of events to the histories and ranks items for their users.

Runs in one thread. It takes the champion once per batch; a swap assigns `champion` from
another thread, and the batch under way finishes on the version that it took. One forward
pass serves two ends: the state before an event tells how well the live model foresaw it
(test, then train), the state after it gives the recommendation.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from service.domain import (
    NO_KEY,
    Bools,
    Erasure,
    Events,
    Int32s,
    Int64s,
    ItemId,
    ItemKey,
    Offsets,
    Partition,
    stable_key,
)
from service.model.clicks import ranks_after, reordered, without_history
from service.model.inference import compact, compact_with, states_at
from service.model.memory import Memory, Recollection
from service.model.mixture import Columns, MemoryRows, Mixture, best, blended, ranks, stack
from service.model.vocabulary import NO_ROW
from service.registry.servable import Servable
from service.scorer.withdrawn import Withdrawn
from service.settings import ScorerSettings, Settings
from service.state.features import picked
from service.state.histories import NOWHERE, SLACK, HistorySlab
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
    unknown: int  # of those to be answered, whose items the servable does not know


@dataclass(frozen=True, slots=True)
class _Pasts:
    """Histories at some events, each with the event itself in it. What was turned down stands
    in `kept` alone."""

    window: Int64s  # [rows, length] item keys, oldest first
    codes: Int32s  # [rows, length, features] beside them
    kept: Int64s  # [rows, width] every remembered item key, in no order
    is_earlier: Bools  # [rows, width], False for the event itself
    turned_down: Bools  # [rows, width], by that event
    recalled_before: list[Recollection]  # the event; empty where there is no memory
    recalled_after: list[Recollection]


class Scorer:
    """Champion, histories, memory and popularity, as one batch after another sees them."""

    def __init__(
        self,
        champion: Servable,
        slabs: Mapping[Partition, HistorySlab],
        popularity: Popularity,
        memory: Memory | None,
        settings: ScorerSettings,
        length: int,
        shown: Sequence[int] = (),
    ) -> None:
        """`memory` learns from every event that is scored; None where the model ranks alone.
        `shown` are the kinds that tell what users were shown: no history has them."""
        self.champion = champion
        self._slabs = slabs
        self._popularity = popularity
        self.memory = memory
        self._settings = settings
        self._length = length
        self._shown = shown
        self._withdrawn = Withdrawn(np.zeros(0, np.int64))
        self.remembered: Offsets = {}  # events before them are in the memory already
        self._memory_rows = MemoryRows(champion.vocabulary)

    @classmethod
    def of(
        cls,
        settings: Settings,
        champion: Servable,
        slabs: Mapping[Partition, HistorySlab],
        memory: Memory | None,
        popularity: Popularity | None = None,
    ) -> "Scorer":
        """As the settings say; without a `popularity` it begins with one that has counted
        nothing."""
        if popularity is None:
            popularity = Popularity(settings.scorer.popularity_half_life_events)
        shown = settings.events.codes(settings.events.shown)
        length = settings.model.max_length
        return cls(champion, slabs, popularity, memory, settings.scorer, length, shown)

    @property
    def users(self) -> int:
        """Users with a history."""
        return sum(slab.known for slab in self._slabs.values())

    @property
    def evicted(self) -> int:
        """Users forgotten since the slabs at hand were made."""
        return sum(slab.evicted for slab in self._slabs.values())

    def withdraw(self, keys: Int64s) -> None:
        """Recommend none of the items with these `keys` (rising), from the next batch on. Any
        thread may call it."""
        if keys is not self._withdrawn.keys:
            self._withdrawn = Withdrawn(keys)

    def erase(self, erasures: Iterable[Erasure]) -> None:
        """Forget the histories of users. What memory and popularity counted is nobody's."""
        for one in erasures:
            self._slabs[one.partition].erase(one.user, one.offset)

    def score(self, events: Events, answer: Bools) -> Scored:
        """Apply all events, test the live model on those marked in `answer`, and answer them.

        None of a kind that tells what was shown may be marked. The model is not tested on those
        that turn an item down."""
        servable = self.champion
        done = ~np.isin(events.kind, self._shown)
        taken = done & ~np.isin(events.kind, self._negative)
        places, codes, pasts = self._apply(events, done, taken, answer)
        applied = {partition: slab.applied for partition, slab in self._slabs.items()}
        ranked: list[RankedItems] = []
        rank = np.zeros(0, np.int64)
        is_known = servable.vocabulary.rows(events.item[answer]) != NO_ROW
        if answer.any():
            ranked, rank = self._rank(servable, pasts, events.item[answer], is_known, taken[answer])
        hidden = np.where(self._settings.exclude_seen | pasts.turned_down, pasts.kept, NO_KEY)
        counts = taken & events.at_or_after(applied)
        rankings = self._complete(events, counts, answer, ranked, hidden)
        events = replace(events, codes=codes)
        return Scored(events, places, servable, rankings, rank, int((~is_known).sum()))

    def _complete(
        self,
        events: Events,
        counts: Bools,
        answer: Bools,
        ranked: list[RankedItems],
        hidden: Int64s,
    ) -> list[RankedItems | None]:
        """Count those of `counts`, one after the other, as popular, and fill up the ranking of each
        marked in `answer` with what is popular just then, but for the items `hidden` from it."""
        rankings: list[RankedItems | None] = [None] * len(events)
        asked = zip(ranked, hidden, strict=True)
        for row, (item_id, is_counted, is_asked) in enumerate(
            zip(events.item_ids, counts.tolist(), answer.tolist(), strict=True)
        ):
            if is_counted:
                self._popularity.learn([item_id])
            if is_asked:
                rankings[row] = self._filled(*next(asked))
        return rankings

    @property
    def _features(self) -> tuple[str, ...]:
        """Keys of the slabs' columns of codes; all slabs have the same."""
        return next((slab.address.features for slab in self._slabs.values()), ())

    @property
    def _negative(self) -> tuple[int, ...]:
        """Kinds by which users turn items down."""
        return next((slab.address.negative for slab in self._slabs.values()), ())

    def _apply(
        self, events: Events, done: Bools, taken: Bools, answer: Bools
    ) -> tuple[Places, Int32s, _Pasts]:
        """Append what users have `done`; give the codes that their histories hold of it, and the
        histories at the events marked in `answer`, as they were just then. The memory learns what
        they have `taken`."""
        slot = np.empty(len(events), np.int32)
        ordinal = np.empty(len(events), np.int64)
        asked = int(answer.sum())
        place = np.cumsum(answer) - 1  # among those asked
        width = max((slab.address.width for slab in self._slabs.values()), default=1)
        window = np.zeros((asked, self._length), np.int64)
        beside = np.zeros((asked, self._length, len(self._features)), np.int32)
        codes = events.codes.copy()
        kept = np.zeros((asked, width), np.int64)
        is_earlier = np.zeros((asked, width), np.bool_)
        turned_down = np.zeros((asked, width), np.bool_)
        before = np.zeros((len(events), self._length), np.int64)
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
                    done[rows],
                    codes[rows],
                )
                if self._features:
                    own = rows[done[rows] & (ordinal[rows] != NOWHERE)]
                    codes[own] = slab.codes(slot[own], ordinal[own])
                if self.memory is not None:  # an empty one is false
                    before[rows] = slab.windows(slot[rows], ordinal[rows], self._length).item
                rows = rows[answer[rows]]
                end = ordinal[rows] + 1
                windows = slab.windows(slot[rows], end, self._length)
                window[place[rows]], beside[place[rows]] = windows.item, windows.codes
                kept[place[rows]], kept_ordinal, turned_down[place[rows]] = slab.remembered(
                    slot[rows], end
                )
                earlier = (kept_ordinal >= 0) & (kept_ordinal < ordinal[rows, None])
                is_earlier[place[rows]] = earlier
        recalled = self._learn(events, before, taken, answer)
        pasts = _Pasts(window, beside, kept, is_earlier, turned_down, *recalled)
        return Places(slot, ordinal), codes, pasts

    def _learn(
        self, events: Events, before: Int64s, taken: Bools, answer: Bools
    ) -> tuple[list[Recollection], list[Recollection]]:
        """Let the memory learn what users have `taken`, one event after the other; what each of
        those marked in `answer` recalls just before and just after it is learned."""
        earlier: list[Recollection] = []
        later: list[Recollection] = []
        memory = self.memory
        if memory is None:
            return earlier, later
        lengths = (before != NO_KEY).sum(axis=1).tolist()
        learns = taken & events.at_or_after(self.remembered)
        for row in np.flatnonzero(taken | answer).tolist():
            item, item_id, asked = int(events.item[row]), events.item_ids[row], answer[row]
            history = before[row, : lengths[row]]
            if asked:
                earlier.append(memory.recall(history))
            if learns[row]:
                memory.learn(ItemKey(item), item_id, history)
            if taken[row]:
                history = np.append(history, item) if asked else history
            if asked:
                later.append(memory.recall(history))
        return earlier, later

    @torch.inference_mode()
    def _rank(
        self, servable: Servable, pasts: _Pasts, item: Int64s, is_known: Bools, taken: Bools
    ) -> tuple[list[RankedItems], Int64s]:
        """Rankings after each event, some of them short, and the rank of each tested one before it.

        `item` [batch] are the events' items; `is_known` those that the servable knows, `taken`
        those that were not turned down, each the last of its window. Of these an event is tested
        when its user has a history.
        """
        vocabulary = servable.vocabulary
        padded = vocabulary.rows(pasts.window)
        codes = None
        if servable.model.context:
            codes = picked(pasts.codes, self._features, servable.model.features)
            rows, lengths, codes = compact_with(padded, codes)
        else:
            rows, lengths = compact(padded)
        # Places that have not seen the event, and that have.
        known = np.stack([lengths - (is_known & taken), lengths], axis=1)
        states = states_at(servable.model, rows, known - 1, codes)  # [batch, 2, dim]
        cosines = states @ servable.table.T  # [batch, 2, items]
        cosines[torch.from_numpy(known == 0)] = -torch.inf

        if self._memory_rows.vocabulary is not vocabulary:
            self._memory_rows = MemoryRows(vocabulary)
        before = stack(pasts.recalled_before, self._memory_rows)
        after = stack(pasts.recalled_after, self._memory_rows)
        columns = Columns(vocabulary, before, after)
        hides = self._settings.exclude_seen | pasts.turned_down
        hidden = columns.of(pasts.kept) * hides  # [batch, width]
        tested = blended(cosines[:, 0], columns, hidden * pasts.is_earlier, before, servable.blend)
        target = torch.from_numpy(columns.of(item))
        rank = ranks(tested, target)
        withdrawn = self._withdrawn.columns(columns)
        answered = blended(cosines[:, 1], columns, hidden, after, servable.blend, withdrawn)
        if servable.blend.rerank:
            past = _without_last(pasts.window)
            tops = _shown(
                servable, tested, servable.blend.candidates, states[:, 0], known[:, 0], past
            )
            rank = ranks_after(*tops, target, rank)
        chance, column = _shown(
            servable, answered, self._settings.top_k, states[:, 1], known[:, 1], pasts.window
        )
        ranked = [
            self._named(servable, columns, chances, places)
            for chances, places in zip(chance.tolist(), column.tolist(), strict=True)
        ]
        has_history = (pasts.is_earlier & ~pasts.turned_down).any(axis=1)
        return ranked, rank.numpy()[taken & has_history]

    def _named(
        self, servable: Servable, columns: Columns, chances: list[float], places: list[int]
    ) -> RankedItems:
        """Item ids for columns; what had to be hidden is left out, so a ranking may be short."""
        ids = servable.vocabulary.ids
        ranking = []
        for chance, place in zip(chances, places, strict=True):
            met = columns.met(place)
            name = ids[place] if met is None else self._met(met)
            if chance > 0 and name is not None:
                ranking.append((name, chance))
        return ranking

    def _met(self, key: int) -> ItemId | None:
        """An item that only the memory knows; None where it was forgotten a moment ago."""
        return None if self.memory is None else self.memory.item_id(key)

    def _filled(self, ranking: RankedItems, hidden: Int64s) -> RankedItems:
        """What is popular behind a ranking that is short, with a score of 0; all of it, with its
        counts, where neither champion nor memory knows anything of the history."""
        k = self._settings.top_k
        if len(ranking) == k:
            return ranking
        shown = {item for item, _ in ranking}
        hidden_keys, withdrawn = set(hidden.tolist()), self._withdrawn
        for item in self._popularity.walk():
            key = stable_key(item)
            if item not in shown and key not in hidden_keys and key not in withdrawn:
                ranking.append((item, 0.0 if shown else self._popularity.score(item)))
            if len(ranking) == k:
                break
        return ranking


def _shown(
    servable: Servable, mixture: Mixture, k: int, state: Tensor, lengths: Int64s, window: Int64s
) -> tuple[Tensor, Tensor]:
    """The k best items of each event as they are shown, scores and columns. [events, k] each

    state [events, dim] and known `lengths` [events] of the histories in `window` [events, length].
    """
    head, blend = servable.model.click, servable.blend
    if head is None or not blend.rerank:
        return best(mixture, k)
    chance, column = best(mixture, max(k, blend.candidates))
    state = without_history(state, lengths)
    (score,) = reordered(
        head, servable.vocabulary, servable.table, state, window, chance, column, (blend.rerank,)
    )
    score, order = score.topk(min(k, score.shape[1]), dim=1)
    return score, column.gather(1, order)


def _without_last(window: Int64s) -> Int64s:
    """Histories [rows, length] without their last event."""
    earlier = window.copy()
    last = (window != NO_KEY).sum(axis=1) - 1
    earlier[np.arange(len(window)), last] = NO_KEY
    return earlier


def _portions(rows: Int64s, user: Int64s, slots: int) -> list[Int64s]:
    """`rows` cut so that a portion has no more than SLACK events of a user and `slots` users.

    With more, an event's history would be gone before it is read.
    """
    _, counts = np.unique(user[rows], return_counts=True)
    if counts.max(initial=0) <= SLACK and len(counts) <= slots:
        return [rows]
    size = min(SLACK, slots)
    return np.split(rows, range(size, len(rows), size))
