"""How well expected clicks, or numbers, fit what came."""

import math
from dataclasses import dataclass

import numpy as np

from service.domain import Bools, Float32s
from service.settings import ClickLoss, ClickSettings

_EVEN = 0.5  # labels are 0 and 1
_SUREST = 1e-7  # no probability is taken for nearer to 0 or 1 than this


@dataclass(frozen=True, slots=True)
class ClickScores:
    """NaN where a figure does not exist: no rows, labels all alike, numbers for probabilities."""

    rows: int
    clicks: int  # labels of at least `positive_from`
    auc: float  # of telling these from the rest
    log_loss: float  # nats
    accuracy: float  # which side of `positive_from`, of 1/2 for probabilities
    rmse: float


def click_scores(expected: Float32s, label: Float32s, settings: ClickSettings) -> ClickScores:
    """Element i of both belongs to the same labelled row."""
    if not len(label):
        return ClickScores(0, 0, math.nan, math.nan, math.nan, math.nan)
    binary = settings.loss is ClickLoss.BINARY
    clicked, guessed = is_click(label, settings), is_click(expected, settings)
    return ClickScores(
        rows=len(label),
        clicks=int(clicked.sum()),
        auc=auc(expected, clicked),
        log_loss=float(log_losses(expected, clicked).mean()) if binary else math.nan,
        accuracy=float((guessed == clicked).mean()),
        rmse=math.sqrt(float(np.square(expected.astype(np.float64) - label).mean())),
    )


def is_click(number: Float32s, settings: ClickSettings) -> Bools:
    """Which labels, or what is expected of them, are clicks."""
    binary = settings.loss is ClickLoss.BINARY
    clicked: Bools = number >= (_EVEN if binary else settings.positive_from)
    return clicked


def auc(score: Float32s, positive: Bools) -> float:
    """The chance that a positive row scores above another one; a tie counts half.

    By the rank sum of Mann and Whitney, 1947. NaN unless there are rows of both kinds.
    """
    ones = int(positive.sum())
    zeros = len(positive) - ones
    if not ones or not zeros:
        return math.nan
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count - 1) / 2  # the mean rank of those that tie
    return float((middle[place][positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def log_losses(expected: Float32s, label: Bools | Float32s) -> Float32s:
    """Cross-entropy of each label, 0 or 1, in nats."""
    chance = np.clip(expected.astype(np.float64), _SUREST, 1.0 - _SUREST)
    losses: Float32s = -np.log(np.where(label > 0, chance, 1.0 - chance)).astype(np.float32)
    return losses
