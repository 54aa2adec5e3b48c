"""How far behind we are is told also while paused; what Kafka refuses is told in one line."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    InvalidSessionTimeoutError,
    KafkaConnectionError,
    KafkaTimeoutError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)

from service.domain import Offset, Offsets, Partition
from service.errors import ConfigurationError, TransientError
from service.metrics import Metrics
from service.settings import KafkaSettings, TopicsSettings
from service.stream import source
from service.stream.source import Assigned, Source
from service.stream.transactions import Transactions

MANY = 8  # turns of the loop, enough for a few looks at the lag


class Consumer:
    """Stands for aiokafka's, which has been given partitions 0 and 1 of the events."""

    def __init__(self) -> None:
        self.owned = {TopicPartition("events", 0), TopicPartition("events", 1)}
        self.starts = dict.fromkeys(self.owned, 0)
        self.ends = dict.fromkeys(self.owned, 10)
        self.read = dict.fromkeys(self.owned, 0)
        self.faults: list[Exception] = []  # of the first requests
        self.paused: set[TopicPartition] = set()
        self.committed_offset: int | None = None
        self._coordinator = self  # as far as it is called

    def _start_heartbeat_task(self) -> None: ...

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

    def resume(self, *partitions: TopicPartition) -> None:
        self.paused -= set(partitions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.read[partition] = offset

    async def committed(self, partition: TopicPartition) -> int | None:
        return self.committed_offset

    async def beginning_offsets(
        self, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, int]:
        self._fail()
        return {partition: self.starts[partition] for partition in partitions}

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


def a_source(metrics: Metrics | None = None, lanes: "Lanes | None" = None) -> Source:
    async def assigned(found: list[Assigned]) -> Offsets:
        return {one.partition: one.start for one in found}

    async def revoked(_: list[Partition]) -> None: ...

    return Source(
        KafkaSettings(),
        TopicsSettings(),
        metrics or Metrics(),
        assigned,
        revoked,
        cast(Transactions, lanes) if lanes else None,
    )


class Lanes:
    """Stands for the transactions; what a former owner had open is committed as they open."""

    def __init__(self, consumer: Consumer) -> None:
        self.opened: list[Partition] = []
        self.finished = False
        self._consumer = consumer

    async def open(
        self,
        partitions: list[Partition],
        committed: Callable[[Partition], Awaitable[Offset | None]],
    ) -> None:
        assert await committed(Partition(0)) is None
        self.opened = sorted(partitions)
        self._consumer.committed_offset = 6

    def finish(self) -> None:
        self.finished = True


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


class TestWhatKafkaHasNoMore:
    PLACE = TopicPartition("events", 0)

    def read(self, consumer: Consumer, fault: Exception) -> Metrics:
        """From offset 4 on, where the first read gives a fault."""
        metrics = Metrics()

        async def read() -> None:
            made = a_source(metrics)
            await made.start()
            consumer.read[self.PLACE] = 4
            consumer.faults = [fault]
            assert await made.read(1, 0.0) == []
            made.rewind()  # a rebalance does not go back to what is gone
            assert await made.read(1, 0.0) == []

        asyncio.run(read())
        return metrics

    def test_what_retention_removed_meanwhile_is_told(
        self, consumer: Consumer, caplog: pytest.LogCaptureFixture
    ) -> None:
        consumer.starts[self.PLACE] = 7
        metrics = self.read(consumer, OffsetOutOfRangeError({self.PLACE: 4}))
        assert metrics.offsets_lost._value.get() == 3
        assert "retention removed 3 records of partition 0 before they were read" in caplog.text
        assert consumer.read[self.PLACE] == 7

    def test_what_is_read_elsewhere_by_now_is_nothing(self, consumer: Consumer) -> None:
        consumer.starts[self.PLACE] = 3
        metrics = self.read(consumer, OffsetOutOfRangeError({self.PLACE: 1}))
        assert metrics.offsets_lost._value.get() == 0
        assert consumer.read[self.PLACE] == 4

    def test_a_log_that_ends_before_is_taken_up_anew(self, consumer: Consumer) -> None:
        consumer.ends[self.PLACE] = 2
        with pytest.raises(TransientError, match=r"ends at 2, and was read up to 4.*start again"):
            self.read(consumer, OffsetOutOfRangeError({self.PLACE: 4}))

    def test_before_it_is_told_where_to_begin_there_is_nothing(self, consumer: Consumer) -> None:
        self.read(consumer, NoOffsetForPartitionError(self.PLACE))
        assert consumer.read[self.PLACE] == 4


class TestTransactions:
    def test_they_are_opened_before_the_committed_offsets_are_read(
        self, consumer: Consumer
    ) -> None:
        """Until then that of a transaction that is pending would be missed."""
        lanes = Lanes(consumer)
        made = a_source(lanes=lanes)
        begun: list[Assigned] = []

        async def take_over() -> None:
            async def assigned(partitions: list[Assigned]) -> Offsets:
                begun.extend(partitions)
                return {one.partition: one.start for one in partitions}

            made._on_assigned = assigned
            await made.start()
            await made.on_partitions_assigned(list(consumer.owned))

        asyncio.run(take_over())
        assert lanes.opened == [0, 1]
        assert [one.committed for one in begun] == [6, 6]

    def test_they_learn_of_a_revocation_while_a_batch_is_under_way(
        self, consumer: Consumer
    ) -> None:
        """It may wait for a transaction that only the revocation ends."""
        lanes = Lanes(consumer)
        made = a_source(lanes=lanes)

        async def revoke() -> None:
            async with made.lock:
                revoking = asyncio.create_task(made.on_partitions_revoked([]))
                await asyncio.sleep(0)
                assert lanes.finished
            await revoking

        asyncio.run(revoke())


class TestTakenUpAgain:
    def test_what_was_read_is_finished_and_the_same_partitions_begin_anew(
        self, consumer: Consumer
    ) -> None:
        made = a_source()
        done: list[tuple[str, list[Partition]]] = []

        async def assigned(partitions: list[Assigned]) -> Offsets:
            done.append(("assigned", sorted(one.partition for one in partitions)))
            return dict.fromkeys((one.partition for one in partitions), Offset(4))

        async def revoked(partitions: list[Partition]) -> None:
            assert made.lock.locked()
            done.append(("revoked", sorted(partitions)))

        made._on_assigned, made._on_revoked = assigned, revoked

        async def take_up_again() -> None:
            await made.start()
            await made.on_partitions_assigned(list(consumer.owned))
            consumer.read = dict.fromkeys(consumer.owned, 9)
            made.pause(True)
            before = made.generation
            await made.take_up_again()
            assert made.generation == before + 1

        asyncio.run(take_up_again())
        both = [Partition(0), Partition(1)]
        assert done == [("assigned", both), ("revoked", both), ("assigned", both)]
        assert set(consumer.read.values()) == {4}
        assert not consumer.paused

    def test_a_rebalance_under_way_or_meanwhile_does_as_well(self, consumer: Consumer) -> None:
        made = a_source()

        async def take_up_again() -> list[int]:
            await made.start()
            await made.on_partitions_assigned(list(consumer.owned))
            generations = [made.generation]
            async with made.lock:
                revoking = asyncio.create_task(made.on_partitions_revoked(list(consumer.owned)))
                await asyncio.sleep(0)
                again = asyncio.create_task(made.take_up_again())
                await asyncio.sleep(0)
            await asyncio.gather(revoking, again)
            generations.append(made.generation)
            async with made.lock:
                assigning = asyncio.create_task(made.on_partitions_assigned([]))
                await asyncio.sleep(0)
                made._rebalancing = False  # as if it were heard of only now
                again = asyncio.create_task(made.take_up_again())
                await asyncio.sleep(0)
            await asyncio.gather(assigning, again)
            return [*generations, made.generation]

        first, between, last = asyncio.run(take_up_again())
        assert (between, last) == (first, first + 1)

    def test_one_that_is_asked_for_while_partitions_begin_ends_none_of_their_transactions(
        self, consumer: Consumer
    ) -> None:
        again: list[asyncio.Task[None]] = []

        class Asked(Lanes):
            async def open(self, *given: Any) -> None:
                await super().open(*given)
                self.finished = False
                again.append(asyncio.create_task(made.take_up_again()))
                await asyncio.sleep(0)

        lanes = Asked(consumer)
        made = a_source(lanes=lanes)

        async def rebalance() -> None:
            await made.start()
            await made.on_partitions_revoked([])
            await made.on_partitions_assigned(list(consumer.owned))
            await asyncio.gather(*again)

        asyncio.run(rebalance())
        assert (len(again), lanes.finished) == (1, False)

    def test_one_that_is_cancelled_is_no_failure_of_the_source(self, consumer: Consumer) -> None:
        """Whoever stops then finishes what was read."""
        made = a_source()

        async def stop() -> None:
            await made.start()
            await made.on_partitions_assigned(list(consumer.owned))
            waiting = asyncio.Event()

            async def revoked(_: list[Partition]) -> None:
                waiting.set()
                await asyncio.sleep(60)

            made._on_revoked = revoked
            again = asyncio.create_task(made.take_up_again())
            await waiting.wait()
            again.cancel()
            await asyncio.wait([again])
            assert again.cancelled()

        asyncio.run(stop())
        assert made.failure is None
        assert not made.lock.locked()


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
