"""`python -m benchmarks [NAME ...] [--quick]`: measure, print, write reports/bench.json."""

import argparse
import logging
import sys

from benchmarks.event_profile import profile_rows
from benchmarks.hot_swap import hot_swap_rows
from benchmarks.rows import REPORT, Row, print_rows, write_report
from benchmarks.scale import FULL, QUICK, Scale
from benchmarks.stream_figures import stream_rows
from service.sandbox.kafka import LocalKafka
from service.settings import KafkaSettings

_ON_STREAM = ("weights", "latency", "throughput")
_NAMES = ("hot_swap", "profile", *_ON_STREAM)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(_NAMES)}; all")
    parser.add_argument("--quick", action="store_true", help="one short run: does it work at all")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(_NAMES)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(_NAMES)}")
    logging.basicConfig(level=logging.WARNING)
    rows = measure(arguments.names or _NAMES, QUICK if arguments.quick else FULL)
    write_report(rows)
    print_rows(rows)
    print(f"written to {REPORT}")
    return 0


def measure(names: list[str] | tuple[str, ...], scale: Scale) -> list[Row]:
    rows = hot_swap_rows(scale) if "hot_swap" in names else []
    on_stream = [name for name in _ON_STREAM if name in names]
    if not on_stream and "profile" not in names:
        return rows
    # Topics keep what an earlier run left, so the broker is always one of our own.
    with LocalKafka(benchmark=True, heap_mb=512) as broker:
        kafka = KafkaSettings(bootstrap_servers=broker.bootstrap)
        if "profile" in names:
            rows += profile_rows(kafka, scale)
        if on_stream:
            rows += stream_rows(kafka, on_stream, scale)
    return rows


if __name__ == "__main__":
    sys.exit(main())
