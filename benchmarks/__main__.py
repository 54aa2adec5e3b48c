"""`python -m benchmarks [NAME ...] [--quick]`: measure, print, write reports/bench.json."""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence

from benchmarks.clicks import click_rows
from benchmarks.delivery import delivery_rows
from benchmarks.event_profile import profile_rows
from benchmarks.hot_swap import hot_swap_rows
from benchmarks.rows import REPORT, Row, print_rows, too_much, write_report
from benchmarks.scale import FULL, QUICK, Scale
from benchmarks.snapshots import snapshot_rows
from benchmarks.soak import slow_output_rows, slow_worker_rows, soak_rows
from benchmarks.steps import step_rows
from benchmarks.stream_figures import stream_rows
from benchmarks.trained import trained_rows
from service.sandbox.kafka import LocalKafka
from service.settings import KafkaSettings

_ON_STREAM = ("weights", "latency", "throughput")
_NAMES = (
    *_ON_STREAM,
    "delivery",
    "profile",
    "hot_swap",
    "step",
    "trained",
    "clicks",
    "snapshots",
    "soak",
    "slow_worker",
    "slow_output",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(_NAMES)}; all")
    parser.add_argument("--quick", action="store_true", help="one short run: does it work at all")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(_NAMES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(_NAMES)}")
    logging.basicConfig(level=logging.WARNING)
    rows: list[Row] = []
    for found in measure(arguments.names or _NAMES, QUICK if arguments.quick else FULL):
        rows += found
        write_report(rows)  # what is there stays if a later one fails
    print_rows(rows)
    print(f"written to {REPORT}")
    passed = too_much(rows)
    if passed:
        print(f"past its limit: {', '.join(passed)}", file=sys.stderr)
    return 1 if passed else 0


def measure(names: Sequence[str], scale: Scale) -> Iterator[list[Row]]:
    """The rows of one benchmark after the other."""
    on_stream = [name for name in _ON_STREAM if name in names]
    if on_stream or "delivery" in names or "profile" in names:
        # Topics keep what an earlier run left, so the broker is always one of our own.
        with LocalKafka(benchmark=True, heap_mb=512) as broker:
            kafka = KafkaSettings(bootstrap_servers=broker.bootstrap)
            if on_stream:
                yield stream_rows(kafka, on_stream, scale)
            if "delivery" in names:
                yield delivery_rows(kafka, scale)
            if "profile" in names:
                yield profile_rows(kafka, scale)
    if "hot_swap" in names:
        yield hot_swap_rows(scale)
    if "step" in names:
        yield step_rows(scale)
    if "trained" in names:
        yield trained_rows(scale)
    if "clicks" in names:
        yield click_rows(scale)
    if "snapshots" in names:
        yield snapshot_rows(scale)
    if "soak" in names:
        yield soak_rows(scale)
    if "slow_worker" in names:
        yield slow_worker_rows(scale)
    if "slow_output" in names:
        yield slow_output_rows(scale)


if __name__ == "__main__":
    sys.exit(main())
