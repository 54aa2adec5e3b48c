"""Rows of a table as they were before they were changed, so that the changes can be undone.

A row is copied just before it changes for the first time: what is kept follows the rows in use,
not the size of the table.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class UndoLog:
    """Of the rows of some tensors, all of which have as many."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self._is_kept = torch.zeros(rows, dtype=torch.bool, device=device)
        self._kept: list[tuple[Tensor, list[Tensor]]] = []  # rows, and their values in each tensor

    @property
    def rows(self) -> Tensor:
        """Those that have changed, none of them twice. [n]"""
        none = torch.zeros(0, dtype=torch.int64, device=self._is_kept.device)
        return torch.cat([none, *(rows for rows, _ in self._kept)])

    def keep(self, rows: Tensor, tensors: Sequence[Tensor]) -> None:
        """`rows` [n], none of them twice, are about to change."""
        new = rows[~self._is_kept[rows]]
        self._is_kept[new] = True
        self._kept.append((new, [tensor.index_select(0, new) for tensor in tensors]))

    def put_back(self, tensors: Sequence[Tensor]) -> None:
        """Undo all changes since; this may be done again after others."""
        for rows, kept in self._kept:
            for tensor, values in zip(tensors, kept, strict=True):
                tensor.index_copy_(0, rows, values)
