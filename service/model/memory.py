"""The memory: decayed item-to-item transitions, the part of the model that learns at once.

An event adds weight from each of the last few items of its user to its own item, less for
those further back, and some in the other direction; an item may follow itself. To recall is to add
up the transitions that lead away from the last items of a history, newest first, and to put
beside them these items themselves, as often as users go back by so many events. What little is
known of an item is shrunk towards nothing (Bell and Koren, 2007), so that the better known ones of
a history say more. Neighbours of this kind are the baseline that session models find hardest to
beat (Ludewig et al., 2021).

    key     [items + 1]      item key; the last is NO_KEY, so that -1 is no item
    to      [items, fanout]  the item, by its row here, that a transition leads to; -1: empty
    weight  [items, fanout]  decayed count of that transition; 0: empty
    count   [items]          decayed events of the item
    damping [items]          count ** -popularity_penalty
    again   [depth, 2]       decayed events whose user had an item so many events before, and
                             those of them that were of that same item

Counts are kept in units that grow, instead of all of them being decayed at every event.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.domain import NO_KEY, Float32s, Int32s, Int64s, ItemId, ItemKey
from service.model.vocabulary import Vocabulary
from service.settings import MemorySettings

# Units are scaled back past this, long before a 32-bit float runs out.
_LARGEST_UNIT = 1e20
# To forget an item takes a look at every transition, so some are forgotten together.
_FORGET_SHARE = 16
_FIRST_ROWS = 1024
_SMALLEST = np.float32(1e-30)  # in place of nothing, to divide by
_EMPTY = -1


@dataclass(frozen=True, slots=True)
class Recollection:
    """What a history brings to mind. Items may stand twice, and some places are empty: there the
    key is NO_KEY and the value 0."""

    row: Int32s  # [places] of the memory
    value: Float32s  # [places]
    # The item keys of the memory's rows. One array while rows only gain items; it is replaced
    # before a row is given to another item, so that what was recalled keeps its meaning.
    keys: Int64s

    @property
    def key(self) -> Int64s:
        """The item keys. [places]"""
        return self.keys[self.row]

    def kept(self) -> "Recollection":
        """The same without its empty places, to be held for longer."""
        taken = np.flatnonzero(self.value)
        return Recollection(self.row[taken], self.value[taken], self.keys)


class Memory:
    """Written by one thread, which alone may read it."""

    def __init__(self, settings: MemorySettings) -> None:
        self._settings = settings
        self._growth = 2.0 ** (1.0 / settings.half_life_events)
        self._by_lag = settings.lag_decay ** np.arange(settings.lag, dtype=np.float32)
        self._by_step = settings.step_decay ** np.arange(settings.depth, dtype=np.float32)
        self.clear()

    @classmethod
    def of(cls, settings: MemorySettings) -> "Memory | None":
        """An empty memory; None where the settings do without."""
        return cls(settings) if settings.enabled else None

    def clear(self) -> None:
        """Forget everything, as when the events are about to be read again."""
        self._unit = 1.0
        self._rows: dict[int, int] = {}  # by item key, longest unseen first
        self._ids: list[ItemId] = []
        self._free: list[int] = []
        self._key = np.array([NO_KEY], np.int64)
        self._to = np.zeros((0, self._settings.fanout), np.int32)
        self._weight = np.zeros((0, self._settings.fanout), np.float32)
        self._count = np.zeros(0, np.float32)
        self._damping = np.zeros(0, np.float32)
        self._again = np.zeros((self._settings.depth, 2))

    def __len__(self) -> int:
        """Items that it knows."""
        return len(self._rows)

    def item_id(self, key: int) -> ItemId | None:
        """The id of an item; None where it is not known."""
        row = self._rows.get(key)
        return None if row is None else self._ids[row] or None

    def learn(self, item: ItemKey, item_id: ItemId, before: Int64s) -> None:
        """One event. `before` are the item keys of its user's events until then, oldest first.

        Keys that are not known, NO_KEY among them, are passed over.
        """
        self._unit *= self._growth
        if self._unit > _LARGEST_UNIT:
            self._scale_back()
        row = self._row(item, item_id)
        self._count[row] += self._unit
        self._damping[row] = float(self._count[row]) ** -self._settings.popularity_penalty
        past = self._newest_first(before, max(self._settings.lag, self._settings.depth))
        self._count_repeats(row, past[: self._settings.depth])
        past = past[: self._settings.lag]
        if past:
            added = self._by_lag[: len(past)] * np.float32(self._unit)
            self._lead_on(past, row, added)
            if self._settings.backward:
                self._lead_back(row, past, added * np.float32(self._settings.backward))

    def recall(self, history: Int64s) -> Recollection:
        """What `history`, oldest first, brings to mind, and how strongly."""
        rows = self._newest_first(history, self._settings.depth)
        if not rows:
            return Recollection(np.zeros(0, np.int32), np.zeros(0, np.float32), self._key)
        to = self._to.take(rows, axis=0)  # [rows, fanout]
        value = self._weight.take(rows, axis=0)  # [rows, fanout]
        evidence = value.sum(axis=1) + np.float32(self._settings.shrinkage * self._unit)
        value *= (self._by_step[: len(rows)] / np.maximum(evidence, _SMALLEST))[:, None]
        # max(count / unit, 1) ** -penalty, without a power for each of them.
        rare = self._unit**self._settings.popularity_penalty
        value *= np.minimum(self._damping.take(to) * np.float32(rare), 1.0)
        if not self._settings.repeat:
            return Recollection(to.ravel(), value.ravel(), self._key)
        met, repeated = self._again[: len(rows)].T
        again = self._settings.repeat * repeated / np.maximum(met, _SMALLEST)
        return Recollection(
            np.concatenate([to.ravel(), np.array(rows, np.int32)]),
            np.concatenate([value.ravel(), again.astype(np.float32)]),
            self._key,
        )

    def nearest(self, key: int) -> int | None:
        """The item key that an item leads to most strongly, but for itself; None where it leads
        nowhere."""
        row = self._rows.get(key)
        if row is None:
            return None
        weight = np.where(self._to[row] == row, 0.0, self._weight[row])
        place = int(weight.argmax())
        return int(self._key[self._to[row, place]]) if weight[place] else None

    def _newest_first(self, keys: Int64s, limit: int) -> list[int]:
        """Rows of the last `limit` of the keys that are known."""
        rows = self._rows
        return [rows[key] for key in keys[-limit:][::-1].tolist() if key in rows]

    def _count_repeats(self, row: int, past: list[int]) -> None:
        again = self._again[: len(past)]  # a view
        again[:, 0] += self._unit
        again[:, 1] += self._unit * (np.array(past, np.int64) == row)

    def _lead_on(self, past: list[int], row: int, added: Float32s) -> None:
        """Transitions from each of `past`, in which a row may stand twice, to `row`."""
        found = self._to.take(past, axis=0) == row  # [past, fanout]
        known = found.any(axis=1)
        place = found.argmax(axis=1)
        if not known.all():
            least = self._weight.take(past, axis=0).argmin(axis=1)
            place = np.where(known, place, least)
        cell = np.array(past) * self._settings.fanout + place
        weight = self._weight.reshape(-1)  # a view, as the next
        self._to.reshape(-1)[cell] = row
        weight[cell] *= known
        np.add.at(weight, cell, added)

    def _lead_back(self, row: int, past: list[int], added: Float32s) -> None:
        """Transitions from `row` to each of `past`."""
        to, weight = self._to[row], self._weight[row]  # views
        ends = to.tolist()  # few enough to be searched faster than numpy is called
        for end, amount in zip(past, added.tolist(), strict=True):
            if end in ends:
                weight[ends.index(end)] += amount
            else:
                least = int(weight.argmin())
                ends[least] = to[least] = end
                weight[least] = amount

    def _row(self, item: ItemKey, item_id: ItemId) -> int:
        row = self._rows.pop(item, None)
        if row is None:
            row = self._new_row()
            self._key[row] = item
            self._ids[row] = item_id
        elif item_id:  # one that was loaded may have had no name
            self._ids[row] = item_id
        self._rows[item] = row  # now the last to be forgotten
        return row

    def _new_row(self) -> int:
        if self._free:
            return self._free.pop()
        if len(self._rows) == self._settings.items:
            self._forget_some()
            return self._free.pop()
        row = len(self._rows)
        if row == len(self._count):
            self._make_room(min(max(2 * row, _FIRST_ROWS), self._settings.items))
        return row

    def _make_room(self, items: int) -> None:
        more = items - len(self._count)
        self._ids += [ItemId("")] * more
        self._key = np.pad(self._key, (0, more))
        self._to = np.pad(self._to, ((0, more), (0, 0)), constant_values=_EMPTY)
        self._weight = np.pad(self._weight, ((0, more), (0, 0)))
        self._count = np.pad(self._count, (0, more))
        self._damping = np.pad(self._damping, (0, more))

    def _forget_some(self) -> None:
        """Free the rows of the items that were seen longest ago, and all that leads to them."""
        oldest = list(self._rows)[: max(len(self._rows) // _FORGET_SHARE, 1)]
        freed = [self._rows.pop(key) for key in oldest]
        lost = np.isin(self._to, freed)
        self._to[lost], self._weight[lost] = _EMPTY, 0.0
        self._to[freed], self._weight[freed], self._count[freed] = _EMPTY, 0.0, 0.0
        self._key = self._key.copy()  # the old one is of what was recalled until now
        self._free = freed

    def _scale_back(self) -> None:
        self._weight /= np.float32(self._unit)
        self._count /= np.float32(self._unit)
        self._again /= self._unit
        self._unit = 1.0
        self._dampen()

    def _dampen(self) -> None:
        # An item of less than one event counts as one, now and until it is met again.
        damping = np.maximum(self._count, 1.0) ** -self._settings.popularity_penalty
        self._damping = damping.astype(np.float32)

    def tensors(self) -> dict[str, Tensor]:
        """All that it has learned, without the ids and without empty places; longest unseen
        items first."""
        self._scale_back()
        rows = np.fromiter(self._rows.values(), np.int64, len(self._rows))
        place = np.full(len(self._count) + 1, _EMPTY, np.int32)  # the last stands for no row
        place[rows] = np.arange(len(rows))
        to = place[self._to[rows]]  # [items, fanout]
        taken = to != _EMPTY
        return {
            "memory.key": torch.from_numpy(self._key[rows]),
            "memory.count": torch.from_numpy(self._count[rows]),
            "memory.transitions": torch.from_numpy(taken.sum(axis=1)),  # [items]
            "memory.to": torch.from_numpy(to[taken]),  # [transitions of all items]
            "memory.weight": torch.from_numpy(self._weight[rows][taken]),
            "memory.again": torch.from_numpy(self._again.copy()),
        }

    def load(self, tensors: Mapping[str, Tensor], vocabulary: Vocabulary) -> None:
        """Take back what `tensors` gave; nothing there is nothing learned.

        An item without a row in `vocabulary` has no name until it is met again. Where the bounds in
        the settings have become too small, it starts empty: it is soon filled again.
        """
        self.clear()
        if "memory.key" not in tensors:
            return
        keys, filled = tensors["memory.key"].numpy(), tensors["memory.transitions"].numpy()
        if len(keys) > self._settings.items or filled.max(initial=0) > self._settings.fanout:
            return
        self._make_room(len(keys))
        self._rows = {key: row for row, key in enumerate(keys.tolist())}
        self._ids = [vocabulary.ids[row] for row in vocabulary.rows(keys).tolist()]
        self._key = np.append(keys, NO_KEY)
        self._count = tensors["memory.count"].numpy().copy()
        taken = np.arange(self._settings.fanout) < filled[:, None]  # [items, fanout]
        self._to[taken] = tensors["memory.to"].numpy()
        self._weight[taken] = tensors["memory.weight"].numpy()
        again = tensors.get("memory.again")  # versions from before they were counted have none
        if again is not None:
            known = min(len(again), self._settings.depth)
            self._again[:known] = again[:known].numpy()
        self._dampen()
