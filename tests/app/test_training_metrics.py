"""What the worker says, as metrics."""

import math
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.app.training_metrics import record
from service.domain import Offset, Partition, Version
from service.metrics import Metrics
from service.model.click_metrics import ClickScores
from service.trainer.gate import GateReport, Verdict
from service.trainer.messages import Heartbeat, Judged, Published, RoundDone, Started
from service.trainer.process import Covered, WorkerEnded
from service.trainer.reranking import ClickReport
from tests.trainer.examples import ROUND

PUBLISHED = Published(Version(2), {Partition(0): Offset(9)})


def after(*messages: Any) -> dict[str, float]:
    """Every sample after these messages; labels stand in the name as on the page."""
    metrics = Metrics()
    for message in messages:
        record(message, metrics)
    return {
        sample.name.removeprefix("headwater_")
        + "".join(f"{{{v}}}" for v in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in family.samples
    }


def test_the_worker_is_up_from_ready_to_its_end() -> None:
    started = Started(Version(1), {}, "cpu")
    assert after(started)["worker_up"] == 1
    silent = WorkerEnded("silent", restarts=True)
    assert after(started, silent)["worker_up"] == 0
    assert after(started, silent, started)["worker_up"] == 1
    assert after(silent)["worker_restarts_total"] == 1


def test_a_worker_that_was_asked_to_stop_is_down_and_not_restarted() -> None:
    stopped = WorkerEnded("exit code 0", restarts=False)
    samples = after(Started(Version(1), {}, "cpu"), stopped)
    assert (samples["worker_up"], samples["worker_restarts_total"]) == (0, 0)


def test_items_that_expired_with_a_version_are_counted() -> None:
    samples = after(PUBLISHED, replace(PUBLISHED, expired=3), replace(PUBLISHED, expired=4))
    assert samples["expired_items_total"] == 7


def test_a_round_counts_its_events_steps_and_time() -> None:
    samples = after(RoundDone(ROUND), RoundDone(ROUND))
    assert samples["trained_events_total"] == 200
    assert samples["train_steps_total"] == 8
    assert samples["train_step_seconds_sum"] == pytest.approx(2 * 0.53)
    assert samples["train_step_seconds_bucket{0.01}"] == 6  # each step counts by itself
    assert samples["train_loss"] == 1.5
    assert samples["holdout_rows"] == 5
    assert samples["skipped_sequences_total"] == 2
    assert samples["non_finite_rounds_total"] == 0


def test_a_round_without_a_step_leaves_loss_and_step_time_alone() -> None:
    idle = replace(ROUND, step_s=(), loss=math.nan)
    samples = after(RoundDone(ROUND), RoundDone(idle))
    assert samples["train_loss"] == 1.5
    assert samples["train_step_seconds_count"] == 4


def test_a_round_that_diverged_is_counted() -> None:
    assert after(RoundDone(replace(ROUND, diverged=True)))["non_finite_rounds_total"] == 1


def test_the_gate_tells_its_verdict_and_both_sides() -> None:
    samples = after(Judged(GateReport(Verdict.REJECT, 70, -0.1, 0.01, 0.3, 0.2), 6, shift=-0.2))
    assert samples["gate_decisions_total{reject}"] == 1
    assert samples["holdout_ndcg_at_10{champion}"] == 0.3
    assert samples["holdout_shift_ndcg_at_10"] == -0.2
    assert samples["holdout_ndcg_at_10{challenger}"] == 0.2
    assert samples["skipped_sequences_total"] == 6


def test_a_click_head_tells_its_figures_as_far_as_there_are_any() -> None:
    gate = GateReport(Verdict.HOLD, 70, 0.0, 0.01, 0.3, 0.3)
    scores = ClickScores(90, 5, auc=0.7, log_loss=0.2, accuracy=0.9, rmse=0.25)
    samples = after(
        RoundDone(ROUND),
        Judged(gate, 0, clicks=ClickReport(scores, rerank=0.5)),
        Judged(gate, 0, clicks=ClickReport(replace(scores, rows=91, auc=math.nan), rerank=0.0)),
    )
    assert samples["click_labels_total"] == 7
    assert (samples["click_auc"], samples["click_log_loss_nats"]) == (0.7, 0.2)
    assert (samples["click_accuracy_ratio"], samples["click_rmse"]) == (0.9, 0.25)
    assert (samples["click_holdout_rows"], samples["click_rerank_weight"]) == (91, 0.0)


@pytest.mark.parametrize(
    "message",
    [Heartbeat(1, busy=True), PUBLISHED, Covered(PUBLISHED, (1.0,))],
    ids=lambda message: type(message).__name__,
)
def test_what_others_measure_changes_nothing_here(message: Any) -> None:
    ours = {name: value for name, value in after(message).items() if "_created" not in name}
    assert not [
        name for name, value in ours.items() if value and name.startswith(("train", "gate"))
    ]
