"""Reading the click head: what it expects of shown items, and a ranking in its order.

A ranking's best items are put in the order of

    log P(next is item) + weight x log P(click | history, item)

the weight of which the worker fits on the holdout; 0 leaves the ranking as it is.
"""

import numpy as np
import torch
from torch import Tensor

from service.domain import Float32s, Int32s, Int64s
from service.model.click_head import ClickHead, echoes
from service.model.inference import reading, states_after
from service.model.recommender import Recommender, unit_rows
from service.model.vocabulary import NO_ROW, Vocabulary

_ROWS_AT_ONCE = 1024


@torch.inference_mode()
def foretold(
    model: Recommender,
    head: ClickHead,
    vocabulary: Vocabulary,
    context: Int64s,
    item: Int64s,
    codes: Int32s | None = None,
    standing: Float32s | None = None,
) -> Float32s:
    """What the head expects of each item [rows] after its context [rows, length], both keys, with
    codes [rows, length, features] as in `states_at`; `standing` [rows, STANDING] as it was then,
    or None for now.

    The probability of a click, or a number. [rows]
    """
    with reading(model):
        table = unit_rows(model.table(len(vocabulary))).float()
        parts = [np.zeros(0, np.float32)]
        for start in range(0, len(item), _ROWS_AT_ONCE):
            part, of = context[start : start + _ROWS_AT_ONCE], item[start : start + _ROWS_AT_ONCE]
            beside = None if codes is None else codes[start : start + _ROWS_AT_ONCE]
            row = _like(vocabulary.rows(of), table)
            echo = _like(echoes(part, of[:, None]).squeeze(1), table)
            state = without_history(*states_after(model, vocabulary.rows(part), beside))
            if standing is None:
                stands = head.standing(row)
            else:
                stands = _like(standing[start : start + _ROWS_AT_ONCE], table)
            found = head(state, table[row], torch.cat([echo, stands], dim=-1))
            parts.append(head.expected(found).cpu().numpy())
    return np.concatenate(parts)


def without_history(state: Tensor, lengths: Int64s) -> Tensor:
    """States [rows, dim], 0 where no item of the history is known."""
    return torch.where(_like(lengths, state)[:, None] > 0, state, 0.0)


def reordered(
    head: ClickHead,
    vocabulary: Vocabulary,
    table: Tensor,
    state: Tensor,
    context: Int64s,
    chance: Tensor,
    column: Tensor,
    weights: tuple[float, ...],
) -> Tensor:
    """New scores of each event's best items for each weight; as much in all as `chance` has.

    state [events, dim] is 0 without a history; context [events, length] are item keys; chance and
    column [events, k] are what `best` gave. An item that has no vector yet, which only the memory
    knows, is taken for as likely to be clicked as the others are on average.
    [weights, events, k]; 0 where `chance` is
    """
    row = torch.where(column < len(vocabulary), column, NO_ROW)  # [events, k]
    echo = _like(echoes(context, vocabulary.keys[row.cpu().numpy()]), table)
    signs = torch.cat([echo, head.standing(row)], dim=-1)
    liked = head.preference(head(state[:, None], table[row], signs))  # [events, k]
    known = row != NO_ROW
    mean = (liked * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)
    liked = torch.where(known, liked, mean[:, None])
    scores = torch.stack([chance.log() + weight * liked for weight in weights])
    return scores.softmax(dim=2).nan_to_num() * chance.sum(dim=1, keepdim=True)


def ranks_after(score: Tensor, column: Tensor, target: Tensor, rank: Tensor) -> Tensor:
    """Ranks [events] of the target columns once a ranking's best items have new scores.

    score [events, k], column [events, k] and the `rank` [events] before. Ties count against it.
    """
    is_target = (column == target[:, None]) & (score > 0)  # [events, k]
    own = (score * is_target).sum(dim=1, keepdim=True)
    return torch.where(is_target.any(dim=1), (score >= own).sum(dim=1), rank)


def _like(values: Int64s | Float32s, tensor: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(tensor.device)
