"""Real ratings on their way through the topics: what is sent, how fast, and what comes back.

The replay sends events in time order, keyed by user, and holds back while too many are
unanswered. It keeps where and when each was sent, by which it can be told later how long it
took until a version that had learned an event was answering.
"""

import asyncio
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import orjson

from service.domain import (
    Events,
    Float32s,
    Int32s,
    Int64s,
    ItemId,
    Offset,
    Partition,
    UserId,
    Version,
    stable_key,
)
from service.sandbox.movielens import MovieLens
from service.state.features import Features
from service.stream.client import Appended, EventProducer

KIND = "rating"
_TURN_S = 0.01  # sent in small groups at this interval, like traffic, not one burst a second


class Ratings:
    """MovieLens as a stream: columns in time order, with small integers beside the ids."""

    def __init__(self, data: MovieLens, events: int) -> None:
        """The first `events` ratings."""
        users, user = np.unique(data.user_ids[:events], return_inverse=True)
        items, item = np.unique(data.item_ids[:events], return_inverse=True)
        self.user: Int64s = user.astype(np.int64)
        self.item: Int64s = item.astype(np.int64)
        self.user_ids = [UserId(str(name)) for name in users]
        self.item_ids = [ItemId(str(name)) for name in items]
        self.number = {name: number for number, name in enumerate(self.item_ids)}
        self.titles = data.titles
        self._timestamp: Int64s = data.timestamps[:events] * 1000
        self._value: Float32s = data.ratings[:events]
        self._user_keys = np.array([stable_key(name) for name in self.user_ids], np.int64)
        self._item_keys = np.array([stable_key(name) for name in self.item_ids], np.int64)

    def __len__(self) -> int:
        return len(self.user)

    def record(self, event: int) -> tuple[bytes, bytes]:
        """Key and value as they are produced. The event id is its place in the stream."""
        user = self.user_ids[self.user[event]]
        plain = {
            "user_id": user,
            "item_id": self.item_ids[self.item[event]],
            "event": KIND,
            "timestamp": int(self._timestamp[event]),
            "value": float(self._value[event]),
            "event_id": str(event),
        }
        return user.encode(), orjson.dumps(plain)

    def columns(
        self, chosen: Int64s, partition: Int32s, offset: Int64s, features: Features
    ) -> Events:
        """Events as the service decodes them, placed as Kafka has placed them."""
        kind, timestamp = np.zeros(len(chosen), np.uint8), self._timestamp[chosen]
        user, item = self.user[chosen], self.item[chosen]
        nothing = [None] * len(chosen)
        return Events(
            partition=partition,
            offset=offset,
            user=self._user_keys[user],
            item=self._item_keys[item],
            kind=kind,
            timestamp=timestamp,
            appended=timestamp,
            value=self._value[chosen],
            codes=features.codes(nothing, kind, timestamp),
            user_ids=[self.user_ids[number] for number in user.tolist()],
            item_ids=[self.item_ids[number] for number in item.tolist()],
            event_ids=list(nothing),
            traces=list(nothing),
        )


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a replay may go."""

    events_per_s: float
    max_in_flight: int  # sent and not yet answered


def room(pace: Pace, sent: int, answered: int, elapsed_s: float) -> int:
    """How many more events may be sent now, `sent` of them having gone in `elapsed_s`."""
    due = math.floor(pace.events_per_s * elapsed_s) - sent
    return max(min(due, answered + pace.max_in_flight - sent), 0)


class Replay:
    """The sending side; what it notes of every event is read by others in the same loop."""

    def __init__(self, ratings: Ratings, producer: EventProducer) -> None:
        self._ratings = ratings
        self._producer = producer
        self.sent = 0
        self.answered = 0  # events; kept by whoever reads the answers
        self.sent_ms: Int64s = np.zeros(len(ratings), np.int64)
        self.partition: Int32s = np.zeros(len(ratings), np.int32)
        self.offset: Int64s = np.zeros(len(ratings), np.int64)

    async def send_all(self, end: int) -> None:
        """Everything before event `end`, at once; returns when Kafka has it."""
        await asyncio.gather(*[await self._send(event) for event in range(self.sent, end)])

    async def send_at(self, pace: Pace) -> None:
        """The rest, paced; returns when Kafka has it."""
        start, start_s = self.sent, time.monotonic()
        pending: list[asyncio.Future[Appended]] = []
        while self.sent < len(self._ratings):
            await asyncio.sleep(_TURN_S)
            elapsed_s = time.monotonic() - start_s
            free = room(pace, self.sent - start, self.answered - start, elapsed_s)
            for event in range(self.sent, min(self.sent + free, len(self._ratings))):
                pending.append(await self._send(event))
            while pending and pending[0].done():
                pending.pop(0).result()  # raises what Kafka refused
        await asyncio.gather(*pending)

    async def _send(self, event: int) -> "asyncio.Future[Appended]":
        self.sent_ms[event] = time.time_ns() // 1_000_000
        future = await self._producer.send(*self._ratings.record(event))
        future.add_done_callback(lambda done: self._note(event, done))
        self.sent = event + 1
        return future

    def _note(self, event: int, done: "asyncio.Future[Appended]") -> None:
        if not done.cancelled() and done.exception() is None:
            self.partition[event] = done.result().partition
            self.offset[event] = done.result().offset


@dataclass(frozen=True, slots=True)
class Answer:
    """What the demo looks at in a recommendation."""

    event: int  # the place in the stream of the event that caused it
    items: list[ItemId]
    version: Version
    trained_through: Mapping[Partition, Offset]
    generated_ms: int


def read_answer(value: bytes) -> Answer:
    plain = orjson.loads(value)
    return Answer(
        event=int(plain["event"]["event_id"]),
        items=[ItemId(item["item_id"]) for item in plain["items"]],
        version=Version(plain["model_version"]),
        trained_through={
            Partition(int(name)): Offset(offset)
            for name, offset in plain["trained_through"].items()
        },
        generated_ms=plain["generated_at"],
    )


@dataclass(frozen=True, slots=True)
class Served:
    """A version as it was first seen answering."""

    event: int
    generated_ms: int
    trained_through: Mapping[Partition, Offset]


def event_to_weights_s(
    sent_ms: Int64s, partition: Int32s, offset: Int64s, served: Iterable[Served]
) -> npt.NDArray[np.float64]:
    """Seconds from sending each event to the first answer by a version that has learned it.

    NaN while there is none. Learned means that the version's trained-through offset is past the
    event. About 5 % of events are members of the rolling holdout and are released to training
    only when newer ones push them out: for these the figure says when they were admitted.
    """
    learned_ms = np.zeros(len(sent_ms), np.int64)
    for version in sorted(served, key=lambda one: one.generated_ms):
        for where, through in version.trained_through.items():
            now = (learned_ms == 0) & (partition == where) & (offset < through)
            learned_ms[now] = version.generated_ms
    return np.where(learned_ms > 0, (learned_ms - sent_ms) / 1000, np.nan)
