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
from service.privacy import Pseudonyms
from service.settings import KafkaSettings, PrivacySettings, TopicsSettings
from service.stream.codec import Header, Record
from service.stream.connection import as_ours, client_arguments, is_passing, told

log = logging.getLogger(__name__)

# The consumer may hand us records of any size that the events topic allows; a producer at its
# default of 1 MB would refuse to dead-letter them.
MAX_REQUEST_BYTES = 64 * 1024 * 1024
# What is kept of a record that the dead-letter topic refuses as too large.
_TRUNCATED_BYTES = 64 * 1024
_LINGER_MS = 2  # gathers the records of one scored batch; more would only add latency
_RETRY_FIRST_S = 0.2
_RETRY_LAST_S = 10.0

# Topic, key, value and headers.
Outgoing = tuple[str, bytes | None, bytes | None, list[Header]]


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
        privacy: PrivacySettings | None = None,
    ) -> None:
        secret = privacy.hash_key if privacy else None
        self._pseudonyms = Pseudonyms(secret.get_secret_value() if secret else None)
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
        self, bad: Iterable[tuple[Record, InvalidEventError]], topic: str | None = None
    ) -> None:
        """Dead-letter records that could not become events, their bytes and origin kept. They
        are of `topic`; of the events topic, keyed by user, when None."""
        letters = [
            (record, error, None if topic or not record.key else self._pseudonyms.of(record.key))
            for record, error in bad
        ]
        for record, error, user in letters:
            log.debug(
                "dead letter of partition %d, offset %d: %s, user %s",
                record.partition,
                record.offset,
                error.reason.value,
                user,
            )
        await self._send_all(
            "dead_letter",
            [
                letter_of(
                    self._topics.dead_letter, topic or self._topics.events, record, error, user
                )
                for record, error, user in letters
            ],
        )

    async def _send_all(self, role: str, messages: list[Outgoing]) -> None:
        if not messages:
            return
        started = time.monotonic()
        async with self._handing_over:
            pending = [
                await hand_over(self._producers[message[0]], *message) for message in messages
            ]
        results = await asyncio.gather(*pending, return_exceptions=True)
        for message, result in zip(messages, results, strict=True):
            if isinstance(result, BaseException):
                self._metrics.produced.labels(role, "retried").inc()
                await self._insist(result, message)
        self._metrics.produced.labels(role, "acknowledged").inc(len(messages))
        self._metrics.produce_seconds.observe(time.monotonic() - started)

    async def _insist(self, error: BaseException, message: Outgoing) -> None:
        """Send again until acknowledged. A send that timed out is unknown, not failed: the
        same record may then stand twice, with the same rec_id."""
        topic = message[0]
        delay_s = _RETRY_FIRST_S
        while True:
            if isinstance(error, MessageSizeTooLargeError):
                message = shortened(message, self._topics.dead_letter)
            elif not is_passing(error):
                raise as_ours(error, f"write to topic {topic!r}") from None
            log.warning("produce to %s failed, again in %.1f s: %s", topic, delay_s, error)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _RETRY_LAST_S)
            try:
                await (await hand_over(self._producers[topic], *message))
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
    """Queue one record; waits only while the producer's buffer is full. What is given raises the
    KafkaError where it was not taken."""
    try:
        future: Awaitable[object] = await producer.send(topic, value, key=key, headers=headers)
    except KafkaError as error:
        failed: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        failed.set_exception(error)
        return failed
    return future


def letter_of(
    dead_letter: str,
    topic: str,
    record: Record,
    error: InvalidEventError,
    user: str | None = None,
) -> Outgoing:
    """The dead letter of a record of `topic`: its bytes, origin, and what stands for its user."""
    return (
        dead_letter,
        record.key,
        # aiokafka sends nothing that has neither.
        b"" if record.key is record.value is None else record.value,
        dead_letter_headers(topic, record, error, user),
    )


def dead_letter_headers(
    topic: str, record: Record, error: InvalidEventError, user: str | None = None
) -> list[Header]:
    """The record's own headers, then why, whence, and the hash that stands for its user."""
    return [
        *record.headers,
        *([("headwater-user", user.encode())] if user else []),
        ("headwater-reason", error.reason.encode()),
        ("headwater-detail", error.detail.encode(errors="replace")[:1024]),
        ("headwater-topic", topic.encode()),
        ("headwater-partition", str(record.partition).encode()),
        ("headwater-offset", str(record.offset).encode()),
        ("headwater-timestamp", str(record.appended_ms).encode()),
    ]


_TRUNCATED = "headwater-truncated-from-bytes"


def shortened(message: Outgoing, dead_letter: str) -> Outgoing:
    """What is kept of a dead letter that the topic refuses as too large: the beginning of its key
    and value, our own headers, and what identifies the rest. Raises ConfigurationError for what is
    none, or is still too large."""
    topic, key, value, headers = message
    if topic != dead_letter or _is_truncated(headers):
        raise _too_small(topic, value)
    value = value or b""
    return (
        topic,
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
