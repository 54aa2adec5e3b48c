"""The rolling holdout: recent interactions kept from training until they age out.

Membership is a hash of (user, item, time), or where a click head is trained of (user, item): it
needs no memory, and the same event is held out again after a restart. While an event is held out
it is neither a target nor part of any training context. When newer ones push it out of the window,
or it is too old and enough newer ones are held, it is released to training. Early stopping and the
gate look at what is held out at the moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from torch import Tensor, from_numpy

from service.domain import Bools, Int32s, Int64s, ItemKey, Uint8s, earlier
from service.model.memory import Memory
from service.model.vocabulary import Vocabulary
from service.settings import HoldoutSettings
from service.state.features import kind_codes
from service.trainer.sequences import strip

_PARTS = 1_000_000
_MIX = 0x9E3779B97F4A7C15  # odd, with its bits all over
# Columns that versions from before these were kept do not have, and their types.
_ADDED = {"kind": np.uint8, "partition": np.int32}


@dataclass(frozen=True, slots=True)
class HoldoutRows:
    """Held-out interactions, oldest first. Element i of every column is the same one."""

    context: Int64s  # [rows, length] item keys before it, NO_KEY where padded
    codes: Int32s  # [rows, length, features] beside them
    user: Int64s
    item: Int64s
    time: Int64s  # epoch ms
    kind: Uint8s  # index in the settings' kinds

    def __len__(self) -> int:
        return len(self.item)

    def take(self, rows: Int64s | slice) -> Self:
        return type(self)(*(getattr(self, column.name)[rows] for column in fields(self)))

    def joined(self, later: Self) -> Self:
        return type(self)(
            *(
                np.concatenate([getattr(self, column.name), getattr(later, column.name)])
                for column in fields(self)
            )
        )

    def last(self, rows: int) -> Self:
        """No more than the last `rows`."""
        return self.take(slice(max(len(self) - rows, 0), None))

    def without(self, users: Int64s) -> Self:
        """Without the rows of these users."""
        return self.take(np.flatnonzero(~np.isin(self.user, users)))

    def in_kinds(self, then: Sequence[str], now: Sequence[str]) -> Self:
        """With codes of the kinds of today, from those of `then`. Without rows of kinds that are
        no more, as histories are without them."""
        code, is_known = kind_codes(then, now)
        kept = self.take(np.flatnonzero(is_known[self.kind]))
        return replace(kept, kind=code[kept.kind])

    def marks(self) -> Int64s:
        """The hashes by which the held-out events are known."""
        return event_hash(self.user, self.item, self.time).view(np.int64)

    def row_marks(self) -> Int64s:
        """Hashes of the rows: those of events that are alike differ by what came before."""
        powers = np.uint64(_MIX) ** np.arange(1, self.context.shape[1] + 1, dtype=np.uint64)
        before = (self.context.astype(np.uint64) * powers).sum(axis=1, dtype=np.uint64)
        user = self.user.astype(np.uint64) ^ before
        return event_hash(user.view(np.int64), self.item, self.time).view(np.int64)

    def tensors(self, name: str = "holdout", features: Sequence[str] = ()) -> dict[str, Tensor]:
        """The columns, and those of the codes by their `features`: others may read them back."""
        columns = {column.name: getattr(self, column.name) for column in fields(self)}
        codes = columns.pop("codes")
        columns |= {f"codes.{key}": codes[..., place] for place, key in enumerate(features)}
        return {
            f"{name}.{column}": from_numpy(np.ascontiguousarray(values))
            for column, values in columns.items()
        }


def empty_rows(length: int, features: int = 0) -> HoldoutRows:
    none = np.zeros(0, np.int64)
    codes = np.zeros((0, length, features), np.int32)
    kind = np.zeros(0, np.uint8)
    return HoldoutRows(np.zeros((0, length), np.int64), codes, none, none, none, kind)


def rows_from_tensors(
    tensors: dict[str, Tensor], length: int, features: Sequence[str] = ()
) -> HoldoutRows:
    """What `HoldoutRows.tensors` gave, no rows where it gave none; of features that it had not,
    nothing is known."""
    if "holdout.item" not in tensors:
        return empty_rows(length, len(features))
    return HoldoutRows(**columns_from(HoldoutRows, tensors, "holdout", features))


def columns_from(
    rows: type[HoldoutRows], tensors: dict[str, Tensor], name: str, features: Sequence[str]
) -> dict[str, Any]:
    """The columns of such rows as `tensors` gave them under this name."""
    columns: dict[str, Any] = {}
    for column in (one.name for one in fields(rows) if one.name != "codes"):
        found = tensors.get(f"{name}.{column}") if column in _ADDED else tensors[f"{name}.{column}"]
        none = np.zeros(len(tensors[f"{name}.item"]), _ADDED.get(column))
        columns[column] = none if found is None else found.numpy()
    codes = np.zeros((*columns["context"].shape, len(features)), np.int32)
    for place, key in enumerate(features):
        if f"{name}.codes.{key}" in tensors:
            codes[..., place] = tensors[f"{name}.codes.{key}"].numpy()
    return {**columns, "codes": codes}


def event_hash(
    user: Int64s, item: Int64s, time: Int64s
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    """A well mixed hash of each event (the finaliser of splitmix64, Steele et al., 2014)."""
    mixed = user.astype(np.uint64) * np.uint64(_MIX)
    mixed ^= item.astype(np.uint64) + np.uint64(0x7F4A7C15)
    mixed = mixed * np.uint64(0xD6E8FEB86659FD93) + time.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def is_held(fraction: float) -> bool:
    """Whether so small a share is anything."""
    return round(fraction * _PARTS) > 0


def is_member(user: Int64s, item: Int64s, time: Int64s, fraction: float) -> Bools:
    """Whether an event belongs in the holdout while it is recent."""
    return event_hash(user, item, time) % np.uint64(_PARTS) < np.uint64(round(fraction * _PARTS))


def admit(
    held: HoldoutRows, added: HoldoutRows, settings: HoldoutSettings, now_ms: int, least: int
) -> tuple[HoldoutRows, HoldoutRows]:
    """The rows held from now on, and those released to training.

    `now_ms` is the time by the events (`clock.py`). The newest `least` rows do not age: in a quiet
    stream the gate would never have enough to decide.
    """
    both = held.joined(added)
    out = are_released(both.time, settings.window_rows, settings.max_age_s, now_ms, least)
    return both.take(np.flatnonzero(~out)), both.take(np.flatnonzero(out))


def capped(member: Bools, user: Int64s, held: Int64s, most: int) -> Bools:
    """The members that may be held when no user may have more than `most` rows.

    member and user [events]; held [rows] are the users of what is held already. Of a user's
    events the first are held.
    """
    asked = np.flatnonzero(member)
    of, held = user[asked], np.sort(held)
    already = np.searchsorted(held, of, "right") - np.searchsorted(held, of, "left")
    allowed = np.zeros_like(member)
    allowed[asked[earlier(of) + already < most]] = True
    return allowed


def are_released(
    time: Int64s, window_rows: int, max_age_s: float, now_ms: int | Int64s, least: int = 0
) -> Bools:
    """Which of the held rows, oldest first, are held no more; the newest `least` do not age. Each
    row may have a time of its own for now."""
    newer = len(time) - np.arange(len(time))  # than each, and itself
    too_old = (time < now_ms - max_age_s * 1000) & (newer > least)
    released: Bools = too_old | (newer > window_rows)
    return released


def remind(memory: Memory, rows: HoldoutRows, vocabulary: Vocabulary) -> None:
    """Let the memory learn what is not, or no longer, kept from it, each with what came before."""
    names = [vocabulary.ids[row] for row in vocabulary.rows(rows.item).tolist()]
    for item, name, context in zip(rows.item.tolist(), names, rows.context, strict=True):
        memory.learn(ItemKey(item), name, strip(context))
