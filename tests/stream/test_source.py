"""How far behind we are is told also while paused; what Kafka refuses is told in one line."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    InvalidSessionTimeoutError,
    KafkaConnectionError,
    KafkaTimeoutError,
    TopicAuthorizationFailedError,
)

from service.domain import Offsets, Partition
from service.errors import ConfigurationError, TransientError
from service.metrics import Metrics
from service.settings import KafkaSettings, TopicsSettings
from service.stream import source
from service.stream.source import Assigned, Source

MANY = 8  # turns of the loop, enough for a few looks at the lag


class Consumer:
    """Stands for aiokafka's, which has been given partitions 0 and 1 of the events."""

    def __init__(self) -> None:
        self.owned = {TopicPartition("events", 0), TopicPartition("events", 1)}
        self.ends = dict.fromkeys(self.owned, 10)
        self.read = dict.fromkeys(self.owned, 0)
        self.faults: list[Exception] = []  # of the first requests
        self.paused: set[TopicPartition] = set()

    def subscribe(self, topics: list[str], listener: object) -> None: ...
    async def stop(self) -> None: ...

    async def start(self) -> None:
        self._fail()

    async def getmany(self, **_: int) -> dict[TopicPartition, list[Any]]:
        self._fail()
        return {}

    def assignment(self) -> set[TopicPartition]:
        return set(self.owned)

    def pause(self, *partitions: TopicPartition) -> None:
        self.paused |= set(partitions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.read[partition] = offset

    async def committed(self, partition: TopicPartition) -> int | None:
        return None

    async def beginning_offsets(
        self, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, int]:
        self._fail()
        return dict.fromkeys(partitions, 0)

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        asked = list(partitions)
        await asyncio.sleep(0)
        self._fail()
        return {partition: self.ends[partition] for partition in asked}

    async def position(self, partition: TopicPartition) -> int:
        return self.read[partition]

    def _fail(self) -> None:
        if self.faults:
            raise self.faults.pop(0)


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> Consumer:
    made = Consumer()

    def make(**_: Any) -> Consumer:
        return made

    monkeypatch.setattr(source, "AIOKafkaConsumer", make)
    monkeypatch.setattr(source, "_LAG_EVERY_S", 0.0)
    return made


def a_source(metrics: Metrics | None = None) -> Source:
    async def assigned(found: list[Assigned]) -> Offsets:
        return {one.partition: one.start for one in found}

    async def revoked(_: list[Partition]) -> None: ...

    return Source(KafkaSettings(), TopicsSettings(), metrics or Metrics(), assigned, revoked)


def lags(metrics: Metrics) -> dict[str, float]:
    """By partition."""
    (family,) = metrics.lag.collect()
    return {sample.labels["partition"]: sample.value for sample in family.samples}


class TestLag:
    def watched(self, consumer: Consumer, *, then: Any = None) -> dict[str, float]:
        """Told after a while, during which `then(source)` happens."""
        metrics = Metrics()

        async def watch() -> None:
            made = a_source(metrics)
            await made.start()
            watching = asyncio.create_task(made.watch_lag())
            for turn in range(3 * MANY):
                await asyncio.sleep(0)
                if then and turn == MANY:
                    await then(made)
            watching.cancel()

        asyncio.run(watch())
        return lags(metrics)

    def test_it_is_what_is_between_our_position_and_the_end(self, consumer: Consumer) -> None:
        consumer.read[TopicPartition("events", 1)] = 4
        assert self.watched(consumer) == {"0": 10, "1": 6}

    def test_it_grows_while_the_source_is_paused(self, consumer: Consumer) -> None:
        async def pause(made: Source) -> None:
            made.pause(True)
            consumer.ends[TopicPartition("events", 0)] = 25

        assert self.watched(consumer, then=pause) == {"0": 25, "1": 10}
        assert consumer.paused == consumer.owned

    def test_it_is_told_again_after_kafka_was_away(self, consumer: Consumer) -> None:
        async def leave(_: Source) -> None:
            consumer.faults = [KafkaTimeoutError(), KafkaConnectionError()]
            consumer.ends[TopicPartition("events", 0)] = 11

        assert self.watched(consumer, then=leave) == {"0": 11, "1": 10}

    def test_a_partition_that_went_to_another_owner_has_none(self, consumer: Consumer) -> None:
        async def rebalance(made: Source) -> None:
            lost = TopicPartition("events", 1)
            await made.on_partitions_revoked(list(consumer.owned))
            consumer.owned.remove(lost)
            await made.on_partitions_assigned(list(consumer.owned))

        assert self.watched(consumer, then=rebalance) == {"0": 10}


class TestRefusals:
    @pytest.mark.parametrize(
        ("fault", "advice"),
        [
            (TopicAuthorizationFailedError("events"), r"TopicAuthorization.*kafka\.sasl_username"),
            (GroupAuthorizationFailedError("headwater"), r"'headwater'.*access control lists"),
            (InvalidSessionTimeoutError(), r"kafka\.session_timeout_s"),
        ],
    )
    def test_what_has_to_be_set_right_is_a_configuration_error(
        self, fault: Exception, advice: str, consumer: Consumer
    ) -> None:
        consumer.faults = [fault]
        with pytest.raises(ConfigurationError, match=advice) as told:
            asyncio.run(a_source().start())
        assert "\n" not in str(told.value)

    def test_a_broker_that_went_away_is_transient(self, consumer: Consumer) -> None:
        consumer.faults = [KafkaConnectionError("gone")]
        with pytest.raises(TransientError, match=r"gone.*start again"):
            asyncio.run(a_source().start())

    def test_a_right_to_read_that_is_missing_is_told_at_the_first_read(
        self, consumer: Consumer
    ) -> None:
        async def read(made: Source) -> None:
            await made.start()
            consumer.faults = [TopicAuthorizationFailedError("events")]
            await made.read(1, 0.0)

        with pytest.raises(ConfigurationError, match="read topic 'events'"):
            asyncio.run(read(a_source()))

    def test_a_failed_take_over_is_kept_for_who_reads(self, consumer: Consumer) -> None:
        made = a_source()

        async def take_over() -> None:
            await made.start()
            consumer.faults = [TopicAuthorizationFailedError("events")]
            await made.on_partitions_assigned(list(consumer.owned))

        with pytest.raises(ConfigurationError):
            asyncio.run(take_over())
        assert isinstance(made.failure, ConfigurationError)
