"""A trial's figure is that of a backtest, and of what trials may see."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.backtest.options import Options, Protocol
from service.backtest.preparing import prepared
from service.backtest.prequential import run_prequential
from service.backtest.progress import Progress
from service.backtest.table import Table, join
from service.errors import ConfigurationError
from service.tune.measuring import _PARTS, Measuring
from service.tune.options import Objective, TuneOptions
from service.tune.space import Values
from tests.backtest.examples import quick_settings, table_of, walks

CPU = torch.device("cpu")
OPTIONS = TuneOptions(
    Options(files=(Path("events.csv"),), start=0.25, gate_every=2, parts=_PARTS),
    objective=Objective.MRR_AT_20,
)
TABLE = walks(240)
SETTINGS, _ = prepared(quick_settings(), [TABLE], Protocol.PREQUENTIAL)


def measuring(table: Table, options: TuneOptions = OPTIONS) -> Measuring:
    return Measuring(table, SETTINGS, options, CPU, None)


def objective(table: Table) -> float:
    return measuring(table).objective({}, lambda part, so_far: None)


def test_the_figure_is_that_of_a_backtest() -> None:
    seen = TABLE.until(180)
    found = run_prequential(seen, SETTINGS, OPTIONS.data, CPU, Progress(io.StringIO()))
    assert objective(TABLE) == pytest.approx(found.models["live"].mrr_at_20)


def test_no_trial_sees_the_end_of_the_stream() -> None:
    other = join([TABLE.until(180), walks(60, seed=5)])
    assert objective(other) == objective(TABLE)
    assert measuring(other).fingerprint() == measuring(TABLE).fingerprint()


def test_the_mean_so_far_is_told_after_each_part() -> None:
    told: list[tuple[int, float]] = []
    last = measuring(TABLE).objective({}, lambda *part: told.append(part))
    assert [part for part, _ in told] == list(range(_PARTS))
    assert told[-1][1] == last


def test_equal_settings_gain_nothing_and_others_differ() -> None:
    values: Values = {"trainer.max_epochs": SETTINGS.trainer.max_epochs}
    same = measuring(TABLE).compare({}, values)
    assert (same.gain, same.margin) == (0, 0)
    assert same.given == same.tuned > 0
    other = measuring(TABLE).compare({}, {"trainer.learning_rate": 1e-6})
    assert other.given == same.given
    assert other.gain == pytest.approx(other.tuned - other.given)
    assert other.margin > 0


def test_another_objective_or_seed_is_another_search() -> None:
    first = measuring(TABLE).fingerprint()
    assert measuring(TABLE, replace(OPTIONS, seed=1)).fingerprint() != first
    others = replace(OPTIONS, objective=Objective.HR_AT_10)
    assert measuring(TABLE, others).fingerprint() != first


def test_too_few_events_are_told() -> None:
    strangers = table_of([(f"user-{number}", "tea") for number in range(50)])
    with pytest.raises(ConfigurationError, match="50 events are too few"):
        measuring(strangers)
