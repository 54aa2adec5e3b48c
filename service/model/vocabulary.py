"""Which item stands at which row of one version's item table."""

from collections.abc import Iterable

import numpy as np

from service.domain import Int64s, ItemId, ItemKey, item_key

# Row 0 is no item: padding, and items that this version does not know.
NO_ROW = 0


class Vocabulary:
    """An immutable map from item keys to rows 1, 2, ... and from rows to item ids."""

    def __init__(self, ids: tuple[ItemId, ...] = (ItemId(""),)) -> None:
        """`ids[r]` is the id of the item at row r; `ids[0]` stands for no item."""
        self._build(ids, np.array([0, *(item_key(item) for item in ids[1:])], np.int64))

    def _build(self, ids: tuple[ItemId, ...], keys: Int64s) -> None:
        self.ids = ids
        self.keys = keys  # [rows]
        self._order = np.argsort(keys[1:], kind="stable") + 1
        self._sorted = keys[self._order]

    def __len__(self) -> int:
        """Rows, the empty row 0 included."""
        return len(self.ids)

    def rows(self, keys: Int64s) -> Int64s:
        """The row of each key, `NO_ROW` where unknown. Same shape as `keys`."""
        if len(self._sorted) == 0:
            return np.zeros(keys.shape, np.int64)
        place = np.searchsorted(self._sorted, keys)
        place[place == len(self._sorted)] = 0
        return np.where(self._sorted[place] == keys, self._order[place], NO_ROW)

    def kept(self, rows: Int64s) -> "Vocabulary":
        """Only the items of `rows` (rising, `NO_ROW` first), in rows 0, 1, ..."""
        smaller = Vocabulary.__new__(Vocabulary)
        smaller._build(tuple(self.ids[row] for row in rows.tolist()), self.keys[rows])
        return smaller

    def extended(self, items: Iterable[tuple[ItemKey, ItemId]]) -> "Vocabulary":
        """This vocabulary with the unknown ones of `items` in new rows at the end."""
        new = dict(items)
        if new:
            keys = np.fromiter(new, np.int64, len(new))
            for known in keys[self.rows(keys) != NO_ROW].tolist():
                del new[known]
        if not new:
            return self
        larger = Vocabulary.__new__(Vocabulary)
        larger._build(
            (*self.ids, *new.values()),
            np.concatenate([self.keys, np.fromiter(new, np.int64, len(new))]),
        )
        return larger
