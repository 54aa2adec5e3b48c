"""What exactly-once output costs: two `headwater serve`, one with each `kafka.delivery`.

Both on one broker, with topics and storage of their own, measured in turns while the other has
nothing to do. Training is off, as in the rows of throughput and latency. Answers count when a
reader of what is committed has them.
"""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import Answers, drain_reading, latency
from benchmarks.programs import Serve
from benchmarks.rows import REPORT, Row, make_row, percentile
from benchmarks.scale import Scale
from benchmarks.shoppers import ITEMS, Shoppers, item_name
from benchmarks.versions import publish_random
from service.domain import ItemId
from service.settings import Delivery, KafkaSettings, TopicsSettings
from service.stream.topics import create_topics

_RATES = (200, 500)
_PERCENTILES = (50, 95, 99)
_WARM_UP_EVENTS = 2_000
_REFERENCE = "at least once"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A service, and how its clients talk to Kafka."""

    serve: Serve
    kafka: KafkaSettings
    shoppers: Shoppers

    def drain(self, events: int) -> float:
        """Events a second of a backlog."""
        return asyncio.run(drain_reading(self.kafka, self.serve.program, self.shoppers, events))

    def latency(self, rate: int, seconds: float) -> Answers:
        return asyncio.run(latency(self.kafka, self.serve.program, self.shoppers, rate, seconds))


def delivery_rows(kafka: KafkaSettings, scale: Scale) -> list[Row]:
    REPORT.parent.mkdir(exist_ok=True)
    with (
        _running(kafka, Delivery.EXACTLY_ONCE) as once,
        _running(kafka, Delivery.AT_LEAST_ONCE) as least,
    ):
        for contestant in (once, least):
            contestant.drain(_WARM_UP_EVENTS)
        return [*_latency_rows(once, least, scale), *_throughput_rows(once, least, scale)]


def _latency_rows(once: Contestant, least: Contestant, scale: Scale) -> list[Row]:
    rows = []
    unanswered = 0
    for rate in _RATES:
        # Of each run: exactly once, then at least once.
        runs = [
            [one.latency(rate, scale.latency_s) for one in (once, least)] for _ in range(scale.runs)
        ]
        unanswered += sum(len(one.sent_s) - len(one.read_s) for run in runs for one in run)
        for share in _PERCENTILES:
            of_once, of_least = (
                [percentile(run[side].latencies_ms(), share) for run in runs] for side in (0, 1)
            )
            name = f"delivery/latency/{rate}_per_s/p{share}"
            rows.append(make_row(name, of_once, "ms", _REFERENCE, of_least))
    return [*rows, make_row("delivery/latency/unanswered", [unanswered], "events")]


def _throughput_rows(once: Contestant, least: Contestant, scale: Scale) -> list[Row]:
    of_once, of_least = [], []
    for _ in range(scale.runs):
        of_once.append(once.drain(scale.backlog_events))
        of_least.append(least.drain(scale.backlog_events))
    commits = once.serve.metric("headwater_commits_total")
    answered = once.serve.metric("headwater_events_total")
    return [
        make_row("delivery/throughput", of_once, "events/s", _REFERENCE, of_least),
        make_row("delivery/events_per_transaction", [answered / commits], "events"),
    ]


@contextmanager
def _running(kafka: KafkaSettings, delivery: Delivery) -> Iterator[Contestant]:
    name = delivery.value.replace("_", "-")
    topics = TopicsSettings(
        events=f"{name}-events", recommendations=f"{name}-out", dead_letter=f"{name}-dead"
    )
    asyncio.run(create_topics(kafka, topics))
    settings = {
        "HEADWATER_KAFKA__DELIVERY": delivery.value,
        "HEADWATER_KAFKA__GROUP_ID": name,
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        publish_random(root, [ItemId(item_name(item)) for item in range(ITEMS)], seed=0)
        log = REPORT.parent / f"bench-{name}.log"
        serve = Serve(kafka.bootstrap_servers, root, log, topics, settings)
        with serve.running(), serve.worker_frozen():
            yield Contestant(serve, kafka.model_copy(update={"delivery": delivery}), Shoppers())
