"""What the worker's messages and the live model add to the training curves."""

from service.app.prequential import PrequentialWindow
from service.domain import Version
from service.tracking.curves import gate_values, live_values, round_values, version_values
from service.tracking.tracker import Tracker
from service.trainer.messages import FromWorker, Judged, RoundDone
from service.trainer.process import Covered, WorkerEnded


class TrainingCurves:
    """Drawn over the events of finished rounds since this start."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._events = 0

    def follow(
        self,
        message: FromWorker | WorkerEnded | Covered,
        live: PrequentialWindow,
        serving: Version,
    ) -> None:
        """Does not block: called in the event loop."""
        match message:
            case RoundDone(report=report):
                self._events += report.events
                values = round_values(report) | live_values(live.hit_rate(), live.ndcg())
                self._tracker.add(self._events, values | version_values(serving))
            case Judged(report=report, shift=shift, clicks=clicks):
                self._tracker.add(self._events, gate_values(report, shift, clicks))
            case _:
                pass
