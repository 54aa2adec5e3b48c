"""Ranking held-out interactions as the scorer would."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from service.domain import Float32s, Int64s
from service.model.inference import reading, states_after
from service.model.memory import Memory, Recollection
from service.model.mixture import (
    Blend,
    Columns,
    MemoryRows,
    Mixture,
    Recalled,
    as_high,
    blended,
    ranks,
    reweighed,
    stack,
)
from service.model.ranking import ndcg
from service.model.recommender import Recommender, unit_rows
from service.model.vocabulary import NO_ROW, Vocabulary
from service.trainer.holdout import HoldoutRows
from service.trainer.sequences import strip

CUTOFF = 10
_ROWS_AT_ONCE = 128  # bounds the score matrix: 128 x catalogue
_ITEMS_AT_ONCE = 2048
_NOISE = 1e-6  # of a cosine


@dataclass(frozen=True, slots=True)
class Questions:
    """Some held-out rows and what model and memory say of them."""

    rows: HoldoutRows
    state: Tensor  # [rows, dim] after each context
    lengths: Int64s  # [rows] known items of each context
    table: Tensor  # [items, dim] unit item vectors
    cosines: Tensor  # [rows, items], -inf where the model knows nothing of the context
    columns: Columns
    hidden: Int64s  # [rows, any] columns that must not be shown
    recalled: Recalled
    target: Tensor  # [rows] columns

    def mixture(self, blend: Blend) -> Mixture:
        return blended(self.cosines, self.columns, self.hidden, self.recalled, blend)


def recalled(memory: Memory | None, held: HoldoutRows) -> Iterator[Recollection]:
    """What the memory says now of each row; nothing where there is none."""
    if memory is not None:
        yield from (memory.recall(strip(context)) for context in held.context)


@torch.inference_mode()
def evaluate(
    model: Recommender,
    vocabulary: Vocabulary,
    held: HoldoutRows,
    recollections: Iterable[Recollection],
    *,
    temperature: float,
    shares: Sequence[float],
    exclude_seen: bool,
) -> Float32s:
    """NDCG@10 of every held-out row under each share of the model. [shares, rows]

    `recollections` are what the memory recalls for each row; none where the model ranks alone.
    An item that neither model nor memory can recommend counts 0. NaN where the model's scores
    are not numbers.
    """
    parts = [torch.zeros(len(shares), 0)]
    for asked in questions(model, vocabulary, held, recollections, exclude_seen=exclude_seen):
        mixture = asked.mixture(Blend(temperature, shares[0]))
        # Of many shares, each would be counted through the whole catalogue.
        k = min(CUTOFF + 1, mixture.logits.shape[1])
        highest = mixture.logits.topk(k, dim=1).values if len(shares) > 1 else None
        gains = torch.stack(
            [
                ndcg(ranks(reweighed(mixture, share), asked.target, highest), CUTOFF)
                for share in shares
            ]
        )
        parts.append(torch.where(mixture.log_sum.isnan(), torch.nan, gains).cpu())
    found: Float32s = torch.cat(parts, dim=1).numpy()
    return found


@torch.inference_mode()
def evaluate_alone(
    model: Recommender, vocabulary: Vocabulary, held: HoldoutRows, *, exclude_seen: bool
) -> Float32s:
    """As `evaluate` of the model without a memory, in half the time: no probabilities are made, and
    scores are counted while they are in the cache. [rows]

    What differs from the target's score by the noise of arithmetic counts as a tie, against it.
    """
    if not len(held):
        return np.zeros(0, np.float32)
    with reading(model):
        table = unit_rows(model.table(len(vocabulary))).float()
        device = table.device
        state, lengths = states_after(model, vocabulary.rows(held.context), held.codes)
    target = torch.from_numpy(vocabulary.rows(held.item)).to(device)
    hidden = torch.from_numpy(vocabulary.rows(held.context) * exclude_seen).to(device)
    wanted = (state * table[target]).sum(dim=1)  # [rows]
    rank = torch.ones_like(target)
    for start in range(NO_ROW + 1, len(table), _ITEMS_AT_ONCE):
        scores = state @ table[start : start + _ITEMS_AT_ONCE].T  # [rows, some items]
        for column in (hidden, target[:, None]):  # the target counts already
            row, place = ((column >= start) & (column < start + scores.shape[1])).nonzero().T
            scores[row, column[row, place] - start] = -torch.inf
        rank += as_high(scores, wanted[:, None] - _NOISE)
    can_be_shown = (target != NO_ROW) & (target[:, None] != hidden).all(dim=1)
    can_be_shown &= torch.from_numpy(lengths > 0).to(device)
    gains = torch.where(can_be_shown, ndcg(rank, CUTOFF), 0.0)
    found: Float32s = torch.where(wanted.isnan(), torch.nan, gains).cpu().numpy()
    return found


def questions(
    model: Recommender,
    vocabulary: Vocabulary,
    held: HoldoutRows,
    recollections: Iterable[Recollection],
    *,
    exclude_seen: bool,
) -> Iterator[Questions]:
    """The rows a few at a time, for use under inference mode. Of `recollections` no more are made
    at once, so they may be a generator."""
    if not len(held):
        return  # a whole catalogue of item vectors would be made for nothing
    with reading(model):
        memory_rows, recollection = MemoryRows(vocabulary), iter(recollections)
        table = unit_rows(model.table(len(vocabulary))).float()
        for start in range(0, len(held), _ROWS_AT_ONCE):
            part = held.take(slice(start, start + _ROWS_AT_ONCE))
            recalled = stack(list(islice(recollection, len(part))), memory_rows)
            columns = Columns(vocabulary, recalled)
            state, lengths = states_after(model, vocabulary.rows(part.context), part.codes)
            cosines = state @ table.T  # [rows, items]
            cosines[torch.from_numpy(lengths == 0)] = -torch.inf
            yield Questions(
                part,
                state,
                lengths,
                table,
                cosines,
                columns,
                columns.of(part.context) * exclude_seen,
                recalled,
                torch.from_numpy(columns.of(part.item)).to(cosines.device),
            )
