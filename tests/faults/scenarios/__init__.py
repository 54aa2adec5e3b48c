"""The faults, in the order of the table."""

from tests.faults.fault import Fault
from tests.faults.scenarios import (
    broker,
    failover,
    members,
    network,
    service,
    storage,
    topics,
    worker,
)

FAULTS: list[Fault] = [
    *service.FAULTS,
    *worker.FAULTS,
    *broker.FAULTS,
    *network.FAULTS,
    *members.FAULTS,
    *failover.FAULTS,
    *topics.FAULTS,
    *storage.FAULTS,
]
