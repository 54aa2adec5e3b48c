"""The histories of some users as the bytes of one part of a state snapshot.

A safetensors file of flat columns, in which integers take no more bytes than their range needs:

    user    [users]   user keys
    events  [users]   how many of the events below are whose, in the order of `user`
    items   [items]   item keys, sorted
    item    [events]  a place in `items`
    time    [events]  epoch ms after `time_from`; oldest first within a user
    offset  [events]  Kafka offset after `offset_from`
    kind    [events]  a place in the manifest's kinds
    codes   [events, features]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load, save

from service.domain import Bools, Int32s, Int64s, Uint8s
from service.errors import DamagedSnapshotError

_WIDTHS = (np.uint8, np.uint16, np.uint32)


@dataclass(frozen=True, slots=True)
class UserHistories:
    """Events of some users, the users one after the other, each oldest first."""

    user: Int64s  # [users]
    events: Int64s  # [users]
    item: Int64s  # [events] item keys
    time: Int64s  # [events] epoch ms
    offset: Int64s  # [events]
    kind: Uint8s  # [events]
    codes: Int32s  # [events, features]

    def __len__(self) -> int:
        return len(self.user)

    def only(self, users: Bools) -> "UserHistories":
        """Those of some of the users."""
        if users.all():
            return self
        return self._cut(np.repeat(users, self.events), users)

    def without(self, events: Bools) -> "UserHistories":
        """Without some of the events; users stay."""
        return self._cut(~events, np.ones(len(self), np.bool_))

    def _cut(self, events: Bools, users: Bools) -> "UserHistories":
        owner = np.repeat(np.arange(len(self)), self.events)
        counts = np.bincount(owner[events], minlength=len(self))
        return UserHistories(
            self.user[users],
            counts[users],
            self.item[events],
            self.time[events],
            self.offset[events],
            self.kind[events],
            self.codes[events],
        )


def encode(histories: UserHistories) -> bytes:
    items, item = np.unique(histories.item, return_inverse=True)
    time_from = histories.time.min(initial=np.iinfo(np.int64).max)
    offset_from = histories.offset.min(initial=np.iinfo(np.int64).max)
    return save(
        {
            "user": histories.user,
            "events": _narrow(histories.events),
            "items": items,
            "item": _narrow(item),
            "time_from": np.array([time_from]),
            "time": _narrow(histories.time - time_from),
            "offset_from": np.array([offset_from]),
            "offset": _narrow(histories.offset - offset_from),
            "kind": histories.kind,
            "codes": np.ascontiguousarray(histories.codes),
        }
    )


def decode(data: bytes) -> UserHistories:
    """Raises DamagedSnapshotError for bytes that `encode` did not make."""
    try:
        columns = load(data)
        return _histories(columns)
    except (safetensors.SafetensorError, KeyError, IndexError, ValueError) as error:
        raise DamagedSnapshotError(f"a part cannot be read: {error}") from error


def _histories(columns: Mapping[str, Any]) -> UserHistories:
    events = columns["events"].astype(np.int64)
    if events.sum() != len(columns["item"]) or len(events) != len(columns["user"]):
        raise ValueError("its columns do not fit together")
    return UserHistories(
        columns["user"],
        events,
        columns["items"][columns["item"]],
        columns["time"].astype(np.int64) + columns["time_from"][0],
        columns["offset"].astype(np.int64) + columns["offset_from"][0],
        columns["kind"],
        columns["codes"],
    )


def _narrow(values: Int64s) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
    """In the fewest bytes that hold them all; none is negative."""
    largest = values.max(initial=0)
    for width in _WIDTHS:
        if largest <= np.iinfo(width).max:
            return values.astype(width)
    return values
