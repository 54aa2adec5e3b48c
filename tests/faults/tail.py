"""The recommendations topic as a subscriber sees it while faults strike, and topics read whole."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self, TypeVar

import orjson
from confluent_kafka import Consumer, Message, TopicPartition

from tests.faults.numbered import Place, client_settings

_AT_ONCE = 500
_POLL_S = 0.05
_QUERY_S = 30.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """One record of the recommendations topic."""

    rec_id: str
    of: Place  # the event's, from the rec_id
    event_id: str | None  # of the event that it says it answers
    user_id: str
    partition: int
    offset: int
    received_s: float  # by us, monotonic


def answer_of(value: bytes, partition: int, offset: int, received_s: float) -> Answer:
    read = orjson.loads(value)
    _, its_partition, its_offset = read["rec_id"].rsplit("/", 2)
    return Answer(
        rec_id=read["rec_id"],
        of=(int(its_partition), int(its_offset)),
        event_id=read["event"].get("event_id"),
        user_id=read["user_id"],
        partition=partition,
        offset=offset,
        received_s=received_s,
    )


class Tail:
    """Reads the topic from its start in a thread of its own."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._consumer = _consumer(bootstrap)
        self._topic = topic
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tail", daemon=True)
        self.answers: list[Answer] = []  # as they came; only ever grows
        self.first: dict[Place, float] = {}  # when an event's first answer came

    def __enter__(self) -> Self:
        partitions = _partitions(self._consumer, self._topic)
        self._consumer.assign([TopicPartition(self._topic, one, 0) for one in partitions])
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._enough.set()
        self._thread.join()
        self._consumer.close()

    def _run(self) -> None:
        while not self._enough.is_set():
            for message in self._consumer.consume(_AT_ONCE, _POLL_S):
                if message.error() is None:
                    self._keep(message)

    def _keep(self, message: Message) -> None:
        answer = answer_of(
            message.value() or b"",
            message.partition() or 0,
            message.offset() or 0,
            time.monotonic(),
        )
        self.answers.append(answer)
        self.first.setdefault(answer.of, answer.received_s)


def read_whole(
    bootstrap: str, topic: str, within_s: float, read: Callable[[Message], T]
) -> list[T]:
    """All that a topic holds now, in the order of each partition."""
    return list(_records(bootstrap, topic, within_s, read))


def _records(
    bootstrap: str, topic: str, within_s: float, read: Callable[[Message], T]
) -> Iterator[T]:
    consumer = _consumer(bootstrap)
    try:
        ends = {}
        for partition in _partitions(consumer, topic):
            place = TopicPartition(topic, partition)
            low, high = consumer.get_watermark_offsets(place, _QUERY_S)
            if high > low:
                ends[partition] = high
        consumer.assign([TopicPartition(topic, one, 0) for one in ends])
        deadline_s = time.monotonic() + within_s
        while ends:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{topic} was not read to its end within {within_s:.0f} s")
            for message in consumer.consume(_AT_ONCE, _POLL_S):
                if message.error() is None:
                    yield read(message)
            done = consumer.position([TopicPartition(topic, one) for one in ends])
            ends = {
                at.partition: ends[at.partition] for at in done if at.offset < ends[at.partition]
            }
    finally:
        consumer.close()


def _consumer(bootstrap: str) -> Consumer:
    return Consumer(
        client_settings(bootstrap)
        | {
            "group.id": f"faults-{uuid.uuid4().hex}",
            "enable.auto.commit": 0,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 50,
        }
    )


def _partitions(consumer: Consumer, topic: str) -> list[int]:
    return sorted(consumer.list_topics(topic, _QUERY_S).topics[topic].partitions)
