"""The sink: recommendations and dead letters out, each acknowledged before it counts as done."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Iterable

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from service.errors import InvalidEventError
from service.metrics import Metrics
from service.settings import KafkaSettings, TopicsSettings
from service.stream.codec import Header, Record
from service.stream.connection import as_ours, client_arguments, is_passing, retry_delays_s, told
from service.stream.dead_letters import DeadLetters, Outgoing, shortened

log = logging.getLogger(__name__)

# The consumer may hand us records of any size that the events topic allows; a producer at its
# default of 1 MB would refuse to dead-letter them.
MAX_REQUEST_BYTES = 64 * 1024 * 1024
_LINGER_MS = 2  # gathers the records of one scored batch; more would only add latency
_FLUSH_WITHIN_S = 5.0


class Sink:
    """A producer for each output topic.

    The one of recommendations is idempotent. The one of dead letters must not be: Kafka may refuse
    a record as too large, and aiokafka has then used up its sequence number, so that Kafka would
    refuse all that follows in that partition. A dead letter whose acknowledgement was lost may
    therefore stand twice, with the same origin.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        topics: TopicsSettings,
        metrics: Metrics,
        letters: DeadLetters,
    ) -> None:
        self._letters = letters
        self._topics = topics
        self._metrics = metrics
        self._kafka = kafka
        self._producers: dict[str, AIOKafkaProducer] = {}  # by topic
        # Batches are handed over one after the other, so that a user's recommendations keep
        # their order; their acknowledgements are then awaited side by side.
        self._handing_over = asyncio.Lock()

    async def start(self) -> None:
        """Raises ConfigurationError or TransientError where Kafka does not take us."""
        for topic in (self._topics.recommendations, self._topics.dead_letter):
            producer = self._producers[topic] = AIOKafkaProducer(
                **client_arguments(self._kafka),
                acks="all",
                enable_idempotence=topic == self._topics.recommendations,
                linger_ms=_LINGER_MS,
                max_request_size=MAX_REQUEST_BYTES,
            )
            if topic == self._topics.recommendations:
                never_give_up(producer)
            with told("start a producer"):
                await producer.start()

    async def stop(self) -> None:
        """Flush and close; what no broker takes by then is given up."""
        await asyncio.gather(
            *(close(producer, _FLUSH_WITHIN_S) for producer in self._producers.values())
        )

    async def recommend(self, messages: Iterable[tuple[bytes, bytes | None, list[Header]]]) -> None:
        """Send (key, value, headers), a tombstone where there is no value; return once all are
        acknowledged. Retries without end."""
        await self._send_all(
            "recommendation",
            [(self._topics.recommendations, *message) for message in messages],
        )

    async def bury(
        self, bad: Iterable[tuple[Record, InvalidEventError]], topic: str | None = None
    ) -> None:
        """Dead-letter records that could not become events, their bytes and origin kept. They
        are of `topic`; of the events topic, keyed by user, when None."""
        await self._send_all(
            "dead_letter", [self._letters.of(record, error, topic) for record, error in bad]
        )

    async def _send_all(self, role: str, messages: list[Outgoing]) -> None:
        if not messages:
            return
        started = time.monotonic()
        async with self._handing_over:
            pending = [await self._queue(role, message) for message in messages]
        results = await asyncio.gather(*pending, return_exceptions=True)
        for message, result in zip(messages, results, strict=True):
            if isinstance(result, BaseException):
                self._metrics.produced.labels(role, "retried").inc()
                await self._insist(result, message)
        self._metrics.produced.labels(role, "acknowledged").inc(len(messages))
        self._metrics.produce_seconds.observe(time.monotonic() - started)

    async def _queue(self, role: str, message: Outgoing) -> Awaitable[object]:
        """Nothing is queued behind a record that was not: it would come before it. A queue is full
        for as long as its broker is away."""
        topic = message[0]
        delays_s = retry_delays_s()
        while True:
            try:
                return await queued(self._producers[topic], *message)
            except KafkaError as error:
                if not is_passing(error):
                    return _failed(error)
                delay_s = next(delays_s)
                log.warning("no room for %s, again in %.1f s: %s", topic, delay_s, error)
            self._metrics.produced.labels(role, "retried").inc()
            await asyncio.sleep(delay_s)

    async def _insist(self, error: BaseException, message: Outgoing) -> None:
        """Send again until acknowledged. A send that timed out is unknown, not failed: the
        same record may then stand twice, with the same rec_id."""
        topic = message[0]
        for delay_s in retry_delays_s():
            if isinstance(error, MessageSizeTooLargeError):
                message = shortened(message, self._topics.dead_letter)
            elif not is_passing(error):
                raise as_ours(error, f"write to topic {topic!r}") from None
            log.warning("produce to %s failed, again in %.1f s: %s", topic, delay_s, error)
            await asyncio.sleep(delay_s)
            try:
                await (await queued(self._producers[topic], *message))
            except KafkaError as again:
                error = again
            else:
                return


async def hand_over(
    producer: AIOKafkaProducer,
    topic: str,
    key: bytes | None,
    value: bytes | None,
    headers: list[Header],
) -> Awaitable[object]:
    """Queue one record. What is given raises the KafkaError where it was not taken."""
    try:
        return await queued(producer, topic, key, value, headers)
    except KafkaError as error:
        return _failed(error)


async def queued(
    producer: AIOKafkaProducer,
    topic: str,
    key: bytes | None,
    value: bytes | None,
    headers: list[Header],
) -> Awaitable[object]:
    """What is to be awaited for the record's acknowledgement. Waits while the producer's queue is
    full. Raises the KafkaError of a record that is not queued."""
    future: Awaitable[object] = await producer.send(topic, value, key=key, headers=headers)
    return future


def _failed(error: KafkaError) -> Awaitable[object]:
    failed: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    failed.set_exception(error)
    return failed


async def close(producer: AIOKafkaProducer, within_s: float) -> None:
    """Close it, whatever state it is in."""
    try:
        async with asyncio.timeout(within_s):
            await producer.stop()
    except TimeoutError:
        # It waits for records that no broker takes.
        sending = producer._sender.sender_task
        if sending is not None:
            sending.cancel()
        await producer.client.close()


def never_give_up(producer: AIOKafkaProducer) -> None:
    """What is queued stays there until a broker takes it. aiokafka gives up records of a partition
    that has had no leader for `request_timeout_ms`; those behind them would come first."""
    producer._message_accumulator._batch_ttl = math.inf
