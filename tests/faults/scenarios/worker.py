"""The trainer worker dies or stands still in the middle of an optimizer step."""

import math
import random
import time
from functools import partial

from tests.faults.fault import Fault
from tests.faults.orders import Blow
from tests.faults.run import Run, Strike


def struck(run: Run, chance: random.Random, *, blow: Blow) -> Strike:
    """A micro-batch is at the worker, since the point is inside a step. It has recovered when
    the next version is there, though recommendations never stopped."""
    done = run.strike_at("step", blow, chance.randrange(10))
    if done is None:
        return Strike(time.monotonic(), 0.0, 0, math.nan)
    version = run.newest()
    recovery_s = run.published_after(done.at_s, version)
    return Strike(done.at_s, 0.0, 1, recovery_s)


FAULTS = [
    Fault("worker-kill", "kill -9 of the worker mid-step", partial(struck, blow=Blow.KILL)),
    Fault("worker-freeze", "SIGSTOP of the worker mid-step", partial(struck, blow=Blow.FREEZE)),
    Fault(
        "worker-hang",
        "the worker's step never ends; it counts as stuck after 20 s",
        partial(struck, blow=Blow.HANG),
        {"HEADWATER_TRAINER__RESTART__STUCK_AFTER_S": "20"},
    ),
    Fault(
        "worker-memory",
        "the worker gets no more memory mid-step (RLIMIT_AS)",
        partial(struck, blow=Blow.EXHAUST),
    ),
]
