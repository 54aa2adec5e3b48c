"""The click head in a backtest: what it expects of labelled events before it learns from them.

It stands beside each item's share of clicks so far, which is the popularity of click models.
"""

import numpy as np

from service.backtest.scores import Plain
from service.backtest.table import Table
from service.domain import Float32s, Int64s
from service.model.click_metrics import ClickScores, click_scores
from service.settings import Settings
from service.trainer.clicks import label_of
from service.trainer.labels import followed

# Events, all with the mean label so far, by which an item's own are joined.
_SMOOTHING = 20.0


class ClickFigures(Plain):
    """Of labelled events. None where a figure does not exist."""

    rows: int
    clicks: int
    auc: float | None
    log_loss: float | None  # nats
    accuracy: float | None
    rmse: float | None


def click_figures(expected: Float32s, label: Float32s, settings: Settings) -> ClickFigures:
    """Over the events that have both."""
    rows = np.isfinite(expected) & np.isfinite(label)
    found: ClickScores = click_scores(expected[rows], label[rows], settings.click)
    return ClickFigures(
        rows=found.rows,
        clicks=found.clicks,
        auc=_finite(found.auc),
        log_loss=_finite(found.log_loss),
        accuracy=_finite(found.accuracy),
        rmse=_finite(found.rmse),
    )


def labels(table: Table, settings: Settings) -> Float32s:
    """The label that each event comes to have; NaN where it has none, or not before the end."""
    click, kinds = settings.click, settings.events
    shown = np.flatnonzero(np.isin(table.kind, kinds.codes(click.kinds)))
    label = np.full(len(table), np.nan, np.float32)
    if not click.followed_by:
        label[shown] = label_of(table.value[shown], click)
        return label
    acts = np.flatnonzero(np.isin(table.kind, kinds.codes(click.followed_by)))
    within_ms = click.within_s * 1000
    clicked = followed(_of(table, shown), _of(table, acts), within_ms)
    over = table.timestamp[shown] < table.timestamp.max(initial=0) - within_ms
    # At the end of the file clicks alone are known of: they would seem to be all there is.
    label[shown] = np.where(over, clicked, np.nan)
    return label


def click_rates(table: Table, label: Float32s, settings: Settings) -> Float32s:
    """The smoothed mean label of each event's item, of the events whose labels were known by
    then; NaN where the event is not labelled."""
    waits_ms = settings.click.within_s * 1000 if settings.click.followed_by else 0.0
    _, item = np.unique(table.item, return_inverse=True)
    count, total = np.zeros(item.max(initial=0) + 1), np.zeros(item.max(initial=0) + 1)
    rate = np.full(len(table), np.nan, np.float32)
    known, rows, clicks = 0, 0.0, 0.0
    labelled = np.flatnonzero(np.isfinite(label)).tolist()
    for event in labelled:
        while labelled[known] < event and (
            table.timestamp[labelled[known]] + waits_ms <= table.timestamp[event]
        ):
            at = labelled[known]
            count[item[at]] += 1
            total[item[at]] += label[at]
            rows, clicks, known = rows + 1, clicks + label[at], known + 1
        mean = clicks / rows if rows else 0.5
        own = item[event]
        rate[event] = (total[own] + _SMOOTHING * mean) / (count[own] + _SMOOTHING)
    return rate


def _of(table: Table, rows: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    return table.user[rows], table.item[rows], table.timestamp[rows]


def _finite(figure: float) -> float | None:
    return figure if np.isfinite(figure) else None
