"""The other end: a producer of events and a reader of recommendations, as our users run them.

For the demo, the sandbox and the benchmarks; the service itself uses the source and the sink.
"""

import asyncio
from typing import Protocol, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from service.domain import Offsets
from service.settings import KafkaSettings
from service.stream.codec import Record
from service.stream.connection import admin_client, client_arguments, isolation_level
from service.stream.source import records_of

_LINGER_MS = 2  # gathers what is sent within one turn of the loop; more would only add latency


class Appended(Protocol):
    """Where Kafka has put a record."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...


class EventProducer:
    """Appends records to one topic, each exactly once as long as this object lives."""

    def __init__(self, kafka: KafkaSettings, topic: str) -> None:
        self._kafka = kafka
        self._topic = topic

    async def __aenter__(self) -> Self:
        self._producer = AIOKafkaProducer(
            **client_arguments(self._kafka),
            acks="all",
            enable_idempotence=True,
            linger_ms=_LINGER_MS,
        )
        await self._producer.start()
        return self

    async def __aexit__(self, *failure: object) -> None:
        """Flush and close."""
        await self._producer.stop()

    async def send(self, key: bytes, value: bytes) -> "asyncio.Future[Appended]":
        """Queue a record; the future is done when Kafka has it, or raises a `KafkaError`.

        Waits only while the producer's buffer is full. Records of one key keep their order.
        """
        appended: asyncio.Future[Appended] = await self._producer.send(self._topic, value, key=key)
        return appended


class RecommendationReader:
    """Reads one topic from its first record on, all partitions, in no group: it commits nothing.
    With exactly-once output it is given what was committed."""

    def __init__(self, kafka: KafkaSettings, topic: str) -> None:
        self._kafka = kafka
        self._topic = topic

    async def __aenter__(self) -> Self:
        # Without a group the client assigns itself every partition of its topic.
        self._consumer = AIOKafkaConsumer(
            self._topic,
            **client_arguments(self._kafka),
            group_id=None,
            isolation_level=isolation_level(self._kafka),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await self._consumer.start()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._consumer.stop()

    async def read(self, timeout_s: float) -> list[Record]:
        """What has arrived, of each partition in order; empty when nothing does in time."""
        return records_of(await self._consumer.getmany(timeout_ms=round(timeout_s * 1000)))


async def commit_offsets(kafka: KafkaSettings, topic: str, offsets: Offsets) -> None:
    """Set where the group goes on. Kafka refuses this while the group has members."""
    consumer = AIOKafkaConsumer(
        **client_arguments(kafka), group_id=kafka.group_id, enable_auto_commit=False
    )
    places = {TopicPartition(topic, partition): offset for partition, offset in offsets.items()}
    consumer.assign(list(places))
    await consumer.start()
    try:
        await consumer.commit(places)
    finally:
        await consumer.stop()


async def delete_topics(kafka: KafkaSettings, names: list[str]) -> None:
    """Remove topics with all their records. Names that do not exist are passed over."""
    async with admin_client(kafka) as client:
        await client.delete_topics(names)
