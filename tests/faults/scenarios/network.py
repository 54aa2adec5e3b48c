"""The network between the service and Kafka; the harness's own clients do not go through it."""

import random
import time
from functools import partial

from tests.faults.fault import Fault
from tests.faults.proxy import Network
from tests.faults.run import Run, Strike

_DELAY_S = 0.5


def ailing(run: Run, chance: random.Random, *, network: Network, seconds: float) -> Strike:
    run.flow(chance.uniform(0.5, 3.0))
    at_s = time.monotonic()
    run.kafka.proxy.set(network, _DELAY_S if network is Network.SLOW else 0.0)
    try:
        run.flow(seconds)
    finally:
        run.kafka.proxy.set(Network.WELL)
    recovery_s = run.answered_after(at_s + seconds) + seconds
    return Strike(at_s, seconds, run.unanswered_at(at_s + seconds), recovery_s)


_HALF_OPEN = Fault(
    "network-half-open",
    "connections to Kafka stay open and deliver nothing for 20 s",
    partial(ailing, network=Network.HALF_OPEN, seconds=20.0),
)

FAULTS = [
    Fault(
        "network-cut",
        "connections to Kafka reset and refused for 15 s",
        partial(ailing, network=Network.CUT, seconds=15.0),
    ),
    _HALF_OPEN,
    _HALF_OPEN.exactly_once(),
    Fault(
        "network-slow",
        "half a second each way to Kafka for 15 s",
        partial(ailing, network=Network.SLOW, seconds=15.0),
    ),
]
