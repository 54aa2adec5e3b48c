"""There is no room for another version or state snapshot."""

import random
import time

from tests.faults.disk import full
from tests.faults.fault import Fault
from tests.faults.run import Run, Strike

_FULL_S = 15.0


def filled(run: Run, chance: random.Random) -> Strike:
    """Recommendations go on; versions come again once there is room."""
    run.flow(chance.uniform(0.5, 3.0))
    said = run.service.text().count("the disk is full")
    at_s = time.monotonic()
    with full(run.storage):
        version = run.newest()
        run.flow(_FULL_S)
        if run.newest() != version:
            raise AssertionError("a version was published on a full disk")
    refused = run.service.text().count("the disk is full") - said
    return Strike(at_s, _FULL_S, refused, run.published_after(at_s, version))


FAULTS = [Fault("disk-full", "the disk under the storage is full for 15 s", filled, disk_mb=64)]
