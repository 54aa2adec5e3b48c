"""Numbered events at a known rate, for as long as it takes, by a client that is not aiokafka.

Among them, as in any stream, are records that are no events and events that come again.
"""

import json
import threading
import time
from dataclasses import dataclass
from typing import Self

from confluent_kafka import KafkaError, Message, Producer

from tests.integration.traffic import USERS, event

_BEHIND_S = 1.0  # a rate that was missed for longer is not made up for
_FLUSH_WITHIN_S = 120.0
_POLL_S = 0.005
# So often, in numbers, a record is broken off, and an event is one that was sent before.
_BROKEN_EVERY = 29
_AGAIN_EVERY = 31

Place = tuple[int, int]  # partition and offset


@dataclass(frozen=True, slots=True)
class Sent:
    """An event, sent for the first time, that Kafka has acknowledged; times of the monotonic
    clock."""

    number: int
    place: Place
    produced_s: float
    acknowledged_s: float


def client_settings(bootstrap: str) -> dict[str, str | int | float | bool]:
    """Of every client of ours: soon back after a broker was away, and quiet about it."""
    return {
        "bootstrap.servers": bootstrap,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 500,
        "socket.keepalive.enable": 1,
        "log_level": 0,
    }


class Producing:
    """Produces from the moment of its start to that of `finish`."""

    def __init__(self, bootstrap: str, topic: str, per_s: float, *, again: bool = True) -> None:
        """With `again`, some events come again."""
        self._topic = topic
        self._per_s = per_s
        self._again = again
        self._producer = Producer(
            client_settings(bootstrap)
            | {
                "acks": "all",
                "enable.idempotence": 1,
                "linger.ms": 2,
                # No event is given up while a fault lasts.
                "message.timeout.ms": 600_000,
                "topic.metadata.refresh.interval.ms": 1_000,
            }
        )
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run, name="producing", daemon=True)
        self._produced = 0
        self._failed: KafkaError | None = None
        self.sent: list[Sent] = []  # in the order of acknowledgement; only ever grows

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._enough.set()
        self._thread.join()

    @property
    def produced(self) -> int:
        return self._produced

    def finish(self) -> list[Sent]:
        """Stop, wait for every acknowledgement, give all that was acknowledged."""
        self._enough.set()
        self._thread.join()
        left = self._producer.flush(_FLUSH_WITHIN_S)
        if left or self._failed is not None:
            raise RuntimeError(f"{left} events were not acknowledged: {self._failed}")
        return self.sent

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._enough.is_set():
            now_s = time.monotonic()
            if now_s < due_s:
                self._producer.poll(min(due_s - now_s, _POLL_S))
                continue
            due_s = max(due_s + 1 / self._per_s, now_s - _BEHIND_S)
            try:
                self._send(self._produced)
            except BufferError:  # Kafka is away for long
                self._producer.poll(0.1)
                continue
            self._produced += 1
            self._producer.poll(0)

    def _send(self, number: int) -> None:
        broken, again = _is_broken(number), self._again and _comes_again(number)
        one = event(number - USERS if again else number)  # of the same user
        value = json.dumps(one).encode()
        produced_s = time.monotonic()

        def acknowledged(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._failed = error
                return
            place = (message.partition() or 0, message.offset() or 0)
            if not broken and not again:
                self.sent.append(Sent(number, place, produced_s, time.monotonic()))

        self._producer.produce(
            self._topic,
            value[: len(value) // 2] if broken else value,
            key=str(one["user_id"]).encode(),
            on_delivery=acknowledged,
        )


def _is_broken(number: int) -> bool:
    return number % _BROKEN_EVERY == _BROKEN_EVERY - 1


def _comes_again(number: int) -> bool:
    """Whether an event of the same user comes again in its place: one that was sent whole."""
    return (
        number % _AGAIN_EVERY == _AGAIN_EVERY - 1
        and number >= USERS
        and not _is_broken(number)
        and not _is_broken(number - USERS)
        and not _comes_again(number - USERS)
    )
