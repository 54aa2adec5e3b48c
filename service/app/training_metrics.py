"""What the worker's messages mean in metrics and log lines."""

import logging
import math

from service.metrics import Metrics
from service.trainer.messages import (
    Behind,
    DescriptionDone,
    FromWorker,
    Heartbeat,
    Judged,
    Published,
    RoundDone,
    Settled,
    Started,
)
from service.trainer.process import Covered, WorkerEnded
from service.trainer.reranking import ClickReport

log = logging.getLogger(__name__)


def record(message: FromWorker | WorkerEnded | Covered, metrics: Metrics) -> None:
    match message:
        case Started():
            metrics.worker_up.set(1)
            log.info(
                "trainer worker ready on %s, on top of version %d", message.device, message.version
            )
        case Behind(version=version):
            metrics.worker_up.set(0)
            log.error(
                "a newer version than %d is gone or damaged: what it had learned is read again",
                version,
            )
        case WorkerEnded(restarts=restarts):
            metrics.worker_up.set(0)
            metrics.worker_restarts.inc(restarts)
        case RoundDone(report=report):
            metrics.trained_events.inc(report.events)
            metrics.train_steps.inc(len(report.step_s))
            for seconds in report.step_s:
                metrics.train_step_seconds.observe(seconds)
            if math.isfinite(report.loss):
                metrics.train_loss.set(report.loss)
            metrics.holdout_rows.set(report.held_out)
            metrics.non_finite.inc(report.diverged)
            metrics.skipped_sequences.inc(report.skipped)
            metrics.labels.inc(report.labels)
        case Judged(report=report, skipped=skipped, shift=shift, clicks=clicks):
            if shift is not None:
                metrics.holdout_shift.set(shift)
            if clicks is not None:
                _record_clicks(clicks, metrics)
            metrics.gate_decisions.labels(report.verdict.value).inc()
            metrics.skipped_sequences.inc(skipped)
            metrics.holdout_ndcg.labels("champion").set(report.champion)
            metrics.holdout_ndcg.labels("challenger").set(report.challenger)
            if report.older is not None:
                metrics.holdout_ndcg.labels("older").set(report.older)
            log.info(
                "gate: %s (gain %+.4f ± %.4f on %d rows; champion %.4f, challenger %.4f)",
                report.verdict.value,
                report.mean_gain,
                report.margin,
                report.rows,
                report.champion,
                report.challenger,
            )
        case Settled(skipped=skipped):
            metrics.skipped_sequences.inc(skipped)
        case Published(expired=expired):
            metrics.items_expired.inc(expired)
        case Heartbeat() | DescriptionDone() | Covered():
            pass


def _record_clicks(report: ClickReport, metrics: Metrics) -> None:
    scores = report.scores
    metrics.click_rows.set(scores.rows)
    metrics.click_rerank.set(report.rerank)
    for gauge, figure in (
        (metrics.click_auc, scores.auc),
        (metrics.click_log_loss, scores.log_loss),
        (metrics.click_accuracy, scores.accuracy),
        (metrics.click_rmse, scores.rmse),
    ):
        if math.isfinite(figure):
            gauge.set(figure)
    log.info(
        "click head: AUC %.4f on %d held-out labels, weight %.2f in rankings",
        scores.auc,
        scores.rows,
        report.rerank,
    )
