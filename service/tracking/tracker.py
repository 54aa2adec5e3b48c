"""Hands values to the programs that draw curves, and never stands in the way of the service.

Writing may block on a disk or a network, so a thread of its own does it. What fails is
logged once and given up until the next start; what comes faster than it is written is dropped.
"""

import logging
import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial

from service.extras import require_packages
from service.settings import Settings, masked
from service.tracking.writers import TensorBoardWriter, WandbWriter, Writer

log = logging.getLogger(__name__)

# Some hours of a service's rounds, a few MB.
_WAITING = 10_000
# A run that is still being sent then is cut short, so that the service ends when it is told to.
_CLOSE_WITHIN_S = 5.0
# What a curve follows from. The others are addresses and names, which are nobody else's business.
_TOLD = ("batch", "model", "memory", "click", "trainer", "scorer")

Point = tuple[int, Mapping[str, float]]


Make = Callable[[], Writer]


class Tracker:
    """With no writers it does nothing."""

    def __init__(self, writers: Mapping[str, Make]) -> None:
        """By the names that the log calls them."""
        self._makers = writers
        self._points: queue.Queue[Point | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._has_dropped = False
        if writers:
            self._thread.start()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Points of some curves. Neither blocks nor raises."""
        if not self._makers:
            return
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if not finite:
            return
        try:
            self._points.put_nowait((step, finite))
        except queue.Full:
            if not self._has_dropped:
                log.warning("training curves have gaps: they are written too slowly")
            self._has_dropped = True

    def close(self) -> None:
        """Write what waits. Blocks for some seconds at most."""
        if not self._makers:
            return
        try:
            self._points.put(None, timeout=_CLOSE_WITHIN_S)
        except queue.Full:
            return  # stuck, and a daemon: it ends with the process
        self._thread.join(_CLOSE_WITHIN_S)
        if self._thread.is_alive():
            log.warning("the end of the training curves was not written in time")

    def _run(self) -> None:
        writers: dict[str, Writer] = {}
        for name, make in self._makers.items():
            with _given_up(name):
                writers[name] = make()
        while (point := self._points.get()) is not None:
            for name, writer in list(writers.items()):
                del writers[name]
                with _given_up(name):
                    writer.write(*point)
                    writers[name] = writer
        for name, writer in writers.items():
            with _given_up(name):
                writer.close()


@contextmanager
def _given_up(name: str) -> Iterator[None]:
    """Whatever these programs raise, the service goes on without them."""
    try:
        yield
    except Exception:
        log.exception("training curves for %s are given up until the next start", name)


UNTRACKED = Tracker({})


def require_trackers(settings: Settings) -> None:
    """Raises ConfigurationError where a package is missing."""
    if settings.tracking.tensorboard is not None:
        require_packages("tracking.tensorboard", ("tensorboard",), "'.[tracking]'")
    if settings.tracking.wandb is not None:
        require_packages("tracking.wandb", ("wandb",), "wandb")


def start_tracker(settings: Settings, command: str, now: datetime) -> Tracker:
    """A run named after the command and the time. Raises ConfigurationError as
    `require_trackers`; whatever else is wrong is only logged."""
    require_trackers(settings)
    run = f"{command}-{now:%Y%m%d-%H%M%S}"
    folder, project = settings.tracking.tensorboard, settings.tracking.wandb
    writers: dict[str, Make] = {}
    if folder is not None:
        writers["TensorBoard"] = partial(TensorBoardWriter, folder / run)
    if project is not None:
        told = {name: section for name, section in masked(settings).items() if name in _TOLD}
        writers["Weights & Biases"] = partial(WandbWriter, project, run, told)
    return Tracker(writers)
