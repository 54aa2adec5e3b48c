"""The faults, in the order of the table."""

from tests.faults.fault import Fault
from tests.faults.scenarios import broker, members, network, service, topics, worker

FAULTS: list[Fault] = [
    *service.FAULTS,
    *worker.FAULTS,
    *broker.FAULTS,
    *network.FAULTS,
    *members.FAULTS,
    *topics.FAULTS,
]
