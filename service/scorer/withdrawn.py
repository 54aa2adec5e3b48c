"""Items that must not be recommended: of these there may be more than of all others."""

from functools import cached_property

import numpy as np

from service.domain import Int64s
from service.model.mixture import Columns
from service.model.vocabulary import NO_ROW, Vocabulary


class Withdrawn:
    """Looked up in a vocabulary once, not for every batch. One thread asks."""

    def __init__(self, keys: Int64s) -> None:
        """`keys` of items, rising."""
        self.keys = keys
        self._vocabulary: Vocabulary | None = None
        self._rows: Int64s = np.zeros(0, np.int64)

    @cached_property
    def _set(self) -> frozenset[int]:
        return frozenset(self.keys.tolist())

    def __contains__(self, key: int) -> bool:
        return key in self._set

    def columns(self, columns: Columns) -> Int64s:
        """Where they stand; those that stand nowhere are left out. [any]"""
        if self._vocabulary is not columns.vocabulary:
            rows = columns.vocabulary.rows(self.keys)
            self._vocabulary, self._rows = columns.vocabulary, rows[rows != NO_ROW]
        if not len(self.keys):
            return self._rows
        place = np.minimum(np.searchsorted(self.keys, columns.strangers), len(self.keys) - 1)
        met = np.flatnonzero(self.keys[place] == columns.strangers)
        return np.concatenate([self._rows, len(columns.vocabulary) + met])
