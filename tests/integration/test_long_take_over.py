"""A take-over of partitions that lasts longer than Kafka waits for a member that is silent."""

import asyncio
import time

import pytest

from service.domain import Offset, Offsets, Partition
from service.metrics import Metrics
from service.settings import KafkaSettings, TopicsSettings
from service.stream.source import Assigned, Source
from tests.integration.traffic import Stream, produce

pytestmark = pytest.mark.integration

SESSION_S = 6.0  # the least that a broker's defaults allow
WITHIN_S = 60.0


def test_the_member_keeps_its_partitions(stream: Stream) -> None:
    expected = produce(stream, range(100))
    metrics = Metrics()

    async def take_over(partitions: list[Assigned]) -> Offsets:
        await asyncio.sleep(2 * SESSION_S)
        return {one.partition: one.start for one in partitions}

    async def give_up(_: list[Partition]) -> None: ...

    async def read() -> int:
        source = Source(
            KafkaSettings(
                bootstrap_servers=stream.bootstrap,
                group_id=stream.name,
                session_timeout_s=SESSION_S,
            ),
            TopicsSettings(events=stream.events),
            metrics,
            take_over,
            give_up,
        )
        await source.start()
        found = 0
        until_s = time.monotonic() + WITHIN_S
        while found < len(expected) and time.monotonic() < until_s:
            found += len(await source.read(100, 0.5))
        await asyncio.sleep(SESSION_S / 2)  # a member that was expelled would have been told
        assert await source.commit({Partition(0): Offset(1)})
        await source.stop()
        return found

    assert asyncio.run(read()) == len(expected)
    assert metrics.rebalances._value.get() == 1
    assert metrics.commits.labels("committed")._value.get() == 1
