"""The whole service dies: at any moment, at each step of a commit and of publishing, by request."""

import math
import random
import time
from dataclasses import replace
from functools import partial

from tests.faults.fault import Fault
from tests.faults.orders import Blow
from tests.faults.run import Run, Strike

_ENDS_WITHIN_S = 20.0


def killed(run: Run, chance: random.Random) -> Strike:
    """At a moment that nobody chose."""
    run.flow(chance.uniform(0.5, 3.0))
    at_s = time.monotonic()
    run.service.kill()
    return _risen(run, at_s)


def killed_at(run: Run, chance: random.Random, *, point: str, blow: Blow, passes: int) -> Strike:
    """By itself, when it comes to a point."""
    struck = run.strike_at(point, blow, chance.randrange(passes))
    if struck is None:
        return Strike(time.monotonic(), 0.0, 0, math.nan)
    run.service.running.wait(_ENDS_WITHIN_S)
    return _risen(run, struck.at_s, at_point=True)


def killed_in_recovery(run: Run, chance: random.Random) -> Strike:
    """And twice more, at any moment from the next start until it is just ready. The proof is that
    work was under way each time."""
    run.flow(chance.uniform(0.5, 3.0))
    kills_s = [time.monotonic()]
    run.service.kill()
    for _ in range(2):
        run.start()
        run.flow(chance.uniform(0.0, 1.1 * run.start_s))
        kills_s.append(time.monotonic())
        run.service.kill()
    strike = _risen(run, kills_s[0])
    return replace(strike, under_way=min(run.unanswered_at(at_s) for at_s in kills_s))


def either_killed(run: Run, chance: random.Random) -> Strike:
    """Of two processes the one that scores, or the one that trains for it."""
    if chance.random() < 1 / 2:
        return killed(run, chance)
    run.flow(chance.uniform(0.5, 3.0))
    assert run.trainer is not None
    untrained, version = run.trainer.metric("headwater_untrained_events"), run.newest()
    at_s = time.monotonic()
    run.trainer.kill()
    run.restart_trainer()
    recovery_s = run.published_after(at_s, version)
    return Strike(at_s, 0.0, int(untrained), recovery_s)


def terminated(run: Run, chance: random.Random) -> Strike:
    """SIGTERM: it drains, commits and ends with 0. Nothing may come twice after that."""
    run.flow(chance.uniform(0.2, 2.0))
    at_s = time.monotonic()
    code = run.service.stop()
    if code != 0:
        raise AssertionError(f"ended with {code} on SIGTERM:\n{run.service.words()}")
    # It has answered what it had: the proof is that events went on arriving.
    produced = run.producing.produced
    strike = _risen(run, at_s)
    return Strike(strike.at_s, 0.0, run.producing.produced - produced, strike.recovery_s)


def _risen(run: Run, at_s: float, *, at_point: bool = False) -> Strike:
    run.restart()
    recovery_s = run.answered_after(at_s)
    return Strike(at_s, 0.0, max(run.unanswered_at(at_s), int(at_point)), recovery_s)


def _fifty(seeds: int) -> int:
    return math.ceil(50 * seeds / 20)


_COMMIT = {
    "score": "before a batch is scored",
    "scored": "after scoring, before sending",
    "sent": "after the recommendations are acknowledged, before dead letters",
    "commit": "before the offsets are committed",
    "committed": "after the offsets are committed",
}
_TRANSACTION = {
    "acknowledged": "after a transaction's records are acknowledged, before it moves the offset",
    "moved": "after a transaction has moved the offset, before it is committed",
    "transacted": "after a transaction is committed",
}
_PUBLISH = {
    "promoted": "after the gate's verdict, before anything is written",
    "writing": "after one of the version's files is written",
    "written": "after all of its files, before it has a number",
    "claimed": "with a number, before the manifest",
    "manifest": "after the manifest, before anyone heard of it",
    "published": "after publishing, before the parent is told",
}

_KILL = Fault("service-kill", "kill -9 of the service at any moment", killed)
_SIGTERM = Fault(
    "sigterm", "SIGTERM and a new start, again and again", terminated, strikes=_fifty, once=True
)

FAULTS = [
    _KILL,
    _KILL.exactly_once(),
    *(
        Fault(
            f"commit-kill-{point}",
            f"kill -9 of the service {when}",
            partial(killed_at, point=point, blow=Blow.KILL, passes=10),
        )
        for point, when in _COMMIT.items()
    ),
    Fault(
        "kill-recovering",
        "kill -9 of the service, and twice more while it recovers",
        killed_in_recovery,
    ),
    Fault(
        "roles-kill",
        "kill -9 of the process that scores, or of the one that trains for it",
        either_killed,
        apart=True,
    ),
    *(
        Fault(
            f"kill-{point}",
            f"kill -9 of the service {when}",
            partial(killed_at, point=point, blow=Blow.KILL, passes=10),
        ).exactly_once()
        for point, when in _TRANSACTION.items()
    ),
    *(
        Fault(
            f"publish-kill-{point}",
            f"kill -9 of worker and service {when}",
            partial(killed_at, point=point, blow=Blow.KILL_SERVICE, passes=3),
        )
        for point, when in _PUBLISH.items()
    ),
    Fault(
        "swap-kill",
        "kill -9 of the service with a new version loaded and not yet serving",
        partial(killed_at, point="loaded", blow=Blow.KILL, passes=2),
    ),
    Fault(
        "snapshot-kill",
        "kill -9 of the service after a file of a state snapshot is written",
        partial(killed_at, point="snapshot", blow=Blow.KILL, passes=10),
    ),
    _SIGTERM,
    _SIGTERM.exactly_once(),
]
