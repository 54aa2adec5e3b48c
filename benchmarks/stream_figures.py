"""Throughput, latency and time to weights of `headwater serve`, beside the bare loop.

Both run as processes on the same broker in the same run, and take turns. Training is switched
off by SIGSTOP of the worker: there is no such setting, and a frozen worker takes no CPU.
While the bare loop is measured the worker is frozen too and the service has nothing to do.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.client import Answers, drain, latency, weights
from benchmarks.programs import Program, Serve, bare_loop
from benchmarks.rows import REPORT, Row, make_row, percentile
from benchmarks.scale import Scale
from benchmarks.shoppers import ITEMS, Shoppers, item_name
from benchmarks.versions import publish_random
from service.domain import ItemId
from service.settings import KafkaSettings, TopicsSettings
from service.stream.topics import create_topics

_RATES = (200, 1000)
_PERCENTILES = (50, 95, 99)
_WEIGHTS_RATE = 200
# The gate asks for 64 held-out events of the 5 % that it keeps.
_WARM_UP_EVENTS = 4_000
_WARM_UP_S = 30.0
_SETTLE_S = 45.0
_COVERED_WITHIN_S = 60.0
_BARE = TopicsSettings(events="bare-events", recommendations="bare-out", dead_letter="bare-dead")


class StreamFigures:
    """The rows of one pair of programs. Every method blocks until it has measured."""

    def __init__(self, kafka: KafkaSettings, serve: Serve, bare: Program, scale: Scale) -> None:
        self._kafka = kafka
        self._serve = serve
        self._bare = bare
        self._scale = scale
        self._shoppers = Shoppers()

    def warm_up(self) -> None:
        for program in (self._bare, self._serve.program):
            self._drain(program, _WARM_UP_EVENTS)
        self._serve.settle(_WARM_UP_S)

    def throughput(self) -> list[Row]:
        events = self._scale.backlog_events
        on, off, bare = [], [], []
        for _ in range(self._scale.runs):
            on.append(self._drain(self._serve.program, events))
            with self._serve.worker_frozen():
                off.append(self._drain(self._serve.program, events))
                bare.append(self._drain(self._bare, events))
        left = self._serve.metric("headwater_untrained_events")
        return [
            make_row("throughput/training_on", on, "events/s", "bare loop", bare),
            make_row("throughput/training_off", off, "events/s", "bare loop", bare),
            make_row("throughput/bare_loop", bare, "events/s"),
            make_row("throughput/untrained_after", [left], "events"),
        ]

    def latency(self) -> list[Row]:
        rows, unanswered, sent = [], 0, 0
        for rate in _RATES:
            on, off, bare = [], [], []
            for _ in range(self._scale.runs):
                self._serve.settle(_SETTLE_S)
                on.append(self._latency(self._serve.program, rate))
                with self._serve.worker_frozen():
                    off.append(self._latency(self._serve.program, rate))
                    bare.append(self._latency(self._bare, rate))
            for name, answers, reference in (
                ("training_on", on, "training off"),
                ("training_off", off, "bare loop"),
                ("bare_loop", bare, None),
            ):
                against = off if name == "training_on" else bare
                rows += _latency_rows(f"latency/{rate}_per_s/{name}", answers, reference, against)
            unanswered += sum(len(one.sent_s) - len(one.read_s) for one in [*on, *off])
            sent += sum(len(one.sent_s) for one in [*on, *off])
        rows.append(make_row("latency/unanswered", [unanswered], "events", "sent", [sent]))
        return rows

    def weights(self) -> list[Row]:
        self._serve.settle(_SETTLE_S)
        coverage = asyncio.run(
            weights(
                self._kafka,
                self._serve.program,
                self._shoppers,
                _WEIGHTS_RATE,
                self._scale.weights_s,
                _COVERED_WITHIN_S,
            )
        )
        watched = len(coverage.seconds) + coverage.uncovered
        name = f"weights/{_WEIGHTS_RATE}_per_s"
        return [
            make_row(f"{name}/p50", [percentile(coverage.seconds, 50)], "s"),
            make_row(f"{name}/p95", [percentile(coverage.seconds, 95)], "s"),
            make_row(f"{name}/uncovered", [coverage.uncovered], "events", "watched", [watched]),
            make_row(f"{name}/versions_served", [coverage.versions], "versions"),
        ]

    def _drain(self, program: Program, events: int) -> float:
        return asyncio.run(drain(self._kafka, program, self._shoppers, events))

    def _latency(self, program: Program, rate: int) -> Answers:
        seconds = self._scale.latency_s
        return asyncio.run(latency(self._kafka, program, self._shoppers, rate, seconds))


def _latency_rows(
    name: str, runs: Sequence[Answers], reference: str | None, against: Sequence[Answers]
) -> list[Row]:
    return [
        make_row(
            f"{name}/p{share}",
            [percentile(one.latencies_ms(), share) for one in runs],
            "ms",
            reference,
            [percentile(one.latencies_ms(), share) for one in against] if reference else (),
        )
        for share in _PERCENTILES
    ]


def stream_rows(kafka: KafkaSettings, names: Sequence[str], scale: Scale) -> list[Row]:
    """The rows of those of `throughput`, `latency` and `weights` that are named."""
    asyncio.run(create_topics(kafka, TopicsSettings()))
    asyncio.run(create_topics(kafka, _BARE))
    REPORT.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        publish_random(Path(folder), [ItemId(item_name(item)) for item in range(ITEMS)], seed=0)
        serve = Serve(kafka.bootstrap_servers, Path(folder), REPORT.parent / "bench-serve.log")
        with (
            serve.running(),
            bare_loop(kafka.bootstrap_servers, _BARE.events, _BARE.recommendations) as bare,
        ):
            figures = StreamFigures(kafka, serve, bare, scale)
            figures.warm_up()
            # Backlogs last: they leave the worker with more than it trains in a minute.
            rows = figures.weights() if "weights" in names else []
            rows += figures.latency() if "latency" in names else []
            return rows + (figures.throughput() if "throughput" in names else [])
