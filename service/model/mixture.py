"""The model's and the memory's rankings as one: a mixture of two distributions over items.

    P(item) = share x softmax(cosine / temperature) + (1 - share) x recalled / its sum

over the items that may be shown. What the memory recalls is sparse: where it recalls nothing,
P rises with the cosine, and the few other items are put in their places one by one. So nothing
of the size of the catalogue is computed beyond the cosines and their softmax's sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.domain import Bools, Float32s, Int64s
from service.model.ranking import MISSED
from service.model.vocabulary import NO_ROW, Vocabulary

_FIT_ROUNDS = 50  # by then the share moves by less than a thousandth


@dataclass(frozen=True, slots=True)
class Blend:
    """How a version mixes; part of its manifest."""

    temperature: float
    share: float  # of the model where both know something of an event, 0 to 1


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the memory recalls for some events; a key may occur more than once in an event."""

    event: Int64s  # [entries]
    key: Int64s  # [entries] item keys
    value: Float32s  # [entries] above 0


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


class Columns:
    """Where items stand in a mixture: at their rows in the vocabulary, and behind these what the
    memory has met since. Column 0 is no item."""

    def __init__(self, vocabulary: Vocabulary, recalled: Int64s) -> None:
        self._vocabulary = vocabulary
        self._met = np.unique(recalled[vocabulary.rows(recalled) == NO_ROW])  # item keys, rising

    def __len__(self) -> int:
        return len(self._vocabulary) + len(self._met)

    def of(self, keys: Int64s) -> Int64s:
        """The column of each key, 0 where it has none. Same shape as `keys`."""
        column = self._vocabulary.rows(keys)
        if len(self._met):
            place = np.minimum(np.searchsorted(self._met, keys), len(self._met) - 1)
            met = self._met[place] == keys
            column = np.where(met, len(self._vocabulary) + place, column)
        return column

    def met(self, column: int) -> int | None:
        """The key of an item that only the memory knows; None for one of the vocabulary."""
        place = column - len(self._vocabulary)
        return int(self._met[place]) if place >= 0 else None


def stack(recalled: Sequence[tuple[Int64s, Float32s]]) -> Recalled:
    """The keys and values that `Memory.recall` gave for event 0, 1, and so on."""
    if not recalled:
        return Recalled(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    sizes = [len(keys) for keys, _ in recalled]
    return Recalled(
        np.repeat(np.arange(len(recalled)), sizes),
        np.concatenate([keys for keys, _ in recalled]),
        np.concatenate([values for _, values in recalled]),
    )


def blended(
    cosines: Tensor, columns: Columns, hidden: Int64s, recalled: Recalled, blend: Blend
) -> Mixture:
    """The mixture for each event over all `columns`.

    cosines [events, rows of the vocabulary], all -inf where the model knows nothing of the
    event; hidden [events, any] columns that must not be shown, 0 where there is none.
    """
    unshown = np.zeros((len(cosines), len(columns)), np.bool_)
    np.put_along_axis(unshown, hidden, values=True, axis=1)
    unshown[:, NO_ROW] = True
    logits = cosines / blend.temperature
    unmet = len(columns) - logits.shape[1]
    logits = torch.nn.functional.pad(logits, (0, unmet), value=-torch.inf)
    logits.masked_fill_(torch.from_numpy(unshown).to(logits.device), -torch.inf)
    entries = add_up(recalled.event, columns.of(recalled.key), recalled.value, unshown)
    return mix(logits, entries, blend.share)


def add_up(event: Int64s, column: Int64s, value: Float32s, hidden: Bools) -> Entries:
    """Entries from what was recalled, of which some may name the same event and column.

    hidden [events, columns] is True where an item must not be shown.
    """
    columns = hidden.shape[1]
    cell, place = np.unique(event * columns + column, return_inverse=True)
    total = np.bincount(place, value, len(cell)).astype(np.float32)
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
    log_sum = logits.logsumexp(dim=1)
    has_model = log_sum > -torch.inf
    has_memory = torch.zeros_like(has_model)
    has_memory[entries.event] = True
    shares = torch.full_like(log_sum, share)
    shares = torch.where(has_memory, shares * has_model, 1.0)
    log_sum = torch.where(has_model, log_sum, 0.0)
    return Mixture(logits, entries, shares, has_memory & has_model, log_sum)


def ranks(mixture: Mixture, target: Tensor) -> Tensor:
    """The rank of each event's target column [events]; ties count against it.

    `MISSED` where neither of the two gives it any probability.
    """
    logits, found = mixture.logits, mixture.entries
    wanted = logits.gather(1, target[:, None]).squeeze(1)  # [events]
    recalled = _recalled_at(mixture, torch.arange(len(target), device=target.device), target)
    chance = _chance(mixture.share, wanted - mixture.log_sum, recalled)
    # Where nothing is recalled, an item is as likely as the target at this logit.
    level = torch.log(chance / mixture.share) + mixture.log_sum
    level = torch.where(recalled > 0, level, wanted)
    rank = (logits >= level[:, None]).sum(dim=1)
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


def chances(mixture: Mixture, target: Tensor) -> tuple[Tensor, Tensor]:
    """Each event's target column [events] by the model alone, and by the memory alone."""
    wanted = mixture.logits.gather(1, target[:, None]).squeeze(1)
    event = torch.arange(len(target), device=target.device)
    return (wanted - mixture.log_sum).exp(), _recalled_at(mixture, event, target)


def fitted_share(model: Tensor, memory: Tensor, prior: float, prior_rows: int) -> float:
    """The share of the model under which the targets were likeliest.

    model and memory [rows] are what each alone gave the target. Expectation maximisation of a
    mixture's weight (Dempster et al., 1977), in which the prior counts as `prior_rows` rows.
    """
    share, rows = prior, float(prior_rows) + float((model + memory > 0).sum())
    for _ in range(_FIT_ROUNDS):
        mixed = share * model + (1.0 - share) * memory
        owed = torch.where(mixed > 0, share * model / mixed, 0.0)
        share = (prior * prior_rows + float(owed.sum())) / max(rows, 1.0)
    return share
