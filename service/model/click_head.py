"""The click head: how likely a user is to act on an item that they are shown.

It reads the backbone's state after the history and the item's vector, both of length 1, their
product, and what vectors tell badly: how often the item stands in the history, and how far back.
A head for numbers, such as ratings, gives the number where the other gives a logit.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from service.domain import NO_KEY, Float32s, Int64s
from service.settings import ClickLoss, ClickSettings

ECHOES = 3
_RAREST = 0.001  # a share of clicks below this is no better known than this


class ClickHead(nn.Module):
    """Two layers over a state and an item. Before its first labels it tells them nothing apart."""

    def __init__(self, dim: int, hidden: int, loss: ClickLoss) -> None:
        super().__init__()
        self.loss = loss
        self.enter = nn.Linear(3 * dim + ECHOES, hidden)
        self.leave = nn.Linear(hidden, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        # What it answers before it has learned, and in what units: of the first labels.
        self.middle = nn.Parameter(torch.zeros(()))
        self.scale = nn.Parameter(torch.zeros(()))  # 0: it has seen no label

    @classmethod
    def of(cls, settings: ClickSettings, dim: int) -> "ClickHead | None":
        """A new head; None where the settings do without."""
        return cls(dim, settings.hidden, settings.loss) if settings.enabled else None

    @property
    def shape(self) -> dict[str, Any]:
        """What it is made from, as plain data."""
        return {"hidden": self.enter.out_features, "loss": self.loss.value}

    def forward(self, state: Tensor, item: Tensor, echo: Tensor) -> Tensor:
        """Logits, or numbers. [...] from state and item [..., dim] and `echoes` [..., ECHOES]"""
        state, item = state * state.shape[-1] ** 0.5, item * item.shape[-1] ** 0.5
        read = torch.cat([state, item, state * item, echo], dim=-1)
        found: Tensor = self.leave(functional.relu(self.enter(read))).squeeze(-1)
        return self.middle + self.scale * found

    def begin(self, label: Float32s) -> None:
        """Answer what the first labels are in the middle, until more is learned."""
        if not len(label) or self.scale != 0:
            return
        middle, scale = float(label.mean()), 1.0
        if self.loss is ClickLoss.BINARY:
            share = min(max(middle, _RAREST), 1.0 - _RAREST)
            middle = float(np.log(share / (1.0 - share)))
        else:
            scale = float(label.std()) or 1.0
        with torch.no_grad():
            self.middle.fill_(middle)
            self.scale.fill_(scale)

    def expected(self, found: Tensor) -> Tensor:
        """What `forward` gave as probabilities, or as the numbers that they are."""
        return found.sigmoid() if self.loss is ClickLoss.BINARY else found

    def preference(self, found: Tensor) -> Tensor:
        """What `forward` gave as log-probabilities, or as numbers of spread 1."""
        if self.loss is ClickLoss.BINARY:
            return functional.logsigmoid(found)
        return found / self.scale.clamp(min=torch.finfo(torch.float32).tiny)

    def mean_loss(self, found: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy in nats, or squared error in units of the labels' spread."""
        if self.loss is ClickLoss.BINARY:
            return functional.binary_cross_entropy_with_logits(found, label)
        unit = self.scale.detach()
        return functional.mse_loss(found / unit, label / unit)


def head_from(shape: dict[str, Any] | None, dim: int) -> ClickHead | None:
    """A head of the shape that `ClickHead.shape` told; its weights are yet to be loaded."""
    return ClickHead(dim, shape["hidden"], ClickLoss(shape["loss"])) if shape else None


def echoes(context: Int64s, item: Int64s) -> Float32s:
    """How each item sounds in a history: how often, how far back, and how long the history is.

    context [rows, length] and item [rows, any] are keys; NO_KEY stands behind the last of a
    context and is no item. [rows, any, ECHOES]
    """
    length = (context != NO_KEY).sum(axis=1)[:, None]  # [rows, 1]
    same = (context[:, None, :] == item[:, :, None]) & (item != NO_KEY)[:, :, None]
    count = same.sum(axis=2)
    last = context.shape[1] - 1 - same[:, :, ::-1].argmax(axis=2)
    nearness = np.where(count > 0, 1.0 / np.maximum(length - last, 1), 0.0)
    found: Float32s = np.stack(
        [np.log1p(count), nearness, np.broadcast_to(np.log1p(length) / 4, count.shape)], axis=2
    ).astype(np.float32)
    return found
