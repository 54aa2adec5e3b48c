"""There is no room for another version or state snapshot."""

import random
import time

from tests.faults.disk import full
from tests.faults.fault import Fault
from tests.faults.run import Run, Strike

_FULL_S = 15.0
_ROOM_WITHIN_S = 60.0


def filled(run: Run, chance: random.Random) -> Strike:
    """Recommendations go on; versions come again once there is room."""
    run.flow(chance.uniform(0.5, 3.0))
    said = refusals(run)
    at_s = time.monotonic()
    with full(run.storage):
        version = run.newest()
        run.flow(_FULL_S)
        if run.newest() != version:
            raise AssertionError("a version was published on a full disk")
    versions, snapshots = (now - then for now, then in zip(refusals(run), said, strict=True))
    written = run.service.metric("headwater_snapshots_total", result="written")
    published = run.published_after(at_s, version)
    run.service.wait_for(
        lambda: run.service.metric("headwater_snapshots_total", result="written") > written,
        "snapshot once there was room",
        _ROOM_WITHIN_S,
    )
    # Proof that work was under way: both were refused while it was full.
    return Strike(at_s, _FULL_S, min(versions, snapshots), published)


def refusals(run: Run) -> tuple[int, int]:
    """Of versions and of state snapshots, so far."""
    text = run.service.text()
    return text.count("could not publish"), text.count("no snapshot of partition")


FAULTS = [Fault("disk-full", "the disk under the storage is full for 15 s", filled, disk_mb=64)]
