"""What the memory recalled for held-out events before it knew what came after them.

A history that goes on would tell it what was held out, for items come back, and it would seem
better than it is when it serves.
"""

import numpy as np

from service.model.memory import Memory, Recollection
from service.trainer.holdout import HoldoutRows
from service.trainer.sequences import strip


class Recollections:
    """By the marks of rows. Without a memory there are none."""

    def __init__(self) -> None:
        self._by_mark: dict[int, Recollection] = {}

    def ask(self, memory: Memory | None, rows: HoldoutRows) -> None:
        """Keep what it recalls now for each row."""
        if memory is not None:
            for mark, context in zip(rows.row_marks().tolist(), rows.context, strict=True):
                self._by_mark[mark] = memory.recall(strip(context)).kept()

    def of(self, memory: Memory | None, rows: HoldoutRows) -> list[Recollection]:
        """What was kept for each row; where nothing was, as after a restart, it is asked now."""
        if memory is None:
            return []
        marks = rows.row_marks().tolist()
        unknown = [place for place, mark in enumerate(marks) if mark not in self._by_mark]
        self.ask(memory, rows.take(np.array(unknown, np.int64)))
        return [self._by_mark[mark] for mark in marks]

    def forget_others(self, *held: HoldoutRows) -> None:
        """Keep nothing of other rows than these."""
        if self._by_mark:
            kept = {mark for rows in held for mark in rows.row_marks().tolist()}
            self._by_mark = {mark: one for mark, one in self._by_mark.items() if mark in kept}
