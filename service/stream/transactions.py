"""Exactly-once output: a transactional producer for each input partition that we own.

A transaction holds recommendations, dead letters and the offset behind their events. aiokafka
tells Kafka nothing of our group membership when it commits that offset, so what keeps a former
owner from writing is the producer's epoch: each new owner of a partition begins with
InitProducerId for the same `transactional.id`, which ends the transaction that the former left
open and refuses all that it still sends. Only then is the committed offset read. aiokafka's
request for it does not ask for a stable one (KIP-447), and gets the old one while a transaction
that moves it is pending.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from service.domain import Offset, Partition
from service.errors import AbandonedError, TransientError
from service.metrics import Metrics
from service.settings import KafkaSettings, TopicsSettings
from service.stream.connection import as_ours, client_arguments, retry_delays_s
from service.stream.dead_letters import DeadLetters, Outgoing, shortened
from service.stream.once import (
    AfterFailure,
    Share,
    Standing,
    after_failure,
    is_unexplained,
    standing,
    telling,
    transactional_id,
)
from service.stream.sink import MAX_REQUEST_BYTES, close, hand_over

log = logging.getLogger(__name__)

# Of aiokafka's own retries. Kafka often asks for one while it verifies that a partition belongs
# to the transaction or still ends the one before; aiokafka's default of 100 ms doubled p95.
_BACKOFF_MS = 20
# How long a fenced producer waits for the rebalance that explains it, in session timeouts. A
# member that has lost its place learns so by its next heartbeat, after a tenth of one.
_YIELD_SESSIONS = 0.3
# Together less than a shutdown may take: what is under way, then giving up what is not done.
_FINISH_WITHIN_S = 5.0
_ABORT_WITHIN_S = 2.0
_STOP_WITHIN_S = 1.0

ReadCommitted = Callable[[Partition], Awaitable[Offset | None]]


class Transactions:
    """The lanes of the partitions that we own. For the event loop alone."""

    def __init__(
        self, kafka: KafkaSettings, topics: TopicsSettings, metrics: Metrics, letters: DeadLetters
    ) -> None:
        self._kafka = kafka
        self._topics = topics
        self._metrics = metrics
        self._letters = letters
        self._lanes: dict[Partition, _Lane] = {}

    async def open(self, partitions: Iterable[Partition], committed: ReadCommitted) -> None:
        """Take over: from here on a former owner of these can commit nothing, and what it had
        open is aborted. Raises what aiokafka does."""
        await self.close()
        lanes = {
            one: _Lane(self._kafka, self._topics, self._metrics, self._letters, one, committed)
            for one in partitions
        }
        self._lanes = lanes
        await asyncio.gather(*(lane.open() for lane in lanes.values()))

    async def deliver(self, shares: Mapping[Partition, Share]) -> None:
        """Returns once a transaction with each of them is committed; retries without end. Raises
        AbandonedError for what is left to the partition's next owner, ConfigurationError for what
        Kafka never takes, TransientError when another member has gone on from where we are."""
        results = await asyncio.gather(
            *(self._deliver(partition, share) for partition, share in shares.items()),
            return_exceptions=True,
        )
        failures = [one for one in results if isinstance(one, BaseException)]
        # One that ends the service before one that is no fault.
        for failure in sorted(failures, key=lambda one: isinstance(one, AbandonedError)):
            raise failure

    def finish(self) -> None:
        """Begin to close: what is under way goes on, and nobody waits for what cannot succeed."""
        for lane in self._lanes.values():
            lane.finish()

    async def close(self) -> None:
        """Commit what is under way or, where that takes too long, abort it; then let go."""
        lanes, self._lanes = self._lanes, {}
        await asyncio.gather(*(lane.close() for lane in lanes.values()))

    async def _deliver(self, partition: Partition, share: Share) -> None:
        lane = self._lanes.get(partition)
        if lane is None:
            raise AbandonedError(f"partition {partition} is no longer ours")
        await lane.deliver(share)


@dataclass(slots=True)
class _Waiting:
    share: Share
    committed: "asyncio.Future[None]"


class _Lane:
    """One input partition. While a transaction is under way the shares that arrive are gathered
    for the next, so that a busy partition has fewer and larger ones and an idle one no delay. How
    many that can be is the caller's to bound."""

    def __init__(
        self,
        kafka: KafkaSettings,
        topics: TopicsSettings,
        metrics: Metrics,
        letters: DeadLetters,
        partition: Partition,
        read_committed: ReadCommitted,
    ) -> None:
        self._kafka = kafka
        self._topics = topics
        self._metrics = metrics
        self._letters = letters
        self._partition = partition
        self._read_committed = read_committed
        self._producer: AIOKafkaProducer | None = None
        self._in_transaction = False  # begun, and nothing asked for its end
        self._committed: Offset | None = None
        self._gathered: list[_Waiting] = []
        self._under_way: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._finishing = asyncio.Event()
        self._working: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._committed = await self._begin_anew()
        self._working = asyncio.create_task(self._work())

    async def deliver(self, share: Share) -> None:
        if self._working is None or self._working.done():
            raise AbandonedError(f"partition {self._partition} is closed")
        waiting = _Waiting(share, asyncio.get_running_loop().create_future())
        self._gathered.append(waiting)
        self._wake.set()
        await waiting.committed

    def finish(self) -> None:
        self._finishing.set()
        self._wake.set()

    async def close(self) -> None:
        self.finish()
        if self._working is not None:
            await asyncio.wait([self._working], timeout=_FINISH_WITHIN_S)
            self._working.cancel()
            await asyncio.wait([self._working])
        await self._abort()
        await self._discard()

    async def _work(self) -> None:
        failure: BaseException = AbandonedError(f"partition {self._partition} is given up")
        try:
            while self._gathered or not self._finishing.is_set():
                if not self._gathered:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                self._under_way, self._gathered = self._gathered, []
                await self._commit([one.share for one in self._under_way])
                for one in self._under_way:
                    _settle(one.committed, None)
                self._under_way = []
        except Exception as error:  # noqa: BLE001  # it is raised where it is waited for
            failure = error
        finally:
            for one in (*self._under_way, *self._gathered):
                _settle(one.committed, failure)

    async def _commit(self, shares: list[Share]) -> None:
        """One transaction, until it is committed."""
        after = shares[-1].next_offset
        records = self._records(shares)
        # Answers may be due there too: where a leader had lost records, others took their place.
        if self._committed is not None and after <= self._committed and not records:
            return  # only histories were brought up to date
        delays_s, unexplained = retry_delays_s(), 0
        while True:
            started_s = time.monotonic()
            try:
                if self._producer is None and not await self._is_open(after):
                    break
                failed = await self._attempt(records, after)
                if not failed:
                    break
                error = telling(list(failed.values()))
            except (KafkaError, TimeoutError) as raised:
                error, failed = raised, {}
            await self._discard()
            unexplained = unexplained + 1 if is_unexplained(error) else 0
            match after_failure(error, unexplained):
                case AfterFailure.RAISE:
                    raise as_ours(error, f"write transactions of partition {self._partition}")
                case AfterFailure.YIELD:
                    self._metrics.commits.labels("fenced").inc()
                    log.warning(
                        "the producer of partition %d was replaced by another owner's, or its "
                        "transaction timed out",
                        self._partition,
                    )
                    await self._pause(self._kafka.session_timeout_s * _YIELD_SESSIONS)
                    continue
                case AfterFailure.SHORTEN:
                    for place, refusal in failed.items():
                        if isinstance(refusal, MessageSizeTooLargeError):
                            records[place] = shortened(records[place], self._topics.dead_letter)
                case AfterFailure.AGAIN:
                    self._metrics.commits.labels("failed").inc()
                    delay_s = next(delays_s)
                    log.warning(
                        "a transaction of partition %d failed, again in %.1f s: %r",
                        self._partition,
                        delay_s,
                        error,
                    )
                    await self._pause(delay_s)
        self._committed = after
        self._tell(shares, time.monotonic() - started_s)

    async def _attempt(self, records: list[Outgoing], after: Offset) -> dict[int, BaseException]:
        """Send, and commit where all was taken: aiokafka would commit what was not. Gives the
        errors of those that were not, by their place."""
        producer = self._producer
        if producer is None:
            raise RuntimeError("the lane has no producer")
        await producer.begin_transaction()
        self._in_transaction = True
        pending = [await hand_over(producer, *record) for record in records]
        results = await asyncio.gather(*pending, return_exceptions=True)
        failed = {
            place: result
            for place, result in enumerate(results)
            if isinstance(result, BaseException)
        }
        if not failed:
            # Not beside the records: Kafka verifies one request of a transaction at a time, and
            # tells the other to come again.
            await producer.send_offsets_to_transaction(
                {TopicPartition(self._topics.events, self._partition): after},
                self._kafka.group_id,
            )
            self._in_transaction = False
            await producer.commit_transaction()
        return failed

    async def _is_open(self, after: Offset) -> bool:
        """With a new producer: whether a transaction that failed is still to be sent. Raises
        TransientError when another member has gone on."""
        found = await self._begin_anew()
        match standing(self._committed, found, after):
            case Standing.OPEN:
                return True
            case Standing.DONE:
                return False
            case Standing.OVERTAKEN:
                raise TransientError(
                    f"another member of group {self._kafka.group_id!r} has gone on with partition "
                    f"{self._partition}, from {self._committed} to {found}; start again"
                )

    async def _begin_anew(self) -> Offset | None:
        """A producer that replaces any other of this partition, and the offset that was committed
        by then; None where none was."""
        producer = AIOKafkaProducer(
            **client_arguments(self._kafka),
            transactional_id=transactional_id(self._kafka, self._topics, self._partition),
            # Readers wait behind an open transaction. One that a member left is ended by the next
            # owner, who comes within the session timeout if there is one.
            transaction_timeout_ms=round(self._kafka.session_timeout_s * 1000),
            acks="all",
            retry_backoff_ms=_BACKOFF_MS,
            max_request_size=MAX_REQUEST_BYTES,
        )
        self._producer, self._in_transaction = producer, False
        await producer.start()
        return await self._read_committed(self._partition)

    async def _abort(self) -> None:
        """What was begun and is not done, so that readers need not wait for it."""
        if self._producer is None or not self._in_transaction:
            return
        self._in_transaction = False
        try:
            async with asyncio.timeout(_ABORT_WITHIN_S):
                await self._producer.abort_transaction()
        except (KafkaError, TimeoutError, AssertionError) as error:
            # aiokafka asserts that a producer which is past use is not asked for anything.
            log.warning("a transaction of partition %d is left open: %r", self._partition, error)
        else:
            log.info("a transaction of partition %d was aborted", self._partition)

    async def _discard(self) -> None:
        """Close the producer, whatever state it is in."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        ended = producer._txn_manager.wait_for_transaction_end()
        if ended is not None and ended.done() and not ended.cancelled():
            ended.exception()  # looked at, so that asyncio does not tell of it in the log
        await close(producer, _STOP_WITHIN_S)

    async def _pause(self, seconds: float) -> None:
        """Raises AbandonedError once nobody is to wait any longer."""
        try:
            async with asyncio.timeout(seconds):
                await self._finishing.wait()
        except TimeoutError:
            return
        raise AbandonedError(f"partition {self._partition} is left to its next owner")

    def _records(self, shares: list[Share]) -> list[Outgoing]:
        """Share by share, so that a user's recommendations keep their order."""
        recommendations = self._topics.recommendations
        records: list[Outgoing] = []
        for share in shares:
            records += [(recommendations, *message) for message in share.messages]
            records += [self._letters.of(*one) for one in share.letters]
        return records

    def _tell(self, shares: list[Share], seconds: float) -> None:
        produced = self._metrics.produced
        for role, count in (
            ("recommendation", sum(len(one.messages) for one in shares)),
            ("dead_letter", sum(len(one.letters) for one in shares)),
        ):
            produced.labels(role, "acknowledged").inc(count)
        self._metrics.produce_seconds.observe(seconds)
        self._metrics.commits.labels("committed").inc()


def _settle(waiting: "asyncio.Future[None]", failure: BaseException | None) -> None:
    if waiting.done():  # whoever waited was cancelled
        return
    if failure is None:
        waiting.set_result(None)
    else:
        waiting.set_exception(failure)
