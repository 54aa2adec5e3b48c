import math
from dataclasses import replace

import pytest

from service.model.click_metrics import ClickScores
from service.tracking.curves import gate_values, round_values
from service.trainer.gate import GateReport, Verdict
from service.trainer.reranking import ClickReport
from tests.trainer.examples import ROUND

GATE = GateReport(Verdict.PROMOTE, 70, 0.1, 0.01, 0.3, 0.4)


def test_a_round_has_a_loss_and_the_mean_time_of_a_step() -> None:
    values = round_values(ROUND)
    assert (values["train/loss_nats"], values["holdout/rows"]) == (1.5, 5)
    assert values["train/step_seconds"] == pytest.approx(0.53 / 4)


def test_a_round_without_a_step_has_no_time() -> None:
    assert "train/step_seconds" not in round_values(replace(ROUND, step_s=(), loss=math.nan))


def test_the_gate_shows_both_sides_the_gain_and_the_verdict() -> None:
    assert gate_values(GATE, None, None) == {
        "holdout/champion_ndcg_at_10": 0.3,
        "holdout/challenger_ndcg_at_10": 0.4,
        "gate/gain": 0.1,
        "gate/margin": 0.01,
        "gate/verdict": 1,
    }
    levels = [
        gate_values(replace(GATE, verdict=each), None, None)["gate/verdict"] for each in Verdict
    ]
    assert len(set(levels)) == 3


def test_a_champion_of_which_the_stream_moves_away_shows() -> None:
    assert gate_values(GATE, -0.02, None)["holdout/shift_ndcg_at_10"] == -0.02


def test_a_click_head_has_curves_of_its_own() -> None:
    scores = ClickScores(90, 5, auc=0.7, log_loss=0.2, accuracy=0.9, rmse=0.25)
    values = gate_values(GATE, None, ClickReport(scores, rerank=0.5))
    assert [values[f"click/{name}"] for name in ("auc", "log_loss_nats", "accuracy", "rmse")] == [
        0.7, 0.2, 0.9, 0.25,
    ]  # fmt: skip
    assert values["click/rerank_weight"] == 0.5
