import math
import re

import numpy as np
import pytest

from service.domain import Float32s
from service.errors import ConfigurationError, HoldoutMismatchError
from service.settings import GateSettings, Settings
from service.trainer.gate import Verdict, against_older, judge, require_decisions

SETTINGS = GateSettings(min_rows=4, z_score=1.0, tolerance=0.1)


def scores(*values: float) -> Float32s:
    return np.array(values, np.float32)


CHAMPION = scores(0.1, 0.9, 0.5, 0.3)


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((0.1, 0.1, 0.1, 0.1), Verdict.PROMOTE),
        ((0.0, 0.0, 0.0, 0.0), Verdict.PROMOTE),
        ((-0.05, -0.05, -0.05, -0.05), Verdict.PROMOTE),  # within the tolerance
        ((-0.2, -0.2, -0.2, -0.2), Verdict.REJECT),
        ((-0.9, 0.9, -0.9, 0.7), Verdict.HOLD),  # too noisy to tell
    ],
)
def test_verdicts(gains: tuple[float, ...], verdict: Verdict) -> None:
    assert judge(CHAMPION, CHAMPION + scores(*gains), SETTINGS).verdict is verdict


def test_reports_the_evidence() -> None:
    report = judge(CHAMPION, CHAMPION + scores(0.1, 0.3, 0.1, 0.3), SETTINGS)
    assert report.rows == 4
    assert report.mean_gain == pytest.approx(0.2)
    assert report.margin == pytest.approx(np.std([0.1, 0.3, 0.1, 0.3], ddof=1) / 2)
    assert (report.champion, report.challenger) == pytest.approx((0.45, 0.65))


def test_pairing_cancels_how_hard_the_rows_are() -> None:
    hard_and_easy = scores(*([0.0, 1.0] * 50))
    assert judge(hard_and_easy, hard_and_easy - 0.15, SETTINGS).verdict is Verdict.REJECT


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_holds_until_there_are_enough_rows(rows: int) -> None:
    report = judge(CHAMPION[:rows], CHAMPION[:rows] - 1, SETTINGS)
    assert (report.verdict, report.rows, report.margin) == (Verdict.HOLD, rows, math.inf)


def test_one_row_is_never_enough() -> None:
    settings = GateSettings(min_rows=1)
    assert judge(CHAMPION[:1], CHAMPION[:1], settings).verdict is Verdict.HOLD


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_diverged_challenger_is_rejected(broken: float) -> None:
    assert judge(CHAMPION, scores(0.9, 0.9, 0.9, broken), SETTINGS).verdict is Verdict.REJECT


def test_rows_that_do_not_pair_are_a_bug() -> None:
    with pytest.raises(HoldoutMismatchError):
        judge(CHAMPION, CHAMPION[:3], SETTINGS)


@pytest.mark.parametrize(
    ("gain", "gain_on_older", "verdict"),
    [
        (0.0, 0.0, Verdict.PROMOTE),
        (0.0, -0.05, Verdict.PROMOTE),
        (0.0, -0.2, Verdict.REJECT),  # the losses of many promotions have added up
        (-0.2, 0.2, Verdict.REJECT),
    ],
)
def test_a_challenger_must_not_fall_behind_an_older_version(
    gain: float, gain_on_older: float, verdict: Verdict
) -> None:
    challenger = CHAMPION + np.float32(gain)
    report = judge(CHAMPION, challenger, SETTINGS)
    older = judge(challenger - np.float32(gain_on_older), challenger, SETTINGS)
    found = against_older(report, older)
    assert found.verdict is verdict
    assert found.older == older.champion
    assert found.mean_gain == report.mean_gain


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"trainer": {"holdout": {"fraction": 1e-7}}}, "trainer.holdout.fraction (1e-07)"),
        ({"trainer": {"holdout": {"window_rows": 32}}}, "window_rows (32) is less than the 64"),
        ({"events": {"kinds": ["a", "b"], "negative": ["b"], "shown": [], "weights": {"a": 0.0}}},
         "events.weights leaves no kind"),
    ],
)  # fmt: skip
def test_what_would_let_the_gate_hold_for_ever_is_refused(
    tree: dict[str, object], told: str
) -> None:
    require_decisions(Settings())
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        require_decisions(Settings.model_validate(tree))
