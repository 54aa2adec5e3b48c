from pathlib import Path

import numpy as np

from service.app.prequential import PrequentialWindow
from service.app.training_curves import TrainingCurves
from service.domain import Version
from service.tracking.tracker import Tracker
from service.tracking.writers import TensorBoardWriter
from service.trainer.gate import GateReport, Verdict
from service.trainer.messages import Heartbeat, Judged, RoundDone
from tests.tracking.examples import curves
from tests.trainer.examples import ROUND


def test_curves_are_drawn_over_the_events_of_finished_rounds(tmp_path: Path) -> None:
    tracker = Tracker({"TensorBoard": lambda: TensorBoardWriter(tmp_path)})
    drawn, live = TrainingCurves(tracker), PrequentialWindow()
    drawn.follow(RoundDone(ROUND), live, Version(1))  # the live model was not tested yet
    live.add(np.array([1, 1, 50, 50]))
    drawn.follow(Heartbeat(1, busy=True), live, Version(1))
    drawn.follow(RoundDone(ROUND), live, Version(2))
    gate = GateReport(Verdict.HOLD, 70, 0.0, 0.5, 0.25, 0.5)
    drawn.follow(Judged(gate, 0), live, Version(2))
    tracker.close()
    found = curves(tmp_path)
    assert found["train/loss_nats"] == [(100, 1.5), (200, 1.5)]
    assert found["prequential/hr_at_10"] == [(200, 0.5)]
    assert found["prequential/ndcg_at_10"] == [(200, 0.5)]
    assert found["serving/version"] == [(100, 1.0), (200, 2.0)]
    assert found["holdout/challenger_ndcg_at_10"] == [(200, 0.5)]
    assert found["gate/verdict"] == [(200, 0.0)]
