"""Champion/challenger gate over the rolling holdout.

The gate only compares: it trains nothing, loads nothing and swaps nothing. Asked
twice with the same scores it answers the same, so a decision can be replayed from
the log.

Both models are scored on the same holdout rows and the gate looks at the per-row
difference. Pairing cancels how hard this hour's events happen to be, which would
otherwise hide what a few micro-batches can change.

A challenger that loses a little passes, and many such little losses in a row would add up without
a sign. So it is also compared with versions that were published long before.
"""

import enum
import math
from dataclasses import dataclass, replace

import numpy as np

from service.domain import Float32s
from service.errors import ConfigurationError, HoldoutMismatchError
from service.settings import GateSettings, Settings
from service.trainer.holdout import is_held


class Verdict(enum.StrEnum):
    PROMOTE = "promote"  # the challenger becomes the champion
    HOLD = "hold"  # not enough evidence yet; keep training
    REJECT = "reject"  # restart the challenger from the champion


@dataclass(frozen=True, slots=True)
class GateReport:
    """One verdict and the evidence for it, as written to the version's manifest."""

    verdict: Verdict
    rows: int
    mean_gain: float
    margin: float  # half-width of the interval around mean_gain
    champion: float  # mean scores
    challenger: float
    older: float | None = None  # mean score of the best older version, where there is one


def require_decisions(settings: Settings) -> None:
    """Raises ConfigurationError where the gate would hold for ever: nothing would be published."""
    trainer, events = settings.trainer, settings.events
    wanted, window = max(trainer.gate.min_rows, 2), trainer.holdout.window_rows
    told = None
    if not is_held(trainer.holdout.fraction):
        told = f"trainer.holdout.fraction ({trainer.holdout.fraction:g}) holds nothing out"
    elif window < wanted:
        told = f"trainer.holdout.window_rows ({window}) is less than the {wanted} rows it asks for"
    elif not any(events.weights.get(one, 1.0) for one in {*events.kinds} - {*events.not_done}):
        told = "events.weights leaves no kind of events to be foretold"
    if told is not None:
        raise ConfigurationError(f"{told}: the gate (trainer.gate) would never decide")


def judge(champion: Float32s, challenger: Float32s, settings: GateSettings) -> GateReport:
    """Compare per-row holdout scores; higher is better.

    Element i of both must come from the same holdout row. A gain within the tolerance is
    promoted too: fresh weights know the newest items and users.
    """
    rows = len(champion)
    if len(challenger) != rows:
        raise HoldoutMismatchError(f"champion has {rows} rows, challenger {len(challenger)}")
    if rows < max(settings.min_rows, 2):  # one row says nothing of the spread
        return GateReport(Verdict.HOLD, rows, 0.0, math.inf, _mean(champion), _mean(challenger))
    # A diverged challenger scores NaN, and NaN fails every comparison below: it
    # would be held, and trained further, for ever.
    if not np.isfinite(challenger).all():
        return GateReport(Verdict.REJECT, rows, -math.inf, 0.0, _mean(champion), math.nan)

    gains = challenger.astype(np.float64) - champion
    mean_gain = float(gains.mean())
    margin = settings.z_score * float(gains.std(ddof=1)) / math.sqrt(rows)
    verdict = _verdict(mean_gain, margin, settings.tolerance)
    return GateReport(verdict, rows, mean_gain, margin, _mean(champion), _mean(challenger))


def against_older(report: GateReport, older: GateReport) -> GateReport:
    """The report on a challenger that was compared with the champion, and with an `older` version
    over the same rows. One that has plainly fallen behind that is rejected."""
    if report.verdict is Verdict.PROMOTE and older.verdict is Verdict.REJECT:
        report = replace(report, verdict=Verdict.REJECT)
    return replace(report, older=max(older.champion, report.older or 0.0))


def _verdict(mean_gain: float, margin: float, tolerance: float) -> Verdict:
    if mean_gain - margin > -tolerance:
        return Verdict.PROMOTE
    if mean_gain + margin < -tolerance:
        return Verdict.REJECT
    return Verdict.HOLD


def _mean(scores: Float32s) -> float:
    return float(scores.mean()) if len(scores) else 0.0
