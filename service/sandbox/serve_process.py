"""`headwater serve` as a process of its own, watched from outside as an operator would."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from service.errors import HeadwaterError
from service.sandbox import launch
from service.sandbox.processes import end
from service.settings import ENV_LEVEL, ENV_PREFIX

_POLL_S = 0.25
_HTTP_TIMEOUT_S = 2.0
_QUOTED_LINES = 15

BOOTSTRAP_VARIABLE = f"{ENV_PREFIX}KAFKA{ENV_LEVEL}BOOTSTRAP_SERVERS"


class ServeFailedError(HeadwaterError):
    """The service under demonstration ended, or does not answer."""


def environment(overrides: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, str]:
    """Settings as the `HEADWATER_*` variables that give them."""
    found: dict[str, str] = {}
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            found |= environment(value, (*path, key))
        else:
            name = ENV_PREFIX + ENV_LEVEL.join((*path, key)).upper()
            found[name] = value if isinstance(value, str) else json.dumps(value)
    return found


class ServeProcess:
    """One life of `headwater serve`."""

    def __init__(self, variables: Mapping[str, str], admin_port: int, log: Path) -> None:
        """`variables`: its `HEADWATER_*` environment; others of ours are not passed on."""
        ours = {name: text for name, text in os.environ.items() if not name.startswith(ENV_PREFIX)}
        self._environment = {**ours, **variables}
        self._admin = f"http://127.0.0.1:{admin_port}"
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Call from the main thread: on Linux it dies with the thread that started it."""
        command = [sys.executable, "-m", "service.cli", "serve"]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *command]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C reaches us only, and we stop it in order
            )

    async def ready(self, timeout_s: float) -> None:
        """Wait until it consumes and answers. Raises `ServeFailedError`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._get("/readyz"):
                    self.check()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise self._failed(f"was not ready after {timeout_s:.0f} s") from None

    def check(self) -> None:
        """Raises `ServeFailedError`, quoting the end of the log, when it does not run."""
        code = self._process.poll() if self._process else None
        if code is not None:
            raise self._failed(f"ended with code {code}")

    async def watch(self) -> None:
        """Returns never; raises as `check` does."""
        while True:
            self.check()
            await asyncio.sleep(_POLL_S)

    async def trainer_up(self, timeout_s: float) -> None:
        """Wait until the trainer worker answers; scoring does not wait for it, a demo does."""
        try:
            async with asyncio.timeout(timeout_s):
                while (await self._values("headwater_worker_up")).get("") != 1:
                    self.check()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise self._failed(f"has no trainer after {timeout_s:.0f} s") from None

    async def gate_decisions(self) -> dict[str, int]:
        """How often the gate gave each verdict; empty while /metrics does not answer."""
        values = await self._values("headwater_gate_decisions_total", "verdict")
        return {verdict: int(value) for verdict, value in values.items()}

    async def _values(self, name: str, label: str = "") -> dict[str, float]:
        """The samples of a metric by the value of a label, or by nothing."""
        text = await self._get("/metrics")
        return {
            sample.labels.get(label, ""): sample.value
            for family in text_string_to_metric_families(text or "")
            for sample in family.samples
            if sample.name == name
        }

    async def stop(self, timeout_s: float) -> None:
        """SIGTERM and an orderly end. Raises `ServeFailedError` if it was not one."""
        if self._process is None:
            return
        self.check()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = await asyncio.to_thread(self._process.wait, timeout_s)
        except subprocess.TimeoutExpired:
            raise self._failed(f"did not end within {timeout_s:.0f} s of SIGTERM") from None
        self._process = None
        if code != 0:
            raise self._failed(f"ended with code {code} after SIGTERM")

    def end(self, grace_s: float) -> None:
        """However it takes; blocks for the grace time at most. For the way out of a failure."""
        if self._process is None:
            return
        end(self._process, grace_s)
        self._process = None

    async def _get(self, path: str) -> str | None:
        """The body; None unless the answer is 200."""

        def fetch() -> str | None:
            try:
                with urllib.request.urlopen(self._admin + path, timeout=_HTTP_TIMEOUT_S) as answer:
                    body: bytes = answer.read()
                    return body.decode()
            except (urllib.error.URLError, OSError):
                return None

        return await asyncio.to_thread(fetch)

    def _failed(self, what: str) -> ServeFailedError:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        quoted = "".join(f"\n  {line}" for line in lines[-_QUOTED_LINES:]) or " (nothing)"
        return ServeFailedError(f"`headwater serve` {what}; its log ends:{quoted}")
