"""Numbered events in, recommendations out, with clients that are not the service's own."""

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from service.domain import Recommendation
from service.settings import KafkaSettings, TopicsSettings
from service.stream.topics import create_topics

USERS = 211
_ITEMS = 97
_PACE = 50  # events between two looks at the clock
_MAX_REQUEST_BYTES = 64 * 1024 * 1024  # our own limit; Kafka's hold for what is compressed

# What a reader of Kafka's is given: all there is, or what was committed.
UNCOMMITTED, COMMITTED = "read_uncommitted", "read_committed"

Headers = list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Stream:
    """Topics and a consumer group that one test has to itself."""

    bootstrap: str
    name: str

    @property
    def events(self) -> str:
        return f"{self.name}.events"

    @property
    def recommendations(self) -> str:
        return f"{self.name}.recommendations"

    @property
    def dead_letter(self) -> str:
        return f"{self.name}.dead-letter"


@dataclass(frozen=True, slots=True)
class Message:
    """A record as a reader of an output topic gets it."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]

    @property
    def rec_id(self) -> str:
        return str(orjson.loads(self.value or b"{}")["rec_id"])

    def recommendation(self) -> Recommendation:
        return Recommendation.model_validate_json(self.value or b"")

    @property
    def origin(self) -> str:
        """Of a dead letter: the `TOPIC/PARTITION/OFFSET` of its record."""
        parts = [self.headers[f"headwater-{part}"] for part in ("topic", "partition", "offset")]
        return b"/".join(parts).decode()


@dataclass(frozen=True, slots=True)
class Tally:
    """What came out, held against what should have."""

    expected: int
    distinct: int
    missing: int
    unexpected: int  # rec_ids that answer no event
    duplicates: int  # records beyond the first with a rec_id
    longest_gap_s: float  # between two records in a row, of all partitions together


def make_stream(bootstrap: str, partitions: int = 4, replicas: int = 1) -> Stream:
    """With topics as `headwater doctor --create` makes them."""
    stream = Stream(bootstrap, f"hw-{uuid.uuid4().hex[:12]}")
    topics = TopicsSettings(
        events=stream.events,
        recommendations=stream.recommendations,
        dead_letter=stream.dead_letter,
        partitions=partitions,
        replication_factor=replicas,
    )
    asyncio.run(create_topics(KafkaSettings(bootstrap_servers=bootstrap), topics))
    return stream


def event(number: int) -> dict[str, str | int]:
    """Users walk along the items one by one, which is easy to learn."""
    user = number % USERS
    return {
        "user_id": f"user-{user}",
        "item_id": f"item-{(user * 7 + number // USERS) % _ITEMS}",
        "event": "view",
        "timestamp": time.time_ns() // 1_000_000,
        "event_id": f"event-{number}",
    }


def produce(stream: Stream, numbers: Iterable[int], per_s: float | None = None) -> list[str]:
    """Append events, at a steady rate if given; the rec_ids that must answer them, in order."""
    return asyncio.run(_produce(stream, numbers, per_s))


async def _produce(stream: Stream, numbers: Iterable[int], per_s: float | None) -> list[str]:
    pending = []
    started_s = time.monotonic()
    async with AIOKafkaProducer(
        bootstrap_servers=stream.bootstrap, acks="all", enable_idempotence=True, linger_ms=2
    ) as producer:
        for sent, number in enumerate(numbers):
            one = event(number)
            pending.append(
                await producer.send(
                    stream.events, json.dumps(one).encode(), key=str(one["user_id"]).encode()
                )
            )
            if per_s and sent % _PACE == _PACE - 1:
                await asyncio.sleep(max(started_s + sent / per_s - time.monotonic(), 0))
        placed = await asyncio.gather(*pending)
    return [f"{stream.events}/{one.partition}/{one.offset}" for one in placed]


def send(
    stream: Stream,
    key: bytes | None,
    value: bytes | None,
    headers: Headers | None = None,
    compression: str | None = None,
) -> str:
    """Append one record as it is; its `TOPIC/PARTITION/OFFSET`."""

    async def append() -> str:
        async with AIOKafkaProducer(
            bootstrap_servers=stream.bootstrap,
            acks="all",
            compression_type=compression,
            max_request_size=_MAX_REQUEST_BYTES,
        ) as producer:
            placed = await producer.send_and_wait(stream.events, value, key=key, headers=headers)
        return f"{stream.events}/{placed.partition}/{placed.offset}"

    return asyncio.run(append())


def recommendations(
    stream: Stream, distinct: int, within_s: float, isolation: str = UNCOMMITTED
) -> list[Message]:
    """The output topic from its start, once it holds so many rec_ids, or what there is in time."""
    topic = stream.recommendations
    return asyncio.run(_read(stream.bootstrap, topic, distinct, within_s, True, isolation))


def answers(
    stream: Stream, count: int, within_s: float, isolation: str = UNCOMMITTED
) -> list[Message]:
    """The output topic from its start, tombstones too, once it holds so many records."""
    topic = stream.recommendations
    return asyncio.run(_read(stream.bootstrap, topic, count, within_s, False, isolation))


def dead_letters(
    stream: Stream, count: int, within_s: float, isolation: str = UNCOMMITTED
) -> list[Message]:
    topic = stream.dead_letter
    return asyncio.run(_read(stream.bootstrap, topic, count, within_s, False, isolation))


def answer(stream: Stream, rec_id: str, within_s: float = 90.0) -> Message:
    """Wait for the recommendation with this id."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        for message in recommendations(stream, 1, 20):
            if message.rec_id == rec_id:
                return message
    raise AssertionError(f"no recommendation {rec_id}")


def dead_letter(stream: Stream, origin: str, within_s: float = 90.0) -> Message:
    """Wait for the dead letter of the record that stands there."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        for letter in dead_letters(stream, 1, 20):
            if letter.origin == origin:
                return letter
    raise AssertionError(f"no dead letter of {origin}")


def is_transaction_held_open(stream: Stream) -> bool:
    """Whether one on the output topic stays open for a while."""
    ends = [asyncio.run(_ends(stream, isolation)) for isolation in (COMMITTED, UNCOMMITTED)]
    open_before = {partition for partition, end in ends[0].items() if end < ends[1][partition]}
    time.sleep(0.3)
    later = asyncio.run(_ends(stream, COMMITTED))
    return any(later[partition] == ends[0][partition] for partition in open_before)


async def _ends(stream: Stream, isolation: str) -> dict[TopicPartition, int]:
    """Of the output topic; for a reader of what was committed where the first open one begins."""
    async with AIOKafkaConsumer(
        stream.recommendations,
        bootstrap_servers=stream.bootstrap,
        group_id=None,
        isolation_level=isolation,
    ) as consumer:
        ends: dict[TopicPartition, int] = await consumer.end_offsets(consumer.assignment())
        return ends


async def _read(
    bootstrap: str, topic: str, count: int, within_s: float, by_rec_id: bool, isolation: str
) -> list[Message]:
    """Until `count` are there and nothing more arrives for a while."""
    messages: list[Message] = []
    seen: set[str] = set()
    deadline_s = time.monotonic() + within_s
    async with AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        group_id=None,
        auto_offset_reset="earliest",
        isolation_level=isolation,
    ) as consumer:
        while time.monotonic() < deadline_s:
            found = await consumer.getmany(timeout_ms=700)
            fresh = [
                Message(m.partition, m.offset, m.timestamp, m.key, m.value, dict(m.headers))
                for records in found.values()
                for m in records
            ]
            messages += fresh
            seen |= {one.rec_id for one in fresh} if by_rec_id else set()
            if not fresh and (len(seen) if by_rec_id else len(messages)) >= count:
                break
    return messages


def tally(messages: list[Message], expected: Iterable[str]) -> Tally:
    wanted = set(expected)
    came = [one.rec_id for one in messages]
    times = sorted(one.timestamp_ms for one in messages)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return Tally(
        expected=len(wanted),
        distinct=len(set(came)),
        missing=len(wanted - set(came)),
        unexpected=len(set(came) - wanted),
        duplicates=len(came) - len(set(came)),
        longest_gap_s=max(gaps, default=0) / 1000,
    )
