"""The sink: recommendations and dead letters out, each acknowledged before it counts as done."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Iterable

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from service.errors import ConfigurationError, InvalidEventError
from service.metrics import Metrics
from service.settings import KafkaSettings, TopicsSettings
from service.stream.codec import Header, Record
from service.stream.connection import as_ours, client_arguments, is_passing, told

log = logging.getLogger(__name__)

# The consumer may hand us records of any size that the events topic allows; a producer at its
# default of 1 MB would refuse to dead-letter them.
_MAX_REQUEST_BYTES = 64 * 1024 * 1024
# What is kept of a record that the dead-letter topic refuses as too large.
_TRUNCATED_BYTES = 64 * 1024
_LINGER_MS = 2  # gathers the records of one scored batch; more would only add latency
_RETRY_FIRST_S = 0.2
_RETRY_LAST_S = 10.0


class Sink:
    """A producer for each output topic.

    The one of recommendations is idempotent. The one of dead letters must not be: Kafka may refuse
    a record as too large, and aiokafka has then used up its sequence number, so that Kafka would
    refuse all that follows in that partition. A dead letter whose acknowledgement was lost may
    therefore stand twice, with the same origin.
    """

    def __init__(self, kafka: KafkaSettings, topics: TopicsSettings, metrics: Metrics) -> None:
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
                max_request_size=_MAX_REQUEST_BYTES,
            )
            with told("start a producer"):
                await producer.start()

    async def stop(self) -> None:
        """Flush and close."""
        for producer in self._producers.values():
            await producer.stop()

    async def recommend(self, messages: Iterable[tuple[bytes, bytes | None, list[Header]]]) -> None:
        """Send (key, value, headers), a tombstone where there is no value; return once all are
        acknowledged. Retries without end."""
        await self._send_all(
            "recommendation",
            [(self._topics.recommendations, *message) for message in messages],
        )

    async def bury(
        self, letters: Iterable[tuple[Record, InvalidEventError]], topic: str | None = None
    ) -> None:
        """Dead-letter records that could not become events, their bytes and origin kept. They
        are of `topic`; of the events topic when None."""
        await self._send_all(
            "dead_letter",
            [
                (
                    self._topics.dead_letter,
                    record.key,
                    # aiokafka sends nothing that has neither.
                    b"" if record.key is record.value is None else record.value,
                    dead_letter_headers(topic or self._topics.events, record, error),
                )
                for record, error in letters
            ],
        )

    async def _send_all(
        self, role: str, messages: list[tuple[str, bytes | None, bytes | None, list[Header]]]
    ) -> None:
        if not messages:
            return
        started = time.monotonic()
        async with self._handing_over:
            pending = [await self._hand_over(*message) for message in messages]
        results = await asyncio.gather(*pending, return_exceptions=True)
        for message, result in zip(messages, results, strict=True):
            if isinstance(result, BaseException):
                self._metrics.produced.labels(role, "retried").inc()
                await self._insist(result, *message)
        self._metrics.produced.labels(role, "acknowledged").inc(len(messages))
        self._metrics.produce_seconds.observe(time.monotonic() - started)

    async def _hand_over(
        self, topic: str, key: bytes | None, value: bytes | None, headers: list[Header]
    ) -> Awaitable[object]:
        """Queue one record; waits only while the producer's buffer is full."""
        try:
            future: Awaitable[object] = await self._producers[topic].send(
                topic, value, key=key, headers=headers
            )
        except KafkaError as error:
            failed: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed
        return future

    async def _insist(
        self,
        error: BaseException,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: list[Header],
    ) -> None:
        """Send again until acknowledged. A send that timed out is unknown, not failed: the
        same record may then stand twice, with the same rec_id."""
        delay_s = _RETRY_FIRST_S
        while True:
            if isinstance(error, MessageSizeTooLargeError):
                if topic != self._topics.dead_letter or _is_truncated(headers):
                    raise _too_small(topic, value) from None
                key, value, headers = _truncated(key, value or b"", headers)
            elif not is_passing(error):
                raise as_ours(error, f"write to topic {topic!r}") from None
            log.warning("produce to %s failed, again in %.1f s: %s", topic, delay_s, error)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _RETRY_LAST_S)
            try:
                await (await self._hand_over(topic, key, value, headers))
            except KafkaError as again:
                error = again
            else:
                return


def dead_letter_headers(topic: str, record: Record, error: InvalidEventError) -> list[Header]:
    """The record's own headers, then why and whence."""
    return [
        *record.headers,
        ("headwater-reason", error.reason.encode()),
        ("headwater-detail", error.detail.encode(errors="replace")[:1024]),
        ("headwater-topic", topic.encode()),
        ("headwater-partition", str(record.partition).encode()),
        ("headwater-offset", str(record.offset).encode()),
        ("headwater-timestamp", str(record.appended_ms).encode()),
    ]


_TRUNCATED = "headwater-truncated-from-bytes"


def _truncated(
    key: bytes | None, value: bytes, headers: list[Header]
) -> tuple[bytes | None, bytes, list[Header]]:
    """What is kept of a record that the topic refuses: the beginning of its key and value, our
    own headers, and what identifies the rest."""
    return (
        key[:_TRUNCATED_BYTES] if key else key,
        value[:_TRUNCATED_BYTES],
        [
            *(header for header in headers if header[0].startswith("headwater-")),
            (_TRUNCATED, str(len(value)).encode()),
            ("headwater-sha256", hashlib.sha256(value).hexdigest().encode()),
        ],
    )


def _is_truncated(headers: list[Header]) -> bool:
    return any(name == _TRUNCATED for name, _ in headers)


def _too_small(topic: str, value: bytes | None) -> ConfigurationError:
    return ConfigurationError(
        f"topic {topic!r} refuses a record of {len(value or b'')} bytes: "
        "raise its max.message.bytes"
    )
