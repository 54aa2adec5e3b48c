"""Kafka itself dies or stands still."""

import random
import time
from functools import partial

from tests.faults.fault import Fault
from tests.faults.run import Run, Strike


def killed(run: Run, chance: random.Random) -> Strike:
    """kill -9 and a start on the same data and ports."""
    run.flow(chance.uniform(0.5, 3.0))
    at_s = time.monotonic()
    run.kafka.broker.kill()
    run.kafka.broker.start()
    return _over(run, at_s, time.monotonic() - at_s)


def paused(run: Run, chance: random.Random, *, seconds: float) -> Strike:
    """SIGSTOP: connections stay, nothing answers."""
    run.flow(chance.uniform(0.5, 3.0))
    at_s = time.monotonic()
    run.kafka.broker.pause()
    try:
        run.flow(seconds)
    finally:
        run.kafka.broker.resume()
    return _over(run, at_s, seconds)


def _over(run: Run, at_s: float, lasted_s: float) -> Strike:
    recovery_s = run.answered_after(at_s + lasted_s) + lasted_s
    # Events are acknowledged by the same broker: what was produced by then is what waited.
    waiting = sum(
        one.produced_s <= at_s + lasted_s < one.acknowledged_s for one in run.producing.sent
    )
    return Strike(at_s, lasted_s, waiting + run.unanswered_at(at_s), recovery_s)


_KILL = Fault("broker-kill", "kill -9 of the broker, started again on the same data", killed)
# Longer than a transaction may last.
_PAUSE = Fault("broker-pause-60", "SIGSTOP of the broker for 60 s", partial(paused, seconds=60.0))

FAULTS = [
    _KILL,
    _KILL.exactly_once(),
    Fault("broker-pause-15", "SIGSTOP of the broker for 15 s", partial(paused, seconds=15.0)),
    _PAUSE,
    _PAUSE.exactly_once(),
]
