"""The catalogue beside the events: what it withdraws, what it adds, what it cannot read."""

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from service.settings import KafkaSettings, TopicsSettings
from service.stream.topics import create_topics
from tests.integration.running import Service
from tests.integration.traffic import (
    Stream,
    answer,
    dead_letters,
    event,
    make_stream,
    produce,
    send,
)
from tests.model.encoders import write_encoder

pytestmark = pytest.mark.integration

WITHIN_S = 90.0


def tell(stream: Stream, topic: str, records: Iterable[tuple[bytes, bytes | None]]) -> None:
    async def append() -> None:
        async with AIOKafkaProducer(bootstrap_servers=stream.bootstrap, acks="all") as producer:
            for key, value in records:
                await producer.send_and_wait(topic, value, key=key)

    asyncio.run(append())


def test_the_items_topic_adds_and_withdraws(kafka: str, tmp_path: Path) -> None:
    stream = make_stream(kafka)
    topic = f"{stream.name}.items"
    names = TopicsSettings(
        events=stream.events,
        recommendations=stream.recommendations,
        dead_letter=stream.dead_letter,
        items=topic,
        partitions=2,
    )
    assert asyncio.run(create_topics(KafkaSettings(bootstrap_servers=kafka), names)) == [topic]
    gone = [f"item-{number}" for number in range(40)]
    new = {"item_id": "unmet", "title": "red shoe"}
    tell(
        stream,
        topic,
        [
            *((name.encode(), None) for name in gone),
            (b"unmet", json.dumps(new).encode()),
            (b"bad", b"{"),
        ],
    )
    encoder = write_encoder(tmp_path / "encoder")
    more = {"HEADWATER_TOPICS__ITEMS": topic, "HEADWATER_ITEMS__TEXT__ENCODER": encoder}
    with Service(stream, tmp_path, more) as live:
        produce(stream, range(2_000))
        (letter,) = dead_letters(stream, 1, WITHIN_S)
        assert letter.headers["headwater-topic"] == topic.encode()
        live.wait_for(lambda: live.version() > 1, "a version", WITHIN_S)
        weights = sorted((live.storage / "registry" / "versions").glob("*/described.safetensors"))
        assert weights  # the tower came with the first version that was published
        told = answer(stream, send(stream, b"ann", json.dumps(event(2)).encode())).recommendation()
        assert len(told.items) == 10
        assert not {item.item_id for item in told.items} & set(gone)
