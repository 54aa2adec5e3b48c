"""A day of events in one run: the memory of the service after a tenth, half, and all of them.

A million users and a million items come and go, and one user has a hundredth of all events.
Bounds are set so low that each is reached within the first tenth: what grows after it has none.
"""

import asyncio
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson

from benchmarks.programs import Serve
from benchmarks.rows import LIMIT, REPORT, Row, make_row
from benchmarks.scale import Scale
from service.sandbox.kafka import LocalKafka
from service.settings import KafkaSettings, TopicsSettings
from service.stream.client import EventProducer
from service.stream.topics import create_topics
from tests.faults.cluster import ProxiedKafka
from tests.faults.proxy import Network

_DAY_MS = 86_400_000
_AHEAD = 100_000  # events that wait in the topic at most
_AT_ONCE = 2_000
_SAMPLE_S = 1.0
_MARKS = (0.1, 0.5, 1.0)
_STANDSTILL_S = 300.0
_HOT_SHARE = 0.01
_FAR_S = 0.1  # each way
_STALLED_S = 1.0  # of the event loop
_NEW_ITEM_SHARE = 0.2
# A shop answers what leads somewhere; the rest only teaches.
_KINDS = ("view", "click", "buy")
_KIND_SHARES = (0.7, 0.2, 0.1)


def _environment(events: int) -> dict[str, str]:
    """Each bound is some hundredths of the run."""
    bound = max(events // 100, 10_000)
    return {
        "HEADWATER_EVENTS__RECOMMEND_ON": '["buy"]',
        "HEADWATER_HISTORY__USERS": str(bound // 4),
        "HEADWATER_ITEMS__MAX_ROWS": str(bound // 4),
        "HEADWATER_MEMORY__ITEMS": str(bound // 4),
        "HEADWATER_BATCH__MAX_UNTRAINED_EVENTS": str(bound),
        "HEADWATER_SCORER__POPULARITY_HALF_LIFE_EVENTS": str(max(bound // 20, 100)),
        "HEADWATER_STORAGE__SNAPSHOT_EVERY_S": "20",
    }


@dataclass(slots=True)
class Passed:
    """Peaks so far, and as they were at each mark."""

    peak_mb: dict[str, float] = field(default_factory=dict)
    at_marks: list[dict[str, float]] = field(default_factory=list)


class _Day:
    """Events of a day, the same for the same seed."""

    def __init__(self, events: int) -> None:
        self._random = np.random.default_rng(0)
        self._users = max(events // 5, 1)
        self._step_ms = _DAY_MS / events
        self._start_ms = time.time_ns() // 1_000_000 - _DAY_MS
        self._items = 1_000
        self._made = 0

    def records(self, count: int) -> list[tuple[bytes, bytes]]:
        random = self._random
        users = random.integers(1, self._users, size=count)
        users[random.random(count) < _HOT_SHARE] = 0
        new = random.random(count) < _NEW_ITEM_SHARE
        kinds = random.choice(len(_KINDS), size=count, p=_KIND_SHARES).tolist()
        places = random.random(count) ** 3
        made = []
        for user, is_new, kind, place in zip(
            users.tolist(), new.tolist(), kinds, places.tolist(), strict=True
        ):
            self._items += is_new
            # Recent items are met most.
            item = self._items - 1 - int(place * self._items)
            user_id = f"user-{user}"
            event = {
                "user_id": user_id,
                "item_id": f"item-{item}",
                "event": _KINDS[kind],
                "timestamp": int(self._start_ms + self._made * self._step_ms),
                "event_id": f"e{self._made}",
            }
            self._made += 1
            made.append((user_id.encode(), orjson.dumps(event)))
        return made


def soak_rows(scale: Scale) -> list[Row]:
    with LocalKafka(benchmark=True) as broker:
        return _rows("soak", scale.soak_events, broker.bootstrap, broker.bootstrap)


def slow_worker_rows(scale: Scale) -> list[Row]:
    """The same while the worker gets a fifth of its time."""
    with LocalKafka(benchmark=True) as broker:
        served = broker.bootstrap
        return _rows("slow_worker", scale.slow_events, served, served, slow_worker=True)


def slow_output_rows(scale: Scale) -> list[Row]:
    """The same while Kafka is far away: what is read comes in by the megabyte, what is answered
    waits for its acknowledgement."""
    with ProxiedKafka() as far:
        far.proxy.set(Network.SLOW, _FAR_S)
        return _rows("slow_output", scale.slow_events, far.bootstrap, far.proxied)


def _rows(
    name: str, events: int, bootstrap: str, served: str, *, slow_worker: bool = False
) -> list[Row]:
    """Of one run. Events are sent by `bootstrap`; the service reads and answers by `served`."""
    REPORT.parent.mkdir(exist_ok=True)
    kafka = KafkaSettings(bootstrap_servers=bootstrap)
    asyncio.run(create_topics(kafka, TopicsSettings()))
    log = REPORT.parent / f"{name}-serve.log"
    with tempfile.TemporaryDirectory() as folder:
        serve = Serve(served, Path(folder), log, more=_environment(events))
        with serve.running(), serve.worker_slowed() if slow_worker else nullcontext():
            started_s = time.monotonic()
            passed = asyncio.run(_pass(serve, kafka, events))
            seconds = time.monotonic() - started_s
            late = _worst_delay_s(serve)
            trained = serve.metric("headwater_trained_events_total")
            versions = serve.metric("headwater_model_version")
    rows = [
        make_row(f"{name}/events", [events], "events"),
        make_row(f"{name}/rate", [events / seconds], "events/s"),
        make_row(f"{name}/trained", [trained], "events", "read", [events]),
        make_row(f"{name}/version", [versions], "versions"),
        make_row(f"{name}/event_loop_delay_below", [late], "s", LIMIT, [_STALLED_S]),
    ]
    for share, peaks in zip(_MARKS, passed.at_marks, strict=True):
        for process, peak_mb in peaks.items():
            rows.append(
                make_row(
                    f"{name}/{process}_peak_at_{share:.0%}",
                    [peak_mb],
                    "MB",
                    "at 10%",
                    [passed.at_marks[0][process]],
                )
            )
    return rows


async def _pass(serve: Serve, kafka: KafkaSettings, events: int) -> Passed:
    """Send all events, never far ahead of the service, until it has read them all."""
    passed, day = Passed(), _Day(events)
    sent = 0.0
    read, moved_s = 0.0, time.monotonic()
    async with EventProducer(kafka, TopicsSettings().events) as producer:
        while read < events:
            while sent < events and sent - read < _AHEAD:
                records = day.records(min(_AT_ONCE, events - int(sent)))
                await asyncio.gather(*[await producer.send(*one) for one in records])
                sent += len(records)
            await asyncio.sleep(_SAMPLE_S)
            before, read = read, await asyncio.to_thread(_read_so_far, serve)
            moved_s = time.monotonic() if read > before else moved_s
            if time.monotonic() - moved_s > _STANDSTILL_S:
                raise TimeoutError(f"nothing was read since {read:.0f} events")
            for process, megabytes in (await asyncio.to_thread(serve.memory_mb)).items():
                passed.peak_mb[process] = max(passed.peak_mb.get(process, 0.0), megabytes)
            while len(passed.at_marks) < len(_MARKS) and read >= (
                _MARKS[len(passed.at_marks)] * events
            ):
                passed.at_marks.append(dict(passed.peak_mb))
    return passed


def _read_so_far(serve: Serve) -> float:
    return serve.metric("headwater_events_total")


def _worst_delay_s(serve: Serve) -> float:
    """The smallest bucket that holds every delay of the event loop."""
    name = "headwater_event_loop_delay_seconds"
    asked = serve.metric(f"{name}_count")
    for bucket in ("0.1", "0.2", "0.5", "1.0", "2.0", "5.0", "10.0"):
        # Asked later, it may hold more.
        if serve.metric(f"{name}_bucket", le=bucket) >= asked:
            return float(bucket)
    return float("inf")
