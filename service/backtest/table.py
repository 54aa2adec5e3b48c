"""Event files as columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.domain import Events, Float32s, Int32s, Int64s, ItemId, Uint8s, UserId, stable_key


@dataclass(frozen=True, slots=True)
class Table:
    """Events in time order; element i of every column belongs to the same one."""

    user: Int64s  # user keys
    item: Int64s  # item keys
    kind: Uint8s  # index in the settings' kinds
    timestamp: Int64s  # epoch ms
    value: Float32s  # NaN where absent
    codes: Int32s  # [events, features] as a codec gives them
    user_ids: list[UserId]
    item_ids: list[ItemId]

    def __len__(self) -> int:
        return len(self.user)

    def events(self, start: int, end: int, first_offset: int) -> Events:
        """Some of the events as the source would give them, from this offset on."""
        count = len(self.user[start:end])
        offset = np.arange(first_offset, first_offset + count, dtype=np.int64)
        timestamp = self.timestamp[start:end]
        return Events(
            partition=np.zeros(count, np.int32),
            offset=offset,
            user=self.user[start:end],
            item=self.item[start:end],
            kind=self.kind[start:end],
            timestamp=timestamp,
            appended=timestamp,
            value=self.value[start:end],
            codes=self.codes[start:end],
            user_ids=self.user_ids[start:end],
            item_ids=self.item_ids[start:end],
            event_ids=[None] * count,
            traces=[None] * count,
        )

    def until(self, end: int) -> "Table":
        """The first `end` events."""
        return Table(
            self.user[:end],
            self.item[:end],
            self.kind[:end],
            self.timestamp[:end],
            self.value[:end],
            self.codes[:end],
            self.user_ids[:end],
            self.item_ids[:end],
        )


def join(tables: Sequence[Table]) -> Table:
    """One after the other."""
    return Table(
        np.concatenate([table.user for table in tables]),
        np.concatenate([table.item for table in tables]),
        np.concatenate([table.kind for table in tables]),
        np.concatenate([table.timestamp for table in tables]),
        np.concatenate([table.value for table in tables]),
        np.concatenate([table.codes for table in tables]),
        [user for table in tables for user in table.user_ids],
        [item for table in tables for item in table.item_ids],
    )


def keys_of(ids: Sequence[str]) -> Int64s:
    """The stable key of each id, hashed once."""
    key = {text: stable_key(text) for text in set(ids)}
    return np.array([key[text] for text in ids], np.int64)
