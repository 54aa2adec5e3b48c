"""A real Apache Kafka, one node in KRaft mode, as a child process on the loopback interface.

For demos, tests and first steps: the broker that users run, without Docker or an installed
Java, and one that can be frozen, killed and started again on the same port and data.
"""

import base64
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from service.errors import ConfigurationError
from service.sandbox import launch
from service.sandbox.broker_files import LOG4J2_PROPERTIES, LOG_FOLDER, server_properties
from service.sandbox.jars import kafka_jars
from service.sandbox.java import find_java
from service.sandbox.probe import answers
from service.sandbox.processes import end

# Below the range that Linux, macOS and Windows hand out to clients. A client that reconnects to
# a dead broker inside that range can be given the broker's own port, connect to itself and
# keep the broker from coming back.
_PORTS = range(20_000, 30_000)
_POLL_S = 0.05
_PROBE_TIMEOUT_S = 1.0
_QUOTED_LINES = 8

# Linux delivers the parent-death signal when the *thread* that forked ends. This one lasts as
# long as the process, so a broker may be started from any thread, also a short-lived one.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kafka-spawner")


class LocalKafka:
    """One broker. Its owner starts and stops it; the methods are not for several threads at once.

    It runs in a session of its own, so a Ctrl-C in the terminal reaches its owner only, who
    stops it when everything that talks to it is closed. On Linux it dies with the owner's
    process, even by kill -9; elsewhere an owner that is killed leaves it running.
    """

    def __init__(
        self,
        data: Path | None = None,
        *,
        port: int = 0,
        heap_mb: int = 256,
        benchmark: bool = False,
        properties: Mapping[str, str] | None = None,
        cluster_id: str | None = None,
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 10.0,
    ) -> None:
        """`data`: the folder to keep records in, made when absent; when None a temporary one,
        which `stop` removes. `port`: 0 is any free one, chosen at the first start and kept.
        `benchmark`: leave out the JVM flag that trades peak speed for a quick start.
        `properties`: server properties that replace or join ours.
        `cluster_id`: 22 url-safe base64 characters, which brokers of one cluster share.
        """
        self._given_data = data
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._port = port
        self._heap_mb = heap_mb
        self._benchmark = benchmark
        self._properties = dict(properties or {})
        self._cluster_id = cluster_id
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """`host:port`. With `port=0` it is known from the first start on."""
        if not self._port:
            raise RuntimeError("the port is chosen at start")
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """The broker's process id; None when it does not run."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    def start(self) -> None:
        """Returns once the broker can host topics: about 2 s on two cores, 4 s after a kill.

        The first start ever downloads Kafka, 45 MB. Works again after `stop` and `kill`, on the
        same port and data. Raises `ConfigurationError`, quoting the end of the broker's log, when
        it dies or is not ready within the timeout; the data then stays until `stop`.
        """
        if self.pid is not None:
            raise RuntimeError("this Kafka runs already")
        self._choose_port()
        java = [str(find_java()), *self._jvm_flags()]
        java += ["-cp", os.pathsep.join(map(str, kafka_jars()))]
        folder = self._make_folder()
        try:
            self._write_files(folder)
            if not (folder / LOG_FOLDER / "meta.properties").exists():
                self._format(java, folder)
            self._process = _spawn([*java, "kafka.Kafka", "server.properties"], folder)
            self._wait_until_ready(self._process, folder / "broker.log")
        except BaseException:  # also a Ctrl-C while waiting
            self.kill()
            raise

    def stop(self) -> None:
        """An orderly end, by force after the grace time; removes a temporary data folder.

        Does nothing when there is nothing to stop.
        """
        if self._process is not None:
            self.resume()  # a frozen process does not see the request
            end(self._process, self._stop_timeout_s)
            self._process = None
        self._remove_temporary()

    def kill(self) -> None:
        """kill -9. The data stays, also in a temporary folder."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Freezes the process: connections stay open and nothing answers (POSIX)."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undoes `pause`; does nothing to a process that is not frozen."""
        if self._process is not None and sys.platform != "win32":
            self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _jvm_flags(self) -> list[str]:
        flags = [f"-Xmx{self._heap_mb}m", "-XX:+UseSerialGC"]
        if not self._benchmark:
            flags.append("-XX:TieredStopAtLevel=1")
        return [*flags, "-Dlog4j2.configurationFile=log4j2.properties"]

    def _make_folder(self) -> Path:
        if self._given_data is not None:
            return _made(self._given_data)
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(
                prefix="headwater-kafka-", ignore_cleanup_errors=True
            )
        return Path(self._temporary.name)

    def _remove_temporary(self) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def _choose_port(self) -> None:
        if not self._port:
            self._port = free_broker_port()
        elif not _is_free(self._port):
            raise ConfigurationError(
                f"port {self._port} is in use: stop what listens there, or choose another "
                "(`headwater sandbox --port`)"
            )

    def _write_files(self, folder: Path) -> None:
        # A restarted controller may move: nobody but the broker beside it talks to it.
        controller_port = free_broker_port(besides=self._port)
        text = server_properties(self._port, controller_port, self._properties)
        (folder / "server.properties").write_text(text, encoding="utf-8")
        (folder / "log4j2.properties").write_text(LOG4J2_PROPERTIES, encoding="utf-8")

    def _format(self, java: list[str], folder: Path) -> None:
        tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={self._cluster_id or new_id()}"]
        self._process = _spawn([*java, *tool, "--config", "server.properties"], folder)
        try:
            code = self._process.wait(self._start_timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            raise _failed("cannot prepare its data folder", folder / "broker.log")

    def _wait_until_ready(self, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline_s = time.monotonic() + self._start_timeout_s
        while not answers(self._port, _PROBE_TIMEOUT_S):
            if process.poll() is not None:
                raise _failed(f"ended with code {process.returncode}", log)
            if time.monotonic() > deadline_s:
                raise _failed(f"was not ready after {self._start_timeout_s:.0f} s", log)
            time.sleep(_POLL_S)


def new_id() -> str:
    """For a cluster."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _spawn(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Starts `command` in `folder`, its output in broker.log there, its life tied to ours."""
    if sys.platform == "linux":
        python = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid())]
        command = [*python, *command]

    def spawn() -> subprocess.Popen[bytes]:
        with (folder / "broker.log").open("wb") as log:
            return subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    return _spawner.submit(spawn).result()


def free_broker_port(besides: int | None = None) -> int:
    """Free a moment ago; another process could still take it first."""
    # From the system: programs that seed `random` alike would all try the same ports.
    shuffled = random.SystemRandom().sample(_PORTS, len(_PORTS))
    return next(port for port in shuffled if port != besides and _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the broker itself does: connections of a killed one that linger are no obstacle.
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"cannot make the data folder {folder}: {error.strerror}"
        ) from None
    return folder


def _failed(what: str, log: Path) -> ConfigurationError:
    """The end of the log without the frames of Java traces, which tell a user nothing."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line and not line[0].isspace()]
    quoted = "".join(f"\n  {line}" for line in lines[-_QUOTED_LINES:]) or " (nothing)"
    return ConfigurationError(f"the local Kafka {what}; its log ends:{quoted}")
