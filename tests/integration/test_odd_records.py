"""Records that other clients send and aiokafka takes for impossible: the stream moves on."""

import json
import os
import subprocess
import sys

import pytest
from confluent_kafka import Producer

from tests.integration.running import Service
from tests.integration.traffic import (
    Stream,
    dead_letter,
    event,
    recommendations,
)

pytestmark = pytest.mark.integration

# aiokafka's Python code, unlike its compiled code, lets a name encode itself.
_SEND = """
import asyncio, json, sys
from aiokafka import AIOKafkaProducer

class Name(str):
    def encode(self, *_):
        return b"\\xff\\xfe"

async def send(bootstrap, topic, records):
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=200) as producer:
        placed = [
            await producer.send(
                topic, value.encode(), key=b"ann", partition=partition,
                headers=[(Name(), b"1")] if bad else [],
            )
            for partition, value, bad in records
        ]
        for one in await asyncio.gather(*placed):
            print(f"{topic}/{one.partition}/{one.offset}")

asyncio.run(send(sys.argv[1], sys.argv[2], json.loads(sys.stdin.read())))
"""


def send_together(stream: Stream, records: list[tuple[int, str, bool]]) -> list[str]:
    """Append (partition, value, whether its header's name is no UTF-8) at once; where they are."""
    done = subprocess.run(
        [sys.executable, "-c", _SEND, stream.bootstrap, stream.events],
        input=json.dumps(records),
        env={**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


def test_a_header_name_that_is_not_utf_8_stops_nothing(live: Service, stream: Stream) -> None:
    odd, broken = {20, 21, 45}, 22
    records = [(n % 2 if n > 30 else 0, json.dumps(event(n)), n in odd) for n in range(60)]
    records[broken] = (0, "no event", True)
    places = send_together(stream, records)
    wanted = {place for n, place in enumerate(places) if n != broken}
    found = [message.rec_id for message in recommendations(stream, len(wanted), 60)]
    assert set(found) == wanted
    assert len(found) == len(wanted)
    letter = dead_letter(stream, places[broken])
    assert letter.value == b"no event"
    assert letter.headers["\\xff\\xfe"] == b"1"


def test_a_record_with_neither_key_nor_value_is_a_dead_letter(
    live: Service, stream: Stream
) -> None:
    placed: list[str] = []
    producer = Producer({"bootstrap.servers": stream.bootstrap})  # aiokafka would not send it
    producer.produce(
        stream.events,
        partition=1,
        on_delivery=lambda _, record: placed.append(
            f"{record.topic()}/{record.partition()}/{record.offset()}"
        ),
    )
    assert producer.flush(30) == 0
    assert dead_letter(stream, placed[0]).headers["headwater-detail"] == b"the record has no value"
