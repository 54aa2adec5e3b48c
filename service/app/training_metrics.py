"""What the worker's messages mean in metrics and log lines."""

import logging
import math

from service.metrics import Metrics
from service.trainer.messages import FromWorker, Heartbeat, Judged, Published, RoundDone, Started
from service.trainer.process import Covered, WorkerEnded

log = logging.getLogger(__name__)


def record(message: FromWorker | WorkerEnded | Covered, metrics: Metrics) -> None:
    match message:
        case Started():
            metrics.worker_up.set(1)
            log.info(
                "trainer worker ready on %s, on top of version %d", message.device, message.version
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
        case Judged(report=report, skipped=skipped):
            metrics.gate_decisions.labels(report.verdict.value).inc()
            metrics.skipped_sequences.inc(skipped)
            metrics.holdout_ndcg.labels("champion").set(report.champion)
            metrics.holdout_ndcg.labels("challenger").set(report.challenger)
            log.info(
                "gate: %s (gain %+.4f ± %.4f on %d rows; champion %.4f, challenger %.4f)",
                report.verdict.value,
                report.mean_gain,
                report.margin,
                report.rows,
                report.champion,
                report.challenger,
            )
        case Heartbeat() | Published() | Covered():
            pass
