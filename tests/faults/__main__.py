"""`make faults`: every fault, so many seeds each; exits with 1 when a promise was broken."""

import argparse
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.faults.disk import small_disk
from tests.faults.fault import Fault
from tests.faults.results import Result, table, write
from tests.faults.run import Run, Strike
from tests.faults.scenarios import FAULTS

_TRIES = 5  # of one seed, until a strike hits work under way


def main() -> int:
    arguments = _arguments()
    chosen = _chosen(arguments.only)
    results: list[Result] = []
    for fault in chosen:
        print(f"{fault.name}: {fault.what}", flush=True)
        results.append(play(fault, arguments.seeds))
        _tell(results[-1])
        write(results, arguments.out)
    print(table(results))
    print(f"written to {arguments.out}")
    return 0 if all(result.holds for result in results) else 1


def play(fault: Fault, seeds: int) -> Result:
    """On a Kafka of its own: what one fault leaves behind is not the next one's."""
    strikes: list[Strike] = []
    unproved = 0
    judged, failure = None, None
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, fault.kafka() as kafka:
        try:
            with (
                small_disk(Path(folder) / "storage", fault.disk_mb),
                Run(
                    kafka, Path(folder), fault.settings, again=fault.again, apart=fault.apart
                ) as run,
            ):
                for number in range(fault.strikes(seeds)):
                    strike, missed = strike_once(fault, run, number)
                    strikes.append(strike)
                    unproved += missed
                run.settle()
                judged = run.judge(strikes)
        except Exception:  # noqa: BLE001  # told in the row; the other faults are still to be run
            failure = traceback.format_exc()
    seconds = time.monotonic() - started_s
    return Result(
        fault.name, fault.what, fault.once, seeds, strikes, unproved, judged, failure, seconds
    )


def strike_once(fault: Fault, run: Run, number: int) -> tuple[Strike, int]:
    """The strike, and how many before it hit nothing."""
    for attempt in range(_TRIES):
        strike = fault.hit(run, random.Random(f"{fault.name}/{number}/{attempt}"))
        if strike.under_way:
            return strike, attempt
    raise AssertionError(f"{_TRIES} strikes hit no work under way")


def _tell(result: Result) -> None:
    print(f"  {'holds' if result.holds else 'DOES NOT HOLD'} ({result.seconds:.0f} s)", flush=True)
    if result.failure:
        print(result.failure, flush=True)


def _chosen(only: str) -> list[Fault]:
    by_name = {fault.name: fault for fault in FAULTS}
    names = [name for name in only.split(",") if name]
    unknown = [name for name in names if name not in by_name]
    if unknown:
        sys.exit(f"no fault {', '.join(unknown)}; there are: {', '.join(by_name)}")
    return [by_name[name] for name in names] or FAULTS


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="strikes of each fault")
    parser.add_argument("--only", default="", help="names of faults, with commas in between")
    parser.add_argument("--out", type=Path, default=Path("reports/faults.json"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
