"""The trainer worker dies or stands still, mostly in the middle of an optimizer step."""

import math
import os
import random
import signal
import time
from functools import partial

from tests.faults.fault import Fault
from tests.faults.orders import Blow
from tests.faults.run import Run, Strike


def struck(
    run: Run, chance: random.Random, *, blow: Blow, point: str = "step", passes: int = 10
) -> Strike:
    """A micro-batch is at the worker, since the point is inside its work. It has recovered when
    the next version is there, though recommendations never stopped."""
    done = run.strike_at(point, blow, chance.randrange(passes))
    if done is None:
        return Strike(time.monotonic(), 0.0, 0, math.nan)
    version = run.newest()
    recovery_s = run.published_after(done.at_s, version)
    return Strike(done.at_s, 0.0, 1, recovery_s)


def struck_with_template(run: Run, chance: random.Random, *, harm: signal.Signals) -> Strike:
    """What the next worker would be forked from is harmed, then the worker is killed."""
    os.kill(run.service.template_pid(), harm)
    return struck(run, chance, blow=Blow.KILL)


def struck_with_version(run: Run, chance: random.Random) -> Strike:
    """While the worker stands still mid-step the newest version loses its end, which the service
    takes for learned; then the worker is killed."""
    done = run.strike_at("step", Blow.FREEZE, chance.randrange(10))
    if done is None:
        return Strike(time.monotonic(), 0.0, 0, math.nan)
    version = run.newest()
    state = run.storage / "registry" / "versions" / f"{version:08d}" / "trainer.safetensors"
    os.truncate(state, chance.randrange(state.stat().st_size))
    os.kill(done.pid, signal.SIGKILL)
    return Strike(done.at_s, 0.0, 1, run.published_after(done.at_s, version))


_SOON_STUCK = {"HEADWATER_TRAINER__RESTART__STUCK_AFTER_S": "20"}

FAULTS = [
    Fault(
        "worker-kill", "kill -9 of the worker mid-step", partial(struck, blow=Blow.KILL), once=True
    ),
    Fault(
        "worker-freeze",
        "SIGSTOP of the worker mid-step",
        partial(struck, blow=Blow.FREEZE),
        once=True,
    ),
    Fault(
        "worker-hang",
        "the worker's step never ends; it counts as stuck after 20 s",
        partial(struck, blow=Blow.HANG),
        _SOON_STUCK,
        once=True,
    ),
    Fault(
        "worker-memory",
        "the worker gets no more memory mid-step (RLIMIT_AS)",
        partial(struck, blow=Blow.EXHAUST),
        once=True,
    ),
    Fault(
        "worker-kill-published",
        "kill -9 of the worker after publishing, before the service hears of it",
        partial(struck, blow=Blow.KILL, point="published", passes=3),
        once=True,
    ),
    Fault(
        "template-kill",
        "kill -9 of what workers are forked from, then of the worker mid-step",
        partial(struck_with_template, harm=signal.SIGKILL),
        once=True,
    ),
    Fault(
        "template-freeze",
        "SIGSTOP of what workers are forked from, then kill -9 of the worker mid-step",
        partial(struck_with_template, harm=signal.SIGSTOP),
        once=True,
    ),
    Fault(
        "version-damage",
        "the newest version's trainer state loses its end, then kill -9 of the worker mid-step",
        struck_with_version,
        once=True,
    ),
]
