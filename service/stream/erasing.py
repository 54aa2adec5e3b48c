"""Asks a running service to forget a user, and looks whether it has."""

import asyncio
from collections.abc import AsyncGenerator, Iterable

from aiokafka import AIOKafkaProducer
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from service.domain import Offset, Offsets, Partition
from service.settings import KafkaSettings
from service.stream.connection import admin_client, client_arguments, told

_RETENTION = "retention.ms"


async def append_to_all(kafka: KafkaSettings, topic: str, key: bytes, value: bytes) -> Offsets:
    """Append a record to every partition of a topic, and give the offsets behind it.

    Where a user's events are depends on whose producer sent them (Java's and aiokafka's hash keys
    in another way than librdkafka's), and on how many partitions there were. Raises
    ConfigurationError or TransientError where Kafka does not take it.
    """
    producer = AIOKafkaProducer(**client_arguments(kafka), acks="all", enable_idempotence=True)
    with told(f"write to topic {topic!r}"):
        await producer.start()
        try:
            placed = [
                await producer.send_and_wait(topic, value, key=key, partition=partition)
                for partition in sorted(await producer.partitions_for(topic))
            ]
        finally:
            await producer.stop()
    return {Partition(one.partition): Offset(one.offset + 1) for one in placed}


async def committed(
    kafka: KafkaSettings, topic: str, groups: Iterable[str], every_s: float
) -> AsyncGenerator[dict[str, Offsets], None]:
    """Up to where each of some groups has committed, asked again and again without end; nothing
    for one that has not committed in this topic."""
    async with admin_client(kafka) as client:
        while True:
            found = {group: await client.list_consumer_group_offsets(group) for group in groups}
            yield {
                group: {
                    Partition(place.partition): Offset(at.offset)
                    for place, at in offsets.items()
                    if place.topic == topic
                }
                for group, offsets in found.items()
            }
            await asyncio.sleep(every_s)


async def retention_ms(kafka: KafkaSettings, topics: Iterable[str]) -> dict[str, int]:
    """How long Kafka keeps the records of topics, -1 for ever; without those of which it does not
    tell us."""
    wanted = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
    async with admin_client(kafka) as client:
        responses = await client.describe_configs(wanted)
    return {
        name: int(value)
        for response in responses
        for code, _, _, name, entries in response.resources
        if code == 0
        for key, value, *_ in entries
        if key == _RETENTION
    }
