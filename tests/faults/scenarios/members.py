"""Members of the consumer group come and go. They take partitions and answer nothing."""

import asyncio
import math
import random
import time

from aiokafka import AIOKafkaConsumer

from tests.faults.fault import Fault
from tests.faults.run import Run, Strike

_EVERY_S = 3.0
_LASTS_S = 120.0


def coming_and_going(run: Run, chance: random.Random) -> Strike:
    """One joins or leaves every 3 s for 2 minutes."""
    run.flow(chance.uniform(0.5, 3.0))
    at_s = time.monotonic()
    rebalances = run.service.metric("headwater_rebalances_total")
    asyncio.run(_come_and_go(run, at_s + _LASTS_S))
    recovery_s = run.answered_after(at_s + _LASTS_S) + _LASTS_S
    run.wait(lambda: run.service.metric("headwater_assigned_partitions") == 4, "partition", 60)
    gone_through = run.service.metric("headwater_rebalances_total") - rebalances
    return Strike(at_s, _LASTS_S, int(gone_through), recovery_s)


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


FAULTS = [
    Fault(
        "members",
        f"a member of the group joins or leaves every 3 s for {math.floor(_LASTS_S / 60)} minutes",
        coming_and_going,
    )
]
