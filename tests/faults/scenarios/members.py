"""Members of the consumer group come and go. They take partitions and answer nothing."""

import asyncio
import math
import random
import time

from aiokafka import AIOKafkaConsumer

from tests.faults.fault import Fault
from tests.faults.run import Run, Strike
from tests.integration.running import Service

_EVERY_S = 3.0
_LASTS_S = 120.0
_MOVED_WITHIN_S = 60.0


def coming_and_going(run: Run, chance: random.Random) -> Strike:
    """One joins or leaves every 3 s for 2 minutes."""
    run.flow(chance.uniform(0.5, 3.0))
    at_s = time.monotonic()
    rebalances = run.rebalances()
    asyncio.run(_come_and_go(run, at_s + _LASTS_S))
    recovery_s = run.answered_after(at_s + _LASTS_S) + _LASTS_S
    run.wait(lambda: _partitions(run.service) == 4, "partition", _MOVED_WITHIN_S)
    return Strike(at_s, _LASTS_S, run.rebalances() - rebalances, recovery_s)


async def _come_and_go(run: Run, until_s: float) -> None:
    member: AIOKafkaConsumer | None = None
    while time.monotonic() < until_s:
        if member is None:
            member = AIOKafkaConsumer(
                run.stream.events,
                bootstrap_servers=run.bootstrap,
                group_id=run.stream.name,
                enable_auto_commit=False,
                session_timeout_ms=6_000,
                heartbeat_interval_ms=600,
            )
            joining = asyncio.ensure_future(member.start())
        else:
            await member.stop()
            member = None
        await asyncio.sleep(_EVERY_S)
        if member is not None and joining.done():
            joining.result()
    if member is not None:
        await joining
        await member.stop()


def replica_comes_and_goes(run: Run, chance: random.Random) -> Strike:
    """Half of the partitions move to another process that scores, with their state, and back when
    that is stopped or killed."""
    run.flow(chance.uniform(0.5, 3.0))
    at_s = time.monotonic()
    rebalances = run.rebalances()
    with run.replica() as other:
        run.wait(lambda: _partitions(other) == 2, "partition of the other", _MOVED_WITHIN_S)
        run.flow(chance.uniform(0.5, 3.0))
        gone_s = time.monotonic()
        if chance.random() < 0.5:
            other.kill()
        elif other.stop() != 0:
            raise AssertionError(f"did not stop in order:\n{other.words()}")
    recovery_s = run.answered_after(gone_s)
    run.wait(lambda: _partitions(run.service) == 4, "partition", _MOVED_WITHIN_S)
    return Strike(at_s, gone_s - at_s, run.rebalances() - rebalances, recovery_s + gone_s - at_s)


def _partitions(service: Service) -> int:
    return int(service.metric("headwater_assigned_partitions"))


FAULTS = [
    Fault(
        "replicas",
        "another process that scores joins, and is stopped or killed",
        replica_comes_and_goes,
        apart=True,
    ),
    Fault(
        "members",
        f"a member of the group joins or leaves every 3 s for {math.floor(_LASTS_S / 60)} minutes",
        coming_and_going,
    ),
]
