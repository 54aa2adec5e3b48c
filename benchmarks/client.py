"""The client's side of a measurement: events out at a given pace, recommendations back."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks.programs import Program, frozen
from benchmarks.shoppers import Shoppers
from service.settings import KafkaSettings
from service.stream.client import EventProducer
from service.stream.connection import client_arguments, isolation_level

_TICK_S = 0.001
_DRAIN_WITHIN_S = 180.0
_ANSWER_WITHIN_S = 30.0


@dataclass(slots=True)
class Answers:
    """When events were sent and their recommendations read, by event id."""

    sent_s: dict[str, float] = field(default_factory=dict)
    read_s: dict[str, float] = field(default_factory=dict)

    def latencies_ms(self) -> list[float]:
        return [
            (self.read_s[event_id] - sent_s) * 1000
            for event_id, sent_s in self.sent_s.items()
            if event_id in self.read_s
        ]


async def drain(kafka: KafkaSettings, program: Program, shoppers: Shoppers, events: int) -> float:
    """Events a second from the moment that a program wakes up to a backlog."""
    async with _consumer(kafka, program.output) as consumer:
        before = await _end(consumer)
        await _pile_up(kafka, program, shoppers, events)
        started_s = time.monotonic()
        while await _end(consumer) - before < events:
            if time.monotonic() - started_s > _DRAIN_WITHIN_S:
                raise TimeoutError(f"{program.output}: the backlog was not answered in time")
            await asyncio.sleep(0.01)
        return events / (time.monotonic() - started_s)


async def drain_reading(
    kafka: KafkaSettings, program: Program, shoppers: Shoppers, events: int
) -> float:
    """As `drain`, by reading the answers: in a topic of transactions offsets are also of their
    ends."""
    async with _consumer(kafka, program.output) as consumer:
        await _pile_up(kafka, program, shoppers, events)
        started_s = time.monotonic()
        left = events
        while left > 0:
            if time.monotonic() - started_s > _DRAIN_WITHIN_S:
                raise TimeoutError(f"{program.output}: the backlog was not answered in time")
            left -= sum(map(len, (await consumer.getmany(timeout_ms=50)).values()))
        return events / (time.monotonic() - started_s)


async def _pile_up(kafka: KafkaSettings, program: Program, shoppers: Shoppers, events: int) -> None:
    """A backlog, while the program sleeps."""
    with frozen(program):
        async with EventProducer(kafka, program.events) as producer:
            pending = [
                await producer.send(key, value) for _, key, value in shoppers.records(events)
            ]
            await asyncio.gather(*pending)


async def send_at(
    producer: EventProducer,
    shoppers: Shoppers,
    rate: int,
    answers: Answers,
    finished: Callable[[float], bool],
) -> None:
    """Send `rate` events a second, answered or not, until `finished(seconds so far)`."""
    started_s = time.monotonic()
    sent = 0
    pending = []
    while not finished(time.monotonic() - started_s):
        due = int((time.monotonic() - started_s) * rate) - sent
        for event_id, key, value in shoppers.records(due):
            answers.sent_s[event_id] = time.monotonic()
            pending.append(await producer.send(key, value))
        sent += due
        await asyncio.sleep(_TICK_S)
    await asyncio.gather(*pending)


async def latency(
    kafka: KafkaSettings, program: Program, shoppers: Shoppers, rate: int, seconds: float
) -> Answers:
    """From the client's send to its reading of the answer, for `seconds` of events."""
    answers = Answers()
    async with (
        _consumer(kafka, program.output) as consumer,
        EventProducer(kafka, program.events) as producer,
    ):
        sending = asyncio.create_task(
            send_at(producer, shoppers, rate, answers, lambda passed_s: passed_s > seconds)
        )
        end_s = time.monotonic() + seconds + _ANSWER_WITHIN_S
        while time.monotonic() < end_s:
            for message, read_s in await _read(consumer):
                answers.read_s[message["event"]["event_id"]] = read_s
            if sending.done() and answers.sent_s.keys() <= answers.read_s.keys():
                break
        await sending
    return answers


@dataclass(frozen=True, slots=True)
class Coverage:
    """How long events took to be in the weights that serve."""

    seconds: list[float]
    uncovered: int  # of those watched, at the end of the time given
    versions: int


async def weights(
    kafka: KafkaSettings,
    program: Program,
    shoppers: Shoppers,
    rate: int,
    seconds: float,
    within_s: float,
) -> Coverage:
    """From the client's send to the first recommendation by a version that learned the event.

    Watches the events of the first `seconds`; load goes on until all are covered.
    """
    answers = Answers()
    waiting: dict[str, list[tuple[int, float]]] = {}  # offset and send time by partition
    found: list[float] = []
    versions: set[int] = set()
    async with (
        _consumer(kafka, program.output) as consumer,
        EventProducer(kafka, program.events) as producer,
    ):
        started_s = time.monotonic()
        last_s = started_s + seconds

        def open_events() -> int:
            return sum(map(len, waiting.values()))

        def finished(passed_s: float) -> bool:
            done = passed_s > seconds + 1.0 and not open_events()
            return done or passed_s > seconds + within_s

        sending = asyncio.create_task(send_at(producer, shoppers, rate, answers, finished))
        while not sending.done():
            for message, read_s in await _read(consumer):
                versions.add(message["model_version"])
                sent_s = answers.sent_s.get(message["event"]["event_id"], last_s)
                _, partition, offset = message["rec_id"].rsplit("/", 2)
                if sent_s < last_s:
                    waiting.setdefault(partition, []).append((int(offset), sent_s))
                _cover(waiting, message["trained_through"], read_s, found)
        await sending
    return Coverage(found, open_events(), len(versions))


def _cover(
    waiting: dict[str, list[tuple[int, float]]],
    through: dict[str, int],
    read_s: float,
    found: list[float],
) -> None:
    """Move what these offsets cover from `waiting`, in offset order, to `found`."""
    for partition, events in waiting.items():
        covered = 0
        while covered < len(events) and events[covered][0] < through.get(partition, 0):
            found.append(read_s - events[covered][1])
            covered += 1
        del events[:covered]


@asynccontextmanager
async def _consumer(kafka: KafkaSettings, topic: str) -> AsyncIterator[AIOKafkaConsumer]:
    """Reads what is appended from now on, all partitions, in no group."""
    consumer = AIOKafkaConsumer(
        topic,
        **client_arguments(kafka),
        group_id=None,
        isolation_level=isolation_level(kafka),
        enable_auto_commit=False,
        auto_offset_reset="latest",
    )
    await consumer.start()
    try:
        await consumer.seek_to_end()
        for partition in consumer.assignment():
            await consumer.position(partition)  # "end" is where it is now, not at the first read
        yield consumer
    finally:
        await consumer.stop()


async def _read(consumer: AIOKafkaConsumer) -> list[tuple[dict[str, Any], float]]:
    fetched = await consumer.getmany(timeout_ms=50)
    read_s = time.monotonic()
    return [
        (orjson.loads(record.value), read_s) for records in fetched.values() for record in records
    ]


async def _end(consumer: AIOKafkaConsumer) -> int:
    partitions: set[TopicPartition] = consumer.assignment()
    return sum((await consumer.end_offsets(partitions)).values())
