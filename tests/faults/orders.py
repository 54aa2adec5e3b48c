"""Orders to a service that was started by `tests.faults.serve`: strike there, in that way, once.

An order is a file. The process that comes to the point renames it, so that exactly one of the
service's processes carries it out; then it leaves a report beside it, and strikes.
"""

import enum
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER_VARIABLE = "FAULTS_ORDERS"
_POLL_S = 0.02


class Blow(enum.StrEnum):
    """What happens to the process that comes to the point."""

    KILL = "kill"  # kill -9
    KILL_SERVICE = "kill_service"  # kill -9 of the service that has this worker, then of the worker
    FREEZE = "freeze"  # SIGSTOP
    HANG = "hang"  # the thread goes no further; others do
    EXHAUST = "exhaust"  # the process may have no more memory, and asks for it


@dataclass(frozen=True, slots=True)
class Order:
    """Strike at the `passes + 1`-th time that one process comes to the point from now on."""

    point: str
    blow: Blow
    passes: int = 0


@dataclass(frozen=True, slots=True)
class Struck:
    """Left behind by the process that was struck."""

    point: str
    pid: int
    at_s: float  # the monotonic clock, which all processes of a machine share


class Orders:
    """Both sides of the folder; the harness gives orders, a service carries them out."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._order = folder / "order.json"
        self._report = folder / "struck.json"
        self._clock = folder / "clock-ahead-s"

    def give(self, order: Order) -> None:
        self._report.unlink(missing_ok=True)
        _replace(self._order, json.dumps(asdict(order)))

    def read(self) -> Order | None:
        """None while nothing is ordered."""
        try:
            given = json.loads(self._order.read_text())
        except FileNotFoundError:
            return None
        return Order(given["point"], Blow(given["blow"]), given["passes"])

    def claim(self, point: str) -> bool:
        """Whether the order is this process's to carry out; its report is there then."""
        try:
            self._order.rename(self._order.with_suffix(f".{os.getpid()}"))
        except FileNotFoundError:
            return False
        _replace(self._report, json.dumps(asdict(Struck(point, os.getpid(), time.monotonic()))))
        return True

    def withdraw(self) -> None:
        self._order.unlink(missing_ok=True)

    def wait(self, within_s: float) -> Struck | None:
        """The report; None if nobody came to the point in time. The order is withdrawn then."""
        deadline_s = time.monotonic() + within_s
        while not self._report.exists():
            if time.monotonic() > deadline_s:
                self.withdraw()
                return None
            time.sleep(_POLL_S)
        return Struck(**json.loads(self._report.read_text()))

    def set_clock(self, ahead_s: float) -> None:
        """Let the wall clock of the service's processes be so far ahead of the machine's."""
        _replace(self._clock, str(ahead_s))

    def clock_ahead_s(self) -> float:
        try:
            return float(self._clock.read_text())
        except FileNotFoundError:
            return 0.0


def _replace(file: Path, text: str) -> None:
    temporary = file.with_suffix(f".new.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(file)
