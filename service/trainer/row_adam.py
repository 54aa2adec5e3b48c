"""Adam over the rows of a table that a step has used; the others cost nothing.

The lazy form of Kingma and Ba (2015): a row's moments and its count of steps stand still while
no gradient reaches it, so an item that is new or rare gets steps of full size.
"""

import torch
from torch import Tensor

_MEAN, _SQUARE = 0.9, 0.999  # decay of the moments
_EPSILON = 1e-8


class RowAdam:
    """Moments of every row of a table that grows."""

    def __init__(self, rows: int, dim: int, device: torch.device) -> None:
        self.mean = torch.zeros(rows, dim, device=device)
        self.square = torch.zeros(rows, dim, device=device)
        self.steps = torch.zeros(rows, device=device)

    def step(self, table: Tensor, rows: Tensor, gradient: Tensor, rate: float) -> None:
        """Change `rows` [n], none of them twice, of `table` against `gradient` [n, dim]."""
        # These copy rows whole, which by brackets takes two to five times as long.
        steps = self.steps.index_select(0, rows).add_(1.0)
        mean = self.mean.index_select(0, rows).lerp_(gradient, 1.0 - _MEAN)
        square = self.square.index_select(0, rows).mul_(_SQUARE)
        square.addcmul_(gradient, gradient, value=1.0 - _SQUARE)
        for all_rows, moved in ((self.steps, steps), (self.mean, mean), (self.square, square)):
            all_rows.index_copy_(0, rows, moved)
        size = rate / (1.0 - _MEAN**steps)[:, None]
        spread = square.div_((1.0 - _SQUARE**steps)[:, None]).sqrt_().add_(_EPSILON)
        table.index_add_(0, rows, mean.mul_(size).div_(spread), alpha=-1.0)

    def grow(self, rows: int) -> None:
        """Room for `rows` rows; the new ones have not been trained."""
        more = rows - len(self.steps)
        if more == 0:
            return  # `pad` would copy
        self.mean = torch.nn.functional.pad(self.mean, (0, 0, 0, more))
        self.square = torch.nn.functional.pad(self.square, (0, 0, 0, more))
        self.steps = torch.nn.functional.pad(self.steps, (0, more))

    def keep(self, rows: Tensor) -> None:
        """Only the state of `rows`, in this order."""
        self.mean, self.square, self.steps = self.mean[rows], self.square[rows], self.steps[rows]

    def tensors(self, rows: int) -> dict[str, Tensor]:
        """Copies of the state of the first `rows` rows."""
        return {
            "mean": self.mean[:rows].clone(),
            "square": self.square[:rows].clone(),
            "steps": self.steps[:rows].clone(),
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave, on this device; rows beyond are as new."""
        for mine, kept in (
            (self.mean, tensors["mean"]),
            (self.square, tensors["square"]),
            (self.steps, tensors["steps"]),
        ):
            mine[: len(kept)] = kept
            mine[len(kept) :] = 0.0
