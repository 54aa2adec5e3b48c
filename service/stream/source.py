"""The source: reads the events topic as a member of the consumer group.

Rebalances arrive in a background task of aiokafka, so everything that touches a batch or an
assignment holds `lock`: a revocation waits for the batch under way, and is told before the
partition goes to its next owner.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)

from service.domain import Offset, Offsets, Partition
from service.errors import TransientError
from service.metrics import Metrics
from service.settings import KafkaSettings, TopicsSettings
from service.stream.codec import Record
from service.stream.connection import client_arguments, isolation_level, told
from service.stream.header_names import accept_any_header_names
from service.stream.transactions import Transactions

log = logging.getLogger(__name__)

# Fetching stops for a while when a paused source is not read; the group expects a poll within
# aiokafka's max_poll_interval of 5 minutes, which `read` does whether paused or not.
_FETCH_WAIT_MS = 100
_MAX_PARTITION_FETCH_BYTES = 4 * 1024 * 1024
_LAG_EVERY_S = 2.0  # well within the interval at which Prometheus scrapes


@dataclass(frozen=True, slots=True)
class Assigned:
    """A partition that this process owns from now on."""

    partition: Partition
    start: Offset  # the first record that is still there
    end: Offset  # of the record that comes next
    committed: Offset | None  # everything before it is acknowledged; None: not known


AssignHandler = Callable[[list[Assigned]], Awaitable[Offsets]]  # gives where reading begins
RevokeHandler = Callable[[list[Partition]], Awaitable[None]]


class Source(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """An aiokafka consumer that commits only what it is told to."""

    def __init__(
        self,
        kafka: KafkaSettings,
        topics: TopicsSettings,
        metrics: Metrics,
        on_assigned: AssignHandler,
        on_revoked: RevokeHandler,
        transactions: Transactions | None = None,
    ) -> None:
        """`transactions`: those of exactly-once output, opened and closed with the partitions."""
        self.lock = asyncio.Lock()
        # Counts assignments: records read under an earlier one are read again.
        self.generation = 0
        self.failure: BaseException | None = None  # aiokafka swallows what a handler raises
        self._kafka = kafka
        self._topic = topics.events
        self._metrics = metrics
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._transactions = transactions
        self._consumer: AIOKafkaConsumer | None = None
        self._paused = False
        self._rebalancing = False  # between a revocation and the assignment that follows it
        self._starts: dict[TopicPartition, int] = {}  # where reading this assignment begins

    @property
    def _open(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise RuntimeError("the source was not started")
        return self._consumer

    async def start(self) -> None:
        """Join the group; returns when partitions are assigned. Raises ConfigurationError or
        TransientError where Kafka does not take us."""
        accept_any_header_names()
        self._consumer = AIOKafkaConsumer(
            **client_arguments(self._kafka),
            group_id=self._kafka.group_id,
            enable_auto_commit=False,
            auto_offset_reset="none",  # we say where to go on, and how much is lost by it
            group_instance_id=self._kafka.group_instance_id,
            isolation_level=isolation_level(self._kafka),
            session_timeout_ms=round(self._kafka.session_timeout_s * 1000),
            heartbeat_interval_ms=round(self._kafka.session_timeout_s * 1000 / 10),
            fetch_max_wait_ms=_FETCH_WAIT_MS,
            max_partition_fetch_bytes=_MAX_PARTITION_FETCH_BYTES,
        )
        self._consumer.subscribe([self._topic], listener=self)
        with told(f"read topic {self._topic!r} in group {self._kafka.group_id!r}"):
            await self._consumer.start()

    async def stop(self) -> None:
        """Leave the group. Nothing is revoked: the caller has drained what it read."""
        if self._consumer is None:
            return
        try:
            await self._consumer.stop()
        except asyncio.CancelledError:
            # While no broker answers aiokafka lets its own cancelled fetch escape.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            log.warning("left the consumer group without a goodbye: no broker answers")

    async def read(self, max_records: int, timeout_s: float) -> list[Record]:
        """Records in offset order per partition; empty after `timeout_s` without any.

        The caller holds `lock` while it works on them, but not while it waits here. What retention
        removed before it was read is told, and passed over. Raises TransientError where the
        partition ends before what was read of it.
        """
        with told(f"read topic {self._topic!r}"):
            try:
                return records_of(
                    await self._open.getmany(
                        timeout_ms=round(timeout_s * 1000), max_records=max_records
                    )
                )
            except NoOffsetForPartitionError:
                return []  # it looked before it was told where to begin
            except OffsetOutOfRangeError as error:
                await self._go_on_behind(error.args[0])
                return []

    async def _go_on_behind(self, positions: Mapping[TopicPartition, int]) -> None:
        """Kafka has no records at these positions."""
        starts = await self._open.beginning_offsets(positions)
        ends = await self._open.end_offsets(positions)
        for partition, position in positions.items():
            if not self.owns(partition.partition) or (
                await self._open.position(partition) != position
            ):
                continue  # it was told to read elsewhere since
            if position > ends[partition]:
                raise TransientError(
                    f"partition {partition.partition} ends at {ends[partition]}, and was read up "
                    f"to {position}: its topic was made anew, or a leader had not all records; "
                    "start again"
                )
            lost = max(starts[partition] - position, 0)
            if lost:
                self._metrics.offsets_lost.inc(lost)
                tell_removed(lost, Partition(partition.partition), "read")
            start = max(position, starts[partition])
            self._starts[partition] = max(self._starts.get(partition, start), start)
            self._open.seek(partition, start)

    async def take_up_again(self) -> None:
        """Finish what was read, and begin with the same partitions anew, as after a rebalance. One
        that is under way, or comes meanwhile, does as well."""
        generation = self.generation
        if self._transactions is not None and not self._rebalancing:
            self._transactions.finish()
        async with self.lock:
            if self._rebalancing or self.generation != generation:
                return
            self.pause(False)
            partitions = list(self._open.assignment())
            with told("take over partitions"):
                await self._on_revoked([Partition(one.partition) for one in partitions])
                await self._begin(partitions)

    def rewind(self) -> None:
        """Read the assignment again from where it began. For a read in which it changed: what that
        gave may be the first records of the new one, which are not given twice by themselves."""
        for partition, start in self._starts.items():
            if self.owns(partition.partition):
                self._open.seek(partition, start)

    def owns(self, partition: int) -> bool:
        return TopicPartition(self._topic, partition) in self._open.assignment()

    def pause(self, paused: bool) -> None:
        """Stop or go on fetching; the group membership stays."""
        if paused == self._paused:
            return
        partitions = self._open.assignment()
        (self._open.pause if paused else self._open.resume)(*partitions)
        self._paused = paused
        self._metrics.paused.set(paused)
        log.warning("source paused: training is behind" if paused else "source resumed")

    async def commit(self, offsets: Offsets) -> bool:
        """Commit; what belongs to a partition that is no longer ours is left to its owner. False
        where Kafka did not take it and may later."""
        ours = {
            TopicPartition(self._topic, partition): offset
            for partition, offset in offsets.items()
            if self.owns(partition)
        }
        if not ours:
            return True
        try:
            await self._open.commit(ours)
        except (CommitFailedError, IllegalStateError) as error:
            # The partition has a new owner, who sends these recommendations again, same rec_id.
            self._metrics.commits.labels("fenced").inc()
            log.warning("offsets were not committed: %s", error)
        except KafkaError as error:
            self._metrics.commits.labels("failed").inc()
            log.warning("commit failed, again soon: %s", error)
            return False
        else:
            self._metrics.commits.labels("committed").inc()
        return True

    async def committed(self, partition: Partition) -> Offset | None:
        """Of the group, as Kafka has it now; None where nothing was committed."""
        found = await self._open.committed(TopicPartition(self._topic, partition))
        return None if found is None else Offset(found)

    async def watch_lag(self) -> None:
        """Tell how far behind we are, for ever; beside the pipeline, since it waits for Kafka."""
        while True:
            try:
                await self._update_lag()
            except KafkaError as error:
                log.debug("the lag stays as it was told last: %s", error)
            await asyncio.sleep(_LAG_EVERY_S)

    async def _update_lag(self) -> None:
        """Asks Kafka for the ends: fetches bring them too, but not while the source is paused."""
        ends = await self._open.end_offsets(self._open.assignment())
        for partition, end in ends.items():
            if self.owns(partition.partition):
                position = await self._open.position(partition)
                self._metrics.lag.labels(partition.partition).set(max(end - position, 0))

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._rebalancing = True
        partitions = [Partition(one.partition) for one in revoked]
        if self._transactions is not None:
            # Before the lock: a batch may hold it while it waits for a producer that was fenced.
            self._transactions.finish()
        async with self.lock:
            await self._guarded(self._on_revoked(partitions))

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        # aiokafka begins only after this has returned, and histories of millions of users may take
        # longer to restore than a session. A second start of it does nothing.
        self._open._coordinator._start_heartbeat_task()
        async with self.lock:
            try:
                await self._guarded(self._begin(list(assigned)))
            finally:
                self._rebalancing = False

    async def _guarded(self, work: Awaitable[None]) -> None:
        try:
            with told("take over partitions"):
                await work
        except BaseException as error:
            self.failure = error
            raise

    async def _begin(self, partitions: list[TopicPartition]) -> None:
        if self._transactions is not None:
            # Before the committed offsets are read: this is what makes them last.
            owned = [Partition(one.partition) for one in partitions]
            await self._transactions.open(owned, self.committed)
        starts = await self._open.beginning_offsets(partitions) if partitions else {}
        ends = await self._open.end_offsets(partitions) if partitions else {}
        begun = []
        for partition in partitions:
            committed = await self._open.committed(partition)
            # Nothing is read before the handler has said from where on.
            self._open.seek(partition, ends[partition])
            begun.append(
                Assigned(
                    Partition(partition.partition),
                    Offset(starts[partition]),
                    Offset(ends[partition]),
                    None if committed is None else Offset(committed),
                )
            )
        self.generation += 1
        self._paused = False
        self._metrics.paused.set(0)
        self._metrics.lag.clear()  # of partitions that may have gone to another owner
        self._metrics.partitions.set(len(begun))
        self._metrics.rebalances.inc()
        first = await self._on_assigned(begun)
        self._starts = {TopicPartition(self._topic, one): at for one, at in first.items()}
        self.rewind()


def tell_removed(records: int, partition: Partition, what: str) -> None:
    """Of records that retention removed before they were `what`."""
    log.error(
        "retention removed %d records of partition %d before they were %s; "
        "going on with the oldest that is left",
        records,
        partition,
        what,
    )


def records_of(fetched: Mapping[TopicPartition, list[Any]]) -> list[Record]:
    """What aiokafka's `getmany` gives, of each partition in order."""
    return [
        Record(partition.partition, m.offset, m.timestamp, m.key, m.value, tuple(m.headers))
        for partition, messages in fetched.items()
        for m in messages
    ]
