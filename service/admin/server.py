"""`/metrics`, `/livez` and `/readyz` over HTTP, in a thread of their own.

Not in the event loop: a stalled loop must be seen from outside, which needs someone who
still answers.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import disable_created_metrics
from prometheus_client.exposition import choose_encoder

from service.errors import ConfigurationError
from service.metrics import Metrics
from service.settings import AdminSettings

log = logging.getLogger(__name__)

# A `_created` time for each counter doubles the page and Prometheus does not need it.
disable_created_metrics()  # type: ignore[no-untyped-call]  # ships types, but not for this


class Health:
    """What the probes answer. The event loop beats; a stage that is not ready has a reason."""

    def __init__(self, live_within_s: float) -> None:
        self._live_within_s = live_within_s
        self._beat_s = time.monotonic()
        self._not_ready: dict[str, str] = {"start": "starting"}

    def beat(self) -> None:
        """The event loop runs; called by it every second or so."""
        self._beat_s = time.monotonic()

    def ready(self, stage: str) -> None:
        self._not_ready.pop(stage, None)

    def not_ready(self, stage: str, reason: str) -> None:
        self._not_ready[stage] = reason

    def live_answer(self) -> tuple[bool, str]:
        stalled_s = time.monotonic() - self._beat_s
        if stalled_s > self._live_within_s:
            return False, f"the event loop has not run for {stalled_s:.0f} s"
        return True, "live"

    def ready_answer(self) -> tuple[bool, str]:
        reasons = dict(self._not_ready)
        return (False, "; ".join(reasons.values())) if reasons else (True, "ready")


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    content_type: str
    body: bytes


class AdminServer:
    """Serves until `stop`. Raises ConfigurationError when the port is taken."""

    def __init__(self, settings: AdminSettings, metrics: Metrics, health: Health) -> None:
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        host, port = self._settings.host, self._settings.port
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(self._reply))
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on admin.host:port = {host}:{port} ({error.strerror}); "
                "set admin.port to a free port, or to 0 for any"
            ) from None
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="admin", daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://{self._settings.host}:{self.port}"

    @property
    def port(self) -> int:
        return self._server.server_port if self._server else self._settings.port

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()

    def _reply(self, path: str, accept: str) -> Reply:
        match path:
            case "/metrics":
                encode, content_type = choose_encoder(accept)
                return Reply(200, content_type, encode(self._metrics.registry))
            case "/livez":
                return _health_reply(*self._health.live_answer())
            case "/readyz":
                return _health_reply(*self._health.ready_answer())
            case _:
                return Reply(404, "text/plain", b"try /metrics, /livez or /readyz\n")


def _health_reply(good: bool, text: str) -> Reply:
    return Reply(200 if good else 503, "text/plain; charset=utf-8", f"{text}\n".encode())


def _handler(reply_to: Callable[[str, str], Reply]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # a silent client must not keep a thread for ever

        def do_GET(self) -> None:  # http.server's name
            path = self.path.partition("?")[0]
            reply = reply_to(path, self.headers.get("Accept", ""))
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, format: str, *args: object) -> None:
            log.debug(format, *args)

    return Handler
