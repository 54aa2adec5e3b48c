"""The click head: how likely a user is to act on an item that they are shown.

A logistic regression on a few numbers: how near the item's vector is to the backbone's state after
the history; how often it stands in the history, how far back, and how long that is; and
how the item stands among all, by the events and the labels that it has had so far. Few labels teach
few weights well, where layers over state and vector learn single users and items by heart.
A head for numbers, such as ratings, gives the number where the other gives a logit.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from service.domain import NO_KEY, Float32s, Int64s
from service.model.click_metrics import log_losses
from service.model.vocabulary import NO_ROW
from service.settings import ClickLoss, ClickSettings

ECHOES = 3
STANDING = 2
_RAREST = 0.001  # a share of clicks below this is no better known than this
_JOINED = 20.0  # labels, all like the mean, by which an item's own are joined
_FAR = 10.0  # spreads from the middle
_FIRST, _ENOUGH = 30, 1000  # numbers that tell their spread, if they differ, and in any case
_SIXTH = 0.16  # of a normal distribution, about, is further below its middle than its spread
_SMALLEST = torch.finfo(torch.float32).tiny  # in place of nothing, to divide by
_EVENTS, _LABELS, _SUM = range(3)  # columns of the tally


class ClickHead(nn.Module):
    """A weight for each number that it reads, and what it has counted of the items of a table.

    Before its first labels it tells items nothing apart, then by their mean labels alone.
    """

    middle: Tensor  # of the first labels, as a logit or a number: what it answers at first
    scale: Tensor  # the unit of its answers, the spread of the first labels; 0: too few
    tally: Tensor  # [rows, 3] decayed events of an item, its labels, and their sum

    def __init__(self, rows: int, loss: ClickLoss) -> None:
        super().__init__()
        self.loss = loss
        weight = torch.zeros(ECHOES + STANDING + 2)  # the last two: of the cosine, and always
        weight[ECHOES + STANDING - 1] = 1.0  # of the mean label
        self.weight = nn.Parameter(weight)
        self.register_buffer("middle", torch.zeros(()))
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("tally", torch.zeros(rows, 3))

    @classmethod
    def of(cls, settings: ClickSettings, rows: int) -> "ClickHead | None":
        """A new head; None where the settings do without."""
        return cls(rows, settings.loss) if settings.enabled else None

    @property
    def shape(self) -> dict[str, Any]:
        """What it is made from, as plain data."""
        return {"weights": len(self.weight), "loss": self.loss.value}

    def forward(self, state: Tensor, item: Tensor, signs: Tensor) -> Tensor:
        """Logits, or numbers. [...] from state and item [..., dim], of length 1 each, and
        `echoes` with the `standing` of the items behind them [..., ECHOES + STANDING]"""
        near = (state * item).sum(dim=-1, keepdim=True)
        found = torch.cat([signs, near], dim=-1) @ self.weight[:-1] + self.weight[-1]
        return self.middle + self.scale * found

    def grow(self, rows: int) -> None:
        """Room for `rows` rows."""
        self.tally = functional.pad(self.tally, (0, 0, 0, rows - len(self.tally)))

    def keep(self, rows: Tensor) -> None:
        """Only what was counted of `rows`, in this order."""
        self.tally = self.tally[rows]

    def meet(self, rows: Int64s, half_life_events: int) -> None:
        """Events named the items of these rows [events]. What was before counts less from now."""
        self.tally *= 0.5 ** (len(rows) / half_life_events)
        self._count(rows, _EVENTS, np.ones(len(rows), np.float32))

    def hear(self, rows: Int64s, label: Float32s) -> None:
        """These labels [labels] of the items of `rows` [labels] are known now."""
        self._count(rows, _LABELS, np.ones(len(rows), np.float32))
        self._count(rows, _SUM, label)

    def _count(self, rows: Int64s, column: int, amount: Float32s) -> None:
        at = torch.from_numpy(rows).to(self.tally.device)
        self.tally[:, column].index_add_(0, at, torch.from_numpy(amount).to(self.tally))
        self.tally[NO_ROW] = 0.0

    def standing(self, rows: Tensor) -> Tensor:
        """How items stand among all: by events, and by what their labels were on average, both 0
        for one like the mean. [..., STANDING] from rows [...]"""
        of_all = self.tally.sum(dim=0)
        items = (self.tally[:, _EVENTS] > 0).sum().clamp(min=1)
        events, labels, total = self.tally[rows].unbind(dim=-1)
        met = torch.log((events + 1.0) / (of_all[_EVENTS] / items + 1.0))
        mean = of_all[_SUM] / of_all[_LABELS].clamp(min=_SMALLEST)
        own = (total + _JOINED * mean) / (labels + _JOINED)
        if self.loss is ClickLoss.BINARY:
            liked = torch.log(own.clamp(min=_RAREST) / mean.clamp(min=_RAREST))
        else:
            liked = (own - mean) / self.scale.clamp(min=_SMALLEST)
        return torch.stack([met, liked], dim=-1)

    def begin(self, label: Float32s) -> bool:
        """Answer what the first labels are in the middle, until more is learned; whether it does
        by now. Of numbers it takes some to tell how far they are apart."""
        if self.scale != 0:
            return True
        if len(label) < (1 if self.loss is ClickLoss.BINARY else _FIRST):
            return False
        if self.loss is ClickLoss.BINARY:
            clicks = label.sum()
            middle, scale = np.log((clicks + 1.0) / (len(label) - clicks + 1.0)), 1.0
        else:
            numbers = label.astype(np.float64)
            low, middle, high = np.quantile(numbers, [_SIXTH, 0.5, 1.0 - _SIXTH])
            scale = (high - low) / 2
            if not scale and len(label) < _ENOUGH:
                return False  # most are the same until now
            scale = scale or numbers.std() or 1.0
        self.middle.fill_(float(middle))
        self.scale.fill_(float(scale))
        return True

    def within_reach(self, label: Float32s) -> Float32s:
        """The labels; numbers very far from the first ones are brought nearer, so that one that is
        wild does not stand for all."""
        if self.loss is ClickLoss.BINARY or self.scale == 0:
            return label
        middle, far = float(self.middle), _FAR * float(self.scale)
        return label.clip(middle - far, middle + far)

    def expected(self, found: Tensor) -> Tensor:
        """What `forward` gave as probabilities, or as the numbers that they are."""
        return found.sigmoid() if self.loss is ClickLoss.BINARY else found

    def preference(self, found: Tensor) -> Tensor:
        """What `forward` gave as log-probabilities, or as numbers of spread 1."""
        if self.loss is ClickLoss.BINARY:
            return functional.logsigmoid(found)
        return found / self.scale.clamp(min=_SMALLEST)

    def mean_loss(self, found: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy in nats, or squared error in units of the labels' spread."""
        if self.loss is ClickLoss.BINARY:
            return functional.binary_cross_entropy_with_logits(found, label)
        return functional.mse_loss(found / self.scale, label / self.scale)

    def losses_of(self, expected: Float32s, label: Float32s) -> Float32s:
        """The same of each that is `expected`, a probability or a number. [rows]"""
        if self.loss is ClickLoss.BINARY:
            return log_losses(expected, label)
        losses: Float32s = np.square((expected - label) / max(float(self.scale), _SMALLEST))
        return losses


def head_from(shape: dict[str, Any] | None, rows: int) -> ClickHead | None:
    """A head of the shape that `ClickHead.shape` told; its weights are yet to be loaded. None
    where that is of a version from before heads were what they are now."""
    if shape is None or "weights" not in shape:
        return None
    return ClickHead(rows, ClickLoss(shape["loss"]))


def echoes(context: Int64s, item: Int64s) -> Float32s:
    """How each item sounds in a history: how often, how far back, and how long the history is.

    context [rows, length] and item [rows, any] are keys; NO_KEY is no item, behind the last of a
    context or between others. [rows, any, ECHOES]
    """
    upto = (context != NO_KEY).cumsum(axis=1)  # [rows, length]
    length = upto[:, -1:]  # [rows, 1]
    same = (context[:, None, :] == item[:, :, None]) & (item != NO_KEY)[:, :, None]
    count = same.sum(axis=2)
    last = context.shape[1] - 1 - same[:, :, ::-1].argmax(axis=2)
    since = length - np.take_along_axis(upto, last, axis=1)
    nearness = np.where(count > 0, 1.0 / (since + 1), 0.0)
    found: Float32s = np.stack(
        [np.log1p(count), nearness, np.broadcast_to(np.log1p(length) / 4, count.shape)], axis=2
    ).astype(np.float32)
    return found
