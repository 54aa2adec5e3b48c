"""Events with labels, for the click head: what was shown after which history, and what came of it.

An event's label is its value, or whether something follows it: an act of the same user on the
same item within a time. It waits until that has passed, whatever comes: would clicks come first,
they would seem to be all there is.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor

from service.domain import Bools, Float32s, Int32s, Int64s
from service.model.click_head import STANDING
from service.trainer.holdout import HoldoutRows, columns_from, empty_rows, event_hash


@dataclass(frozen=True, slots=True)
class LabelledRows(HoldoutRows):
    """Shown events, oldest first, whether held out or not."""

    partition: Int32s
    label: Float32s  # 0 or 1, or a number; NaN while nothing has come of it
    standing: Float32s  # [rows, STANDING] of the item when it was shown


def no_rows(length: int, features: int = 0) -> LabelledRows:
    return LabelledRows(
        **asdict(empty_rows(length, features)),
        partition=np.zeros(0, np.int32),
        label=np.zeros(0, np.float32),
        standing=np.zeros((0, STANDING), np.float32),
    )


def labelled_from(
    tensors: dict[str, Tensor], name: str, length: int, features: Sequence[str] = ()
) -> LabelledRows:
    """What `LabelledRows.tensors` gave under this name; no rows where it gave none."""
    if f"{name}.label" not in tensors:
        return no_rows(length, len(features))
    return LabelledRows(**columns_from(LabelledRows, tensors, name, features))


def followed(
    shown: tuple[Int64s, Int64s, Int64s], acts: tuple[Int64s, Int64s, Int64s], within_ms: float
) -> Bools:
    """Which shown events an act followed. Both are given by user, item and time."""
    pair = np.concatenate([pairs(*shown[:2]), pairs(*acts[:2])])
    time = np.concatenate([shown[2], acts[2]])
    is_act = np.arange(len(pair)) >= len(shown[2])
    order = np.lexsort((is_act, time, pair))
    # From each place on, that of the first act.
    place = np.where(is_act[order], np.arange(len(order)), len(order))
    first = np.minimum.accumulate(place[::-1])[::-1]
    row, act = order[first < len(order)], order[first[first < len(order)]]
    is_followed = np.zeros(len(pair), np.bool_)
    is_followed[row] = (pair[act] == pair[row]) & (time[act] - time[row] <= within_ms)
    return is_followed[: len(shown[2])]


def pairs(user: Int64s, item: Int64s) -> Int64s:
    """A hash of each event's user and item."""
    return event_hash(user, item, np.zeros_like(user)).view(np.int64)
