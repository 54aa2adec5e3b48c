"""Which curves there are: names and values, of what a round, the gate and the stream told.

A value that is not finite is not drawn. Names group by what stands before the slash, as both
programs show them; what is not a score carries its unit.
"""

import numpy as np

from service.trainer.gate import GateReport, Verdict
from service.trainer.learner import RoundReport
from service.trainer.reranking import ClickReport

Values = dict[str, float]

_VERDICTS = {Verdict.PROMOTE: 1.0, Verdict.HOLD: 0.0, Verdict.REJECT: -1.0}


def round_values(report: RoundReport) -> Values:
    values = {"train/loss_nats": report.loss, "holdout/rows": float(report.held_out)}
    if report.step_s:
        values["train/step_seconds"] = float(np.mean(report.step_s))
    return values


def gate_values(report: GateReport, shift: float | None, clicks: ClickReport | None) -> Values:
    """`shift` is the champion's since it was published, where one was; `clicks` where a click head
    is trained."""
    values = {
        "holdout/champion_ndcg_at_10": report.champion,
        "holdout/challenger_ndcg_at_10": report.challenger,
        "gate/gain": report.mean_gain,
        "gate/margin": report.margin,
        "gate/verdict": _VERDICTS[report.verdict],
    }
    if shift is not None:
        values["holdout/shift_ndcg_at_10"] = shift
    if clicks is not None:
        values |= {
            "click/auc": clicks.scores.auc,
            "click/log_loss_nats": clicks.scores.log_loss,
            "click/accuracy": clicks.scores.accuracy,
            "click/rmse": clicks.scores.rmse,
            "click/rerank_weight": clicks.rerank,
        }
    return values


def live_values(hit_rate: float, ndcg: float) -> Values:
    """Prequential metrics of the live model."""
    return {"prequential/hr_at_10": hit_rate, "prequential/ndcg_at_10": ndcg}


def version_values(version: int) -> Values:
    """The version that serves."""
    return {"serving/version": float(version)}
