"""One of three brokers dies, the one that leads a partition."""

import random
import time

from confluent_kafka.admin import AdminClient

from tests.faults.cluster import ThreeBrokers
from tests.faults.fault import Fault
from tests.faults.numbered import client_settings
from tests.faults.run import Run, Strike

_AWAY_S = 15.0
_ANSWER_S = 30.0


def leader_killed(run: Run, chance: random.Random) -> Strike:
    """kill -9, and a start on the same data later. The other two take over."""
    run.flow(chance.uniform(0.5, 3.0))
    cluster = run.cluster
    assert isinstance(cluster, ThreeBrokers)
    broker = cluster.brokers[_leader(run, chance.randrange(4))]
    at_s = time.monotonic()
    broker.kill()
    recovery_s = run.answered_after(at_s)
    run.flow(max(at_s + _AWAY_S - time.monotonic(), 0))
    broker.start()
    lasted_s = time.monotonic() - at_s
    run.answered_after(at_s + lasted_s)
    waiting = sum(one.produced_s <= at_s + 1 < one.acknowledged_s for one in run.producing.sent)
    return Strike(at_s, lasted_s, waiting + run.unanswered_at(at_s), recovery_s)


def _leader(run: Run, partition: int) -> int:
    topic = run.stream.events
    admin = AdminClient(client_settings(run.bootstrap))
    return int(admin.list_topics(topic, _ANSWER_S).topics[topic].partitions[partition].leader)


_LEADER_KILL = Fault(
    "leader-kill",
    "kill -9 of a leader among three brokers, acks=all; back after 15 s",
    leader_killed,
    kafka=ThreeBrokers,
)

FAULTS = [_LEADER_KILL, _LEADER_KILL.exactly_once()]
