"""Training sequences packed into rows without padding.

Most histories are short, so one to a row would be mostly padding. Several stand in a row
instead, each with positions of its own from 0; a backbone that reads such rows keeps them apart
by that, and where one cannot, each has a row to itself.
"""

from dataclasses import dataclass

import numpy as np
import torch

from service.domain import Bools, Float32s, Int32s, Int64s, no_codes
from service.model.inference import known_first
from service.model.shapes import common_size
from service.model.vocabulary import NO_ROW

BLOTTED = -1  # the row of an item that is not to be read in its place


@dataclass(frozen=True, slots=True)
class Packed:
    """What a step reads, [rows, width] each, and what it is to foretell."""

    item: torch.Tensor  # item rows, NO_ROW where empty
    position: torch.Tensor  # in the sequence
    label: torch.Tensor  # the item row that comes next, NO_ROW where it is not a target
    replayed: torch.Tensor  # whether it was learned before
    codes: torch.Tensor  # [rows, width, features] beside the items
    weight: torch.Tensor | None  # of each label; None: all count the same


def pack(
    rows: Int64s,
    target: Bools,
    width: int,
    device: torch.device,
    *,
    together: bool,
    replayed: int = 0,
    codes: Int32s | None = None,
    weight: Float32s | None = None,
) -> Packed:
    """Sequences of item rows [sequences, length], of which `target` are to be foretold.

    Unknown items (NO_ROW) are taken out; what is BLOTTED out keeps its place without an item. A
    sequence without a target left is left out.
    `width` is at least length - 1. With `together`, sequences share rows. The last `replayed`
    of them are. `codes` [sequences, length, features] stand beside the items; None: there are none.
    `weight` [sequences, length] is how much each target counts; None: all the same.
    """
    order, lengths = known_first(rows)
    rows = np.take_along_axis(rows, order, axis=1)
    codes = no_codes(*rows.shape) if codes is None else codes
    codes = np.take_along_axis(codes, order[..., None], axis=1)
    weight = np.ones(rows.shape, np.float32) if weight is None else weight
    weight = np.take_along_axis(weight, order, axis=1)
    target = np.take_along_axis(target, order, axis=1) & (rows != NO_ROW)
    target[:, 0] = False  # nothing stands before it
    kept = target.any(axis=1)
    old = (np.arange(len(rows)) >= len(rows) - replayed)[kept]
    rows, target, codes, weight = rows[kept], target[kept], codes[kept], weight[kept]
    lengths = lengths[kept] - 1  # the last is no input
    row, start = _places(lengths, width) if together else _one_each(lengths)
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(sequence)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    at = row[sequence], start[sequence] + position
    shape = common_size(int(row.max(initial=-1)) + 1), int((start + lengths).max(initial=0))
    columns = []
    for values in (
        np.where(rows == BLOTTED, NO_ROW, rows)[sequence, position],
        position,
        np.where(target[sequence, position + 1], rows[sequence, position + 1], NO_ROW),
        old[sequence],
        codes[sequence, position],
        weight[sequence, position + 1],
    ):
        column = np.zeros(shape + values.shape[1:], values.dtype)
        column[at] = values
        columns.append(torch.from_numpy(column).to(device))
    item, place, label, again, beside, counts = columns
    even = bool((weight[target] == 1.0).all())
    return Packed(item, place, label, again, beside, None if even else counts)


def _one_each(lengths: Int64s) -> tuple[Int64s, Int64s]:
    return np.arange(len(lengths)), np.zeros(len(lengths), np.int64)


def _places(lengths: Int64s, width: int) -> tuple[Int64s, Int64s]:
    """Row and first column of each sequence, the longest first into the fullest row that holds
    it (best fit decreasing)."""
    row, start = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    by_room: list[list[int]] = [[] for _ in range(width + 1)]  # rows by the columns they have left
    open_rooms = 0  # bit i: there is a row with so many
    rows = 0
    for sequence in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[sequence])
        fitting = open_rooms >> length << length
        if fitting:
            room = (fitting & -fitting).bit_length() - 1
            chosen = by_room[room].pop()
            open_rooms ^= 0 if by_room[room] else 1 << room
        else:
            chosen, room = rows, width
            rows += 1
        row[sequence], start[sequence] = chosen, width - room
        by_room[room - length].append(chosen)
        open_rooms |= 1 << (room - length)
    return row, start
