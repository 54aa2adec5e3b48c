"""The limit that the service is held against: aiokafka, orjson and nothing between them.

Consumes, decodes, produces one for one and commits what was acknowledged, with the client
settings of the service. Its answer has the size and the fields of a recommendation.
"""

import asyncio
import signal
import sys

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from service.settings import KafkaSettings
from service.stream.connection import client_arguments

_ITEMS = [{"item_id": f"item-{place}", "score": 0.123456} for place in range(10)]


async def run(bootstrap: str, events: str, output: str) -> None:
    """Until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    arguments = client_arguments(KafkaSettings(bootstrap_servers=bootstrap))
    consumer = AIOKafkaConsumer(
        events,
        **arguments,
        group_id="bare",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        session_timeout_ms=30_000,
        fetch_max_wait_ms=100,
    )
    producer = AIOKafkaProducer(**arguments, acks="all", enable_idempotence=True, linger_ms=2)
    await consumer.start()
    await producer.start()
    print("ready", flush=True)
    try:
        while not stop.is_set():
            fetched = await consumer.getmany(timeout_ms=100, max_records=5000)
            pending = [
                await producer.send(output, _answer(record.value), key=record.key)
                for records in fetched.values()
                for record in records
            ]
            if pending:
                await asyncio.gather(*pending)
                await consumer.commit()
    finally:
        await producer.stop()
        await consumer.stop()


def _answer(value: bytes) -> bytes:
    event = orjson.loads(value)
    return orjson.dumps(
        {
            "rec_id": event["event_id"],
            "user_id": event["user_id"],
            "items": _ITEMS,
            "model_version": 1,
            "trained_through": {"0": 0, "1": 0, "2": 0, "3": 0},
            "event": event,
            "generated_at": event["timestamp"],
        }
    )


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
