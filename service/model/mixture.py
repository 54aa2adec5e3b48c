"""The model's and the memory's rankings as one: a mixture of two distributions over items.

    P(item) = share x softmax(cosine / temperature) + (1 - share) x recalled / its sum

over the items that may be shown. What the memory recalls is sparse: where it recalls nothing,
P rises with the cosine, and the few other items are put in their places one by one. So nothing
of the size of the catalogue is computed beyond the cosines and their softmax's sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from service.domain import NO_KEY, Bools, Float32s, Int32s, Int64s
from service.model.memory import Recollection
from service.model.ranking import MISSED
from service.model.vocabulary import NO_ROW, Vocabulary

_NOT_ASKED = -1
_NOTHING: Int64s = np.zeros(0, np.int64)
# Sums over logits are made of so many at once: what they need beside stays in the cache. Over a
# large catalogue fresh memory for it would take longer than the sums.
_LOGITS_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Blend:
    """How a version mixes; part of its manifest."""

    temperature: float
    share: float  # of the model where both know something of an event, 0 to 1
    rerank: float = 0.0  # weight of the click head over the best items; 0: their order stays
    candidates: int = 0  # so many of them


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the memory recalls for some events; an item may occur more than once in an event."""

    event: Int64s  # [entries]
    row: Int64s  # [entries] of the vocabulary; NO_ROW: not in it, or no item
    value: Float32s  # [entries] 0 or more
    stranger: Int64s  # [strangers] the entries whose items are not in the vocabulary
    stranger_key: Int64s  # [strangers] their item keys


@dataclass(frozen=True, slots=True)
class Entries:
    """What the memory recalls, once for each event and column, in the order of both."""

    cell: Tensor  # [entries] event x columns + column, rising
    event: Tensor  # [entries]
    value: Tensor  # [entries] those of an event sum to 1


@dataclass(frozen=True, slots=True)
class Mixture:
    """Events and the items that may be shown to each."""

    logits: Tensor  # [events, columns] cosine / temperature; -inf: hidden, or not the model's
    entries: Entries
    share: Tensor  # [events] of the model: 0 or 1 where only one of the two knows something
    both: Tensor  # [events] whether both do
    log_sum: Tensor  # [events] of the softmax; 0 where there is nothing to sum


class MemoryRows:
    """Where the memory's items stand in one vocabulary. Each is looked up once, when it is first
    recalled: a batch recalls hundreds of thousands, and a new version must not take longer."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._keys: Int64s = np.array([NO_KEY], np.int64)
        self._row: Int64s = np.array([NO_ROW], np.int64)

    def of(self, keys: Int64s, memory_row: Int32s) -> Int64s:
        """The row in the vocabulary of items that stand at `memory_row` in `keys`; NO_ROW where
        it does not know them. `keys` as in `Recollection`."""
        if keys is not self._keys:
            self._keys, self._row = keys, np.full(len(keys), _NOT_ASKED, np.int64)
        row = self._row.take(memory_row)
        asked = np.unique(memory_row[row == _NOT_ASKED])
        if len(asked):
            self._row[asked] = self.vocabulary.rows(keys[asked])
            row = self._row.take(memory_row)
        return row


class Columns:
    """Where items stand in a mixture: at their rows in the vocabulary, and behind these what the
    memory has met since. Column 0 is no item."""

    def __init__(self, vocabulary: Vocabulary, *recalled: Recalled) -> None:
        self.vocabulary = vocabulary
        keys = [one.stranger_key for one in recalled]
        # Keys of what only the memory knows, rising.
        self.strangers = np.unique(np.concatenate(keys)) if keys else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.vocabulary) + len(self.strangers)

    def of(self, keys: Int64s) -> Int64s:
        """The column of each key, 0 where it has none. Same shape as `keys`."""
        column = self.vocabulary.rows(keys)
        if len(self.strangers):
            place = np.minimum(np.searchsorted(self.strangers, keys), len(self.strangers) - 1)
            met = self.strangers[place] == keys
            column = np.where(met, len(self.vocabulary) + place, column)
        return column

    def of_recalled(self, recalled: Recalled) -> Int64s:
        """The column of each entry, 0 where it is no item. [entries]"""
        if not len(recalled.stranger):
            return recalled.row
        column = recalled.row.copy()
        place = np.searchsorted(self.strangers, recalled.stranger_key)
        column[recalled.stranger] = len(self.vocabulary) + place
        return column

    def met(self, column: int) -> int | None:
        """The key of an item that only the memory knows; None for one of the vocabulary."""
        place = column - len(self.vocabulary)
        return int(self.strangers[place]) if place >= 0 else None


def stack(recollections: Sequence[Recollection], memory_rows: MemoryRows) -> Recalled:
    """What was recalled for event 0, 1, and so on."""
    event = np.repeat(np.arange(len(recollections)), [len(one.row) for one in recollections])
    nothing = np.zeros(0, np.int64)
    rows, strangers, keys, start = [nothing], [nothing], [nothing], 0
    # The memory's rows keep their meaning all through a batch, unless some items are forgotten.
    for _, group in groupby(recollections, key=lambda one: id(one.keys)):
        alike = list(group)
        memory_row = np.concatenate([one.row for one in alike])
        row = memory_rows.of(alike[0].keys, memory_row)
        stranger = np.flatnonzero((row == NO_ROW) & (memory_row >= 0))
        rows.append(row)
        strangers.append(start + stranger)
        keys.append(alike[0].keys[memory_row[stranger]])
        start += len(row)
    values = [np.zeros(0, np.float32), *(one.value for one in recollections)]
    return Recalled(
        event,
        np.concatenate(rows),
        np.concatenate(values),
        np.concatenate(strangers),
        np.concatenate(keys),
    )


def blended(
    cosines: Tensor,
    columns: Columns,
    hidden: Int64s,
    recalled: Recalled,
    blend: Blend,
    withdrawn: Int64s = _NOTHING,
) -> Mixture:
    """The mixture for each event over all `columns`.

    cosines [events, rows of the vocabulary], all -inf where the model knows nothing of the
    event; hidden [events, any] columns that must not be shown, 0 where there is none; withdrawn
    [any] columns that must not be in any event.
    """
    unshown = np.zeros((len(cosines), len(columns)), np.bool_)
    np.put_along_axis(unshown, hidden, values=True, axis=1)
    unshown[:, NO_ROW] = True
    unshown[:, withdrawn] = True
    known = cosines.shape[1]
    logits = cosines.new_empty(unshown.shape)
    torch.div(cosines, blend.temperature, out=logits[:, :known])
    logits[:, known:] = -torch.inf
    logits.scatter_(1, torch.from_numpy(hidden).to(logits.device), -torch.inf)
    logits[:, NO_ROW] = -torch.inf
    logits[:, torch.from_numpy(withdrawn).to(logits.device)] = -torch.inf
    entries = add_up(recalled.event, columns.of_recalled(recalled), recalled.value, unshown)
    return mix(logits, entries, blend.share)


def add_up(event: Int64s, column: Int64s, value: Float32s, hidden: Bools) -> Entries:
    """Entries from what was recalled, of which some may name the same event and column.

    hidden [events, columns] is True where an item must not be shown. It has at most 2 ** 31
    places; no value is below 0.
    """
    columns = hidden.shape[1]
    # In one number each, cells are sorted together with their values. The order of the values of
    # a cell does not matter, so no index has to be sorted along, which takes three times as long.
    packed = (event * columns + column) << 32 | value.view(np.uint32)
    packed.sort()
    cell, value = packed >> 32, packed.astype(np.uint32).view(np.float32)
    first = np.flatnonzero(np.diff(cell, prepend=-1))
    cell, total = cell[first], np.add.reduceat(value, first)
    shown = ~hidden.reshape(-1)[cell] & (total > 0)  # a transition may be without weight
    cell, total = cell[shown], total[shown]
    of = cell // columns
    total = total / np.bincount(of, total, len(hidden))[of]
    return Entries(
        torch.from_numpy(cell), torch.from_numpy(of), torch.from_numpy(total.astype(np.float32))
    )


def mix(logits: Tensor, entries: Entries, share: float) -> Mixture:
    """A mixture in which an event that one of the two knows nothing of is left to the other."""
    device = logits.device
    entries = Entries(entries.cell.to(device), entries.event.to(device), entries.value.to(device))
    portions = logits.split(_events_at_once(logits))
    log_sum = torch.cat([portion.logsumexp(dim=1) for portion in portions])
    has_model = log_sum != -torch.inf  # what is not a number shall be seen
    has_memory = torch.zeros_like(has_model)
    has_memory[entries.event] = True
    shares = torch.full_like(log_sum, share)
    shares = torch.where(has_memory, shares * has_model, 1.0)
    log_sum = torch.where(has_model, log_sum, 0.0)
    return Mixture(logits, entries, shares, has_memory & has_model, log_sum)


def reweighed(mixture: Mixture, share: float) -> Mixture:
    """The same with another share of the model where both know something."""
    return replace(mixture, share=torch.where(mixture.both, share, mixture.share))


def ranks(mixture: Mixture, target: Tensor, highest: Tensor | None = None) -> Tensor:
    """The rank of each event's target column [events]; ties count against it.

    `MISSED` where neither of the two gives it any probability. With the `highest` logits of each
    event, [events, k], ranks of k and more may come out better than they are, but not than k.
    """
    logits, found = mixture.logits, mixture.entries
    wanted = logits.gather(1, target[:, None]).squeeze(1)  # [events]
    recalled = _recalled_at(mixture, torch.arange(len(target), device=target.device), target)
    chance = _chance(mixture.share, wanted - mixture.log_sum, recalled)
    # Where nothing is recalled, an item is as likely as the target at this logit.
    level = torch.log(chance / mixture.share) + mixture.log_sum
    level = torch.where(recalled > 0, level, wanted)
    counted = logits if highest is None else highest
    size = _events_at_once(counted)
    portions = zip(counted.split(size), level[:, None].split(size), strict=True)
    rank = torch.cat([as_high(portion, at) for portion, at in portions])
    # The recalled items were counted by their logits alone.
    own = logits.view(-1)[found.cell]
    event = found.event
    mixed = _chance(mixture.share[event], own - mixture.log_sum[event], found.value)
    right = (mixed >= chance[event]).long() - (own >= level[event]).long()
    rank.index_add_(0, event, right)
    return torch.where(chance > 0, rank, MISSED)


def best(mixture: Mixture, k: int) -> tuple[Tensor, Tensor]:
    """The k most probable items of each event: probabilities and columns. [events, k] each

    A probability of 0 means that there are fewer.
    """
    logits, found = mixture.logits, mixture.entries
    events, columns = logits.shape
    top, column = logits.topk(min(k, columns), dim=1)  # [events, k]
    row = torch.arange(events, device=logits.device)[:, None].expand_as(column)
    plain = _chance(mixture.share[:, None], top - mixture.log_sum[:, None], torch.zeros_like(top))
    # What is recalled too stands among the entries with its whole probability.
    plain = torch.where(_recalled_at(mixture, row, column) > 0, 0.0, plain)
    event = found.event
    own = logits.view(-1)[found.cell] - mixture.log_sum[event]
    counts = torch.bincount(event, minlength=events)
    place = torch.arange(len(event), device=event.device) - (counts.cumsum(0) - counts)[event]
    width = int(counts.max()) if events else 0
    mixed = torch.zeros(events, width, device=logits.device)
    mixed[event, place] = _chance(mixture.share[event], own, found.value)
    names = torch.zeros(events, width, dtype=torch.long, device=logits.device)
    names[event, place] = found.cell % columns
    chance, order = torch.cat([plain, mixed], dim=1).topk(min(k, column.shape[1] + width), dim=1)
    return chance, torch.cat([column, names], dim=1).gather(1, order)


def as_high(logits: Tensor, level: Tensor) -> Tensor:
    """How many of each row are not below its level. Sums of numbers are a fifth of the work that
    sums of booleans are, and exact to 16 million."""
    return torch.ge(logits, level, out=torch.empty_like(logits)).sum(dim=1).long()


def _events_at_once(logits: Tensor) -> int:
    return max(_LOGITS_AT_ONCE // logits.shape[1], 1)


def _chance(share: Tensor, log_p: Tensor, recalled: Tensor) -> Tensor:
    return share * log_p.exp() + (1.0 - share) * recalled


def _recalled_at(mixture: Mixture, event: Tensor, column: Tensor) -> Tensor:
    """The memory's value at some events and columns, 0 where it recalls nothing."""
    found = mixture.entries
    if not len(found.cell):
        return torch.zeros(event.shape, device=event.device)
    cell = event * mixture.logits.shape[1] + column
    place = torch.searchsorted(found.cell, cell).clamp_(max=len(found.cell) - 1)
    return torch.where(found.cell[place] == cell, found.value[place], 0.0)
