"""`headwater serve` as a real process, with settings that suit a short stream."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

import service
from service.registry.manifest import Manifest
from service.registry.registry import Registry
from service.settings import ENV_FILE, ENV_PREFIX, RegistrySettings
from tests.integration.traffic import Stream

# Importing torch on a busy two-core machine has taken 20 s, and two processes do it.
START_WITHIN_S = 120.0
STOP_WITHIN_S = 40.0
_CLI_WITHIN_S = 120.0
_POLL_S = 0.1
_REPOSITORY = Path(service.__file__).parents[1]

Environment = Mapping[str, str]

# Versions come out within seconds, and a lost member is missed soon.
QUICK: Environment = {
    "HEADWATER_EVENTS__DEDUPLICATE": "0",  # tests of one stream count from the same numbers
    "HEADWATER_HISTORY__USERS": "1000",
    "HEADWATER_HISTORY__EVENTS": "64",
    "HEADWATER_MODEL__MAX_LENGTH": "16",
    "HEADWATER_MODEL__BACKBONE": '{"kind": "small", "dim": 16, "layers": 1, "heads": 1}',
    "HEADWATER_BATCH__TRAIN_MAX_WAIT_S": "0.5",
    "HEADWATER_TRAINER__DEVICE": "cpu",
    "HEADWATER_TRAINER__THREADS": "1",
    "HEADWATER_TRAINER__PUBLISH_EVERY_S": "0.5",
    "HEADWATER_TRAINER__MAX_EPOCHS": "1",
    "HEADWATER_TRAINER__FULL_ROUND_EVENTS": "1",  # rounds of a test are small
    "HEADWATER_TRAINER__HOLDOUT__FRACTION": "0.2",
    "HEADWATER_TRAINER__HOLDOUT__WINDOW_ROWS": "64",
    "HEADWATER_TRAINER__GATE__MIN_ROWS": "8",
    # These tests are about the way of an event: whether it helps is the gate's own tests'.
    "HEADWATER_TRAINER__GATE__TOLERANCE": "1.0",
    "HEADWATER_SCORER__THREADS": "1",
    "HEADWATER_REGISTRY__POLL_S": "0.3",
    "HEADWATER_KAFKA__SESSION_TIMEOUT_S": "6",  # the least that a broker's defaults allow
    "HEADWATER_KAFKA__CONNECT_TIMEOUT_S": "20",
    "HEADWATER_ADMIN__PORT": "0",
}


def environment(stream: Stream, storage: Path, more: Environment | None = None) -> dict[str, str]:
    """Ours without settings, then those of the test."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(ENV_PREFIX) and name != ENV_FILE
    }
    named = {
        "HEADWATER_KAFKA__BOOTSTRAP_SERVERS": stream.bootstrap,
        "HEADWATER_KAFKA__GROUP_ID": stream.name,
        "HEADWATER_TOPICS__EVENTS": stream.events,
        "HEADWATER_TOPICS__RECOMMENDATIONS": stream.recommendations,
        "HEADWATER_TOPICS__DEAD_LETTER": stream.dead_letter,
        "HEADWATER_STORAGE__ROOT": str(storage),
    }
    return {**plain, **QUICK, **named, **(more or {})}


def headwater(arguments: list[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        cwd=_REPOSITORY,
        env=dict(environ),
        capture_output=True,
        text=True,
        timeout=_CLI_WITHIN_S,
        check=False,
    )


class Service:
    """One `headwater serve`; leaving the context ends it, by force if need be."""

    def __init__(
        self,
        stream: Stream,
        folder: Path,
        more: Environment | None = None,
        program: str = "service.cli",
        start_within_s: float = START_WITHIN_S,
    ) -> None:
        """`folder` keeps the storage; a service that is started there later goes on from it.
        `program` is the module that is run in place of the command line's own."""
        folder.mkdir(parents=True, exist_ok=True)
        self.storage = folder / "storage"
        self.environ = environment(stream, self.storage, more)
        self.log = folder / f"serve-{time.time_ns()}.log"
        self._program = program
        self._start_within_s = start_within_s
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None
        self._ended = False  # on a test's word

    def start(self) -> None:
        """Returns before it is ready."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._program, "serve"],
                cwd=_REPOSITORY,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_for(self.is_ready, "ready", self._start_within_s)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._ended:
            return
        if error is None:
            assert self.running.poll() is None, f"ended by itself:\n{self.words()}"
            assert self.stop() == 0, self.words()
        else:
            print(self.words())  # noqa: T201  # pytest shows it with the failure
            self.kill()

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self.running.pid

    @property
    def port(self) -> int | None:
        """Of the admin server; None until it says so."""
        if self._port is None:
            found = re.search(r"metrics and health at http://[^:]+:(\d+)", self.text())
            self._port = int(found[1]) if found else None
        return self._port

    def text(self) -> str:
        """All that it has logged."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def words(self) -> str:
        """The end of its log, for a failing test."""
        return "\n".join(self.text().splitlines()[-40:])

    def get(self, path: str) -> tuple[int, str]:
        """Status and body; status 0 when nobody answers."""
        if self.port is None:
            return 0, "not started"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def is_ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def metric(self, name: str, **labels: str) -> float:
        """The sample with these labels; 0 where there is none yet."""
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return 0.0

    def version(self) -> int:
        """The version that serves."""
        return int(self.metric("headwater_model_version"))

    def versions_since(self, moment_ms: int) -> list[int]:
        """Versions published after a moment that the registry still keeps."""
        return [one.version for one in self.manifests() if one.created_at > moment_ms]

    def manifests(self) -> list[Manifest]:
        """Of the versions that the registry still keeps, in their order."""
        registry = Registry(self.storage / "registry", RegistrySettings())
        return [registry.manifest(version) for version in registry.versions()]

    def template_pid(self) -> int:
        """The process that workers are forked from."""
        (pid,) = self._templates()
        return pid

    def worker_pid(self) -> int | None:
        """The trainer worker's process id; None while there is none."""
        return next((pid for one in self._templates() for pid in children(one)), None)

    def _templates(self) -> list[int]:
        """One, or none before it is started."""
        return [pid for pid in children(self.pid) if "forkserver" in command(pid)]

    def ready_worker(self, besides: int | None = None) -> int:
        """Wait for a worker, another than `besides`, that answers."""

        def is_there() -> bool:
            pid = self.worker_pid()
            return pid is not None and pid != besides and self.metric("headwater_worker_up") == 1

        self.wait_for(is_there, "a worker", START_WITHIN_S)
        pid = self.worker_pid()
        assert pid is not None
        return pid

    def wait_for(self, holds: Callable[[], object], what: str, within_s: float) -> None:
        """Fails with the end of the log when it ends or does not come to it in time."""
        deadline_s = time.monotonic() + within_s
        while not holds():
            code = self.running.poll()
            assert code is None, f"ended with {code} before {what}:\n{self.words()}"
            late = time.monotonic() > deadline_s
            assert not late, f"no {what} within {within_s:.0f} s:\n{self.words()}"
            time.sleep(_POLL_S)

    def wait_for_version(self, after: int, within_s: float = 90.0) -> int:
        """Wait until a version past `after` serves."""
        self.wait_for(lambda: self.version() > after, f"version past {after}", within_s)
        return self.version()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self._ended = True
        self.running.send_signal(signal.SIGTERM)
        try:
            return self.running.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not stop:\n{self.words()}") from None

    def kill(self) -> None:
        """kill -9."""
        self._ended = True
        self.running.kill()
        self.running.wait()


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name in parentheses may hold anything; state and parent follow it.
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == pid:
            found.append(int(stat.parent.name))
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def shared_memory_of(pid: int) -> set[str]:
    """Names of the segments that a process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return set(re.findall(r"/dev/shm/(psm_\w+)", maps))


def is_gone(pid: int) -> bool:
    """Ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def eventually(holds: Callable[[], bool], within_s: float) -> bool:
    deadline_s = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_POLL_S)
    return True
