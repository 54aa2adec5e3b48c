"""Ranking held-out interactions as the scorer would."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

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
    blended,
    ranks,
    reweighed,
    stack,
)
from service.model.ranking import ndcg
from service.model.recommender import Recommender, unit_rows
from service.model.vocabulary import Vocabulary
from service.trainer.holdout import HoldoutRows
from service.trainer.sequences import strip

CUTOFF = 10
_ROWS_AT_ONCE = 256  # bounds the score matrix: 256 x catalogue


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
        gains = torch.stack(
            [ndcg(ranks(reweighed(mixture, share), asked.target), CUTOFF) for share in shares]
        )
        parts.append(torch.where(mixture.log_sum.isnan(), torch.nan, gains).cpu())
    found: Float32s = torch.cat(parts, dim=1).numpy()
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
