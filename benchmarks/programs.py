"""The two programs that are compared, each as a process: `headwater serve` and the bare loop."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

import service
from service.sandbox.processes import end, free_port
from service.settings import ENV_PREFIX, TopicsSettings
from tests.integration.running import children, command

_READY_WITHIN_S = 120.0
_STOP_WITHIN_S = 30.0
# A frozen worker must not be taken for a lost one.
_FROZEN_S = "3600"
_TURN_S = 0.2
_ROOT = Path(service.__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Program:
    """A process that answers each record of one topic by one on another."""

    pid: int
    events: str
    output: str


class Serve:
    """`headwater serve` with settings by environment, its log in `log`."""

    def __init__(
        self,
        bootstrap: str,
        root: Path,
        log: Path,
        topics: TopicsSettings | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        """`more`: variables of its environment that replace or join ours."""
        self._topics = topics or TopicsSettings()
        self._port = free_port()
        self._log = log
        self._environment = {
            name: text for name, text in os.environ.items() if not name.startswith(ENV_PREFIX)
        } | {
            "HEADWATER_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
            "HEADWATER_STORAGE__ROOT": str(root),
            "HEADWATER_TOPICS__EVENTS": self._topics.events,
            "HEADWATER_TOPICS__RECOMMENDATIONS": self._topics.recommendations,
            "HEADWATER_TOPICS__DEAD_LETTER": self._topics.dead_letter,
            "HEADWATER_ADMIN__PORT": str(self._port),
            "HEADWATER_TRAINER__RESTART__SILENT_AFTER_S": _FROZEN_S,
            "HEADWATER_TRAINER__RESTART__STUCK_AFTER_S": _FROZEN_S,
            **(more or {}),
        }

    @contextmanager
    def running(self) -> Iterator["Serve"]:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "serve"],
                cwd=_ROOT,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_ready()
            yield self
        finally:
            end(self._process, _STOP_WITHIN_S)

    @property
    def program(self) -> Program:
        return Program(self._process.pid, self._topics.events, self._topics.recommendations)

    @contextmanager
    def worker_frozen(self) -> Iterator[None]:
        """Training off: the worker keeps its memory and gets no CPU."""
        _, pid = self._worker_pids()
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @contextmanager
    def worker_slowed(self) -> Iterator[None]:
        """The worker stands still for four fifths of the time."""
        over = threading.Event()

        def alternate() -> None:
            while not over.is_set():
                with self.worker_frozen():
                    over.wait(4 * _TURN_S)
                over.wait(_TURN_S)

        turns = threading.Thread(target=alternate)
        turns.start()
        try:
            yield
        finally:
            over.set()
            turns.join()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of one name with these labels; 0 where there is none yet."""
        text = _get(f"http://127.0.0.1:{self._port}/metrics")[1]
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def memory_mb(self) -> dict[str, float]:
        """Of the main process and of the worker with its template, what they share counted in
        parts (Pss)."""
        template, worker = self._worker_pids()
        return {
            "service": _pss_mb(self._process.pid),
            "worker": _pss_mb(template) + _pss_mb(worker),
        }

    def settle(self, within_s: float) -> float:
        """Wait until the worker has taken every micro-batch; the events still untrained."""
        end_s = time.monotonic() + within_s
        while self.metric("headwater_worker_micro_batches") and time.monotonic() < end_s:
            time.sleep(0.25)
        return self.metric("headwater_untrained_events")

    def _worker_pids(self) -> tuple[int, int]:
        """Of the template and of the worker that was forked from it."""
        for template in children(self._process.pid):
            if "forkserver" in command(template):
                for worker in children(template):
                    return template, worker
        raise RuntimeError("headwater serve has no worker process")

    def _wait_until_ready(self) -> None:
        end_s = time.monotonic() + _READY_WITHIN_S
        while time.monotonic() < end_s:
            if self._process.poll() is not None:
                break
            ready = _get(f"http://127.0.0.1:{self._port}/readyz")[0] == 200
            if ready and self.metric("headwater_worker_up") == 1:
                return
            time.sleep(0.25)
        raise RuntimeError(f"headwater serve is not ready:\n{self._log.read_text()[-2000:]}")


@contextmanager
def bare_loop(bootstrap: str, events: str, output: str) -> Iterator[Program]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bare_loop", bootstrap, events, output],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError("the bare loop did not start")
        yield Program(process.pid, events, output)
    finally:
        end(process, _STOP_WITHIN_S)


@contextmanager
def frozen(program: Program) -> Iterator[None]:
    """While its backlog is made, so that it starts with all of it."""
    os.kill(program.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(program.pid, signal.SIGCONT)


def _pss_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1e3


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""
