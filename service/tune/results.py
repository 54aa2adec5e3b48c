"""What a search found, as plain data: reports/tune.json."""

import enum
from collections.abc import Sequence
from typing import Any

from service.backtest.report import Data
from service.backtest.scores import Plain
from service.tune.space import Searched, Value, Values


class Outcome(enum.StrEnum):
    COMPLETE = "complete"
    PRUNED = "pruned"  # ended early: behind the median of the others
    FAILED = "failed"


class Trial(Plain):
    """A backtest with some values. The first is of the settings as given."""

    number: int  # from 1
    outcome: Outcome
    objective: float | None  # None unless complete
    seconds: float
    values: Values
    why: str | None  # what failed


class Range(Plain):
    """A setting that was searched."""

    name: str
    low: Value
    high: Value
    scale: str
    why: str


class Comparison(Plain):
    """Given settings and the best trial's on the end of the stream, which no trial saw."""

    queries: int
    given: float
    tuned: float
    gain: float
    margin: float  # half-width of its 95 % interval, over paired queries


class TuneReport(Plain):
    """The file."""

    command: str
    objective: str
    seed: int
    data: Data
    searched_events: int  # the first of the stream
    counted_from: int  # of these
    space: list[Range]
    trials: list[Trial]
    given: int  # the number of the trial with the settings as given
    best: int
    comparison: Comparison | None  # None where the given settings are the best, or interrupted
    changes: Values  # what the settings file changes
    interrupted: bool
    seconds: float
    environment: dict[str, Any]


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The best complete one; of equals the first, so that the given settings need not change."""
    complete = [trial for trial in trials if trial.objective is not None]
    return max(complete, key=lambda trial: (trial.objective, -trial.number), default=None)


def given_of(trials: Sequence[Trial], given: Values) -> Trial:
    """The one of the settings as given, which every search begins with."""
    return next(
        trial for trial in trials if trial.values == given and trial.outcome is Outcome.COMPLETE
    )


def range_of(one: Searched) -> Range:
    return Range(name=one.name, low=one.low, high=one.high, scale=one.scale.name, why=one.why)
