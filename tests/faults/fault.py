"""What a scenario is."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from tests.faults.cluster import Kafka, ProxiedKafka
from tests.faults.run import Run, Strike

EXACTLY_ONCE = {"HEADWATER_KAFKA__DELIVERY": "exactly_once"}

Hit = Callable[[Run, random.Random], Strike]


def one_a_seed(seeds: int) -> int:
    return seeds


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table. `hit` strikes once and returns when the service has recovered."""

    name: str
    what: str
    hit: Hit
    settings: Mapping[str, str] = field(default_factory=dict)
    strikes: Callable[[int], int] = one_a_seed  # how often, of the number of seeds
    # Nothing may come twice either: nobody crashed, or output is exactly-once.
    once: bool = False
    kafka: Callable[[], Kafka] = ProxiedKafka
    again: bool = True  # some events come again
    apart: bool = False  # a process of its own trains
    disk_mb: int | None = None  # the storage is a disk of its own of that size, which takes root

    def exactly_once(self) -> "Fault":
        """The same for output within transactions."""
        return replace(
            self,
            name=f"exactly-once-{self.name}",
            what=f"exactly-once output: {self.what}",
            settings={**self.settings, **EXACTLY_ONCE},
            once=True,
        )
