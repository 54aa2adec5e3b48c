"""Reading a recommender: padded histories in, scores and ranks out. Changes nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from service.domain import Int32s, Int64s
from service.model.precision import has_fast_bf16
from service.model.recommender import Recommender
from service.model.shapes import common_size
from service.model.vocabulary import NO_ROW

Integer = TypeVar("Integer", np.int32, np.int64)


@contextmanager
def reading(model: Recommender) -> Iterator[None]:
    """A model in training drops nothing meanwhile."""
    if not model.training:
        yield  # to set what is set takes milliseconds
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


def known_first(rows: Int64s) -> tuple[Int64s, Int64s]:
    """The places of each row with those of known items first, in order; and how many these are.

    rows [batch, length] gives places [batch, length] and lengths [batch].
    """
    known = rows != NO_ROW
    return np.argsort(~known, axis=1, kind="stable"), known.sum(axis=1)


def compact(rows: Int64s) -> tuple[Int64s, Int64s]:
    """Unknown items taken out, the rest moved to the front; and how many remain.

    rows [batch, length] gives rows [batch, longest] and lengths [batch].
    """
    order, lengths = _known_alone(rows)
    return np.take_along_axis(rows, order, axis=1), lengths


def compact_with(rows: Int64s, codes: Int32s) -> tuple[Int64s, Int64s, Int32s]:
    """As `compact`, and codes [batch, length, features] moved with their items. [batch, longest,
    features]"""
    order, lengths = _known_alone(rows)
    moved = np.take_along_axis(codes, order[..., None], axis=1)
    return np.take_along_axis(rows, order, axis=1), lengths, moved


def _known_alone(rows: Int64s) -> tuple[Int64s, Int64s]:
    """As `known_first`, as many places as the longest row needs, one at least."""
    order, lengths = known_first(rows)
    return order[:, : max(int(lengths.max(initial=0)), 1)], lengths


def states_at(
    model: Recommender, rows: Int64s, places: Int64s, codes: Int32s | None = None
) -> Tensor:
    """Unit states at the given places of each sequence. [batch, chosen, dim]

    rows [batch, length] padded at the end; places [batch, chosen]; codes [batch, length, features]
    of what the model reads, or None where it is to do without. A place below 0 gives the
    state of place 0, which the caller has to disregard. The body computes in bfloat16 where that
    is fast, which moves ranks by a place or two in a thousand; what is made of its states stays
    in 32 bits.
    """
    batch = len(rows)
    more = common_size(batch) - batch
    sequences = torch.from_numpy(_lengthened(rows, more)).to(model.device)
    chosen = torch.from_numpy(np.maximum(places, 0)).to(model.device)
    codes = None if codes is None else _lengthened(codes, more)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=has_fast_bf16(model.device)):
        states = model(sequences, _read_by(model, codes))[:batch]  # [batch, length, dim]
    chosen = chosen[:, :, None].expand(-1, -1, states.shape[2])  # [batch, chosen, dim]
    return functional.normalize(states.gather(1, chosen).float(), dim=-1)


def states_after(
    model: Recommender, rows: Int64s, codes: Int32s | None = None
) -> tuple[Tensor, Int64s]:
    """Unit states [batch, dim] after histories [batch, length] with their codes as in `states_at`,
    unknown items passed over, and how many items of each are known [batch]; with none, the caller
    has to disregard the state."""
    if model.context and codes is not None:
        rows, lengths, codes = compact_with(rows, codes)
    else:
        rows, lengths = compact(rows)
    return states_at(model, rows, lengths[:, None] - 1, codes).squeeze(1), lengths


def _lengthened(array: npt.NDArray[Integer], more: int) -> npt.NDArray[Integer]:
    """With so many empty rows below."""
    empty = np.zeros((more, *array.shape[1:]), array.dtype)
    return np.concatenate([array, empty]) if more else np.ascontiguousarray(array)


def _read_by(model: Recommender, codes: Int32s | None) -> Tensor | None:
    if model.context is None or codes is None:
        return None
    return torch.from_numpy(codes).to(model.device)


def hide(scores: Tensor, rows: Int64s) -> Tensor:
    """Give the items at `rows` [batch, any] and row 0 a score of -inf, in place."""
    hidden = torch.from_numpy(rows).to(scores.device)
    scores.scatter_(1, hidden, -torch.inf)
    scores[:, NO_ROW] = -torch.inf
    return scores
