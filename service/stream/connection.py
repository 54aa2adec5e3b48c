"""What every Kafka client of ours is made with, and how a missing broker is told."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.helpers import create_ssl_context

from service.errors import ConfigurationError
from service.settings import KafkaSettings, SecurityProtocol

_LOG_EVERY_S = 10.0


def client_arguments(kafka: KafkaSettings) -> dict[str, Any]:
    """Address, name and security, as any aiokafka client takes them."""
    arguments: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "client_id": kafka.client_id,
        "security_protocol": kafka.security_protocol.value,
        "request_timeout_ms": round(kafka.request_timeout_s * 1000),
    }
    if kafka.security_protocol in (SecurityProtocol.SSL, SecurityProtocol.SASL_SSL):
        cafile = str(kafka.ssl_ca_file) if kafka.ssl_ca_file else None
        arguments["ssl_context"] = create_ssl_context(cafile=cafile)
    if kafka.security_protocol in (SecurityProtocol.SASL_PLAINTEXT, SecurityProtocol.SASL_SSL):
        arguments |= {
            "sasl_mechanism": kafka.sasl_mechanism.value,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": kafka.sasl_password.get_secret_value()
            if kafka.sasl_password
            else None,
        }
    return arguments


@contextmanager
def _silenced(logger: logging.Logger) -> Iterator[None]:
    """The error that is raised says what this logger would, and what to do about it."""

    def nothing(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)


@asynccontextmanager
async def admin_client(kafka: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A started admin client. Raises ConfigurationError when no broker answers in time."""
    try:
        client = AIOKafkaAdminClient(**client_arguments(kafka))
    except (KafkaError, OSError, ValueError) as error:
        raise ConfigurationError(f"kafka.* settings do not make a client: {error}") from None
    try:
        # The client's own errors for a wrong port arrive only after its many retries.
        with _silenced(logging.getLogger("aiokafka")):
            await asyncio.wait_for(client.start(), kafka.connect_timeout_s)
    except (KafkaError, OSError, TimeoutError, ValueError) as error:
        await client.close()
        reason = str(error) or type(error).__name__
        raise ConfigurationError(
            f"no Kafka answers at kafka.bootstrap_servers = {kafka.bootstrap_servers!r} "
            f"({reason}); start it, correct the address, or try `headwater sandbox`"
        ) from None
    try:
        yield client
    finally:
        await client.close()


class OncePer(logging.Filter):
    """Lets one line of a logger through every few seconds and counts those between.

    While a broker is away aiokafka logs about a hundred lines a second.
    """

    def __init__(self, every_s: float = _LOG_EVERY_S) -> None:
        super().__init__()
        self._every_s = every_s
        self._next_s = 0.0
        self._dropped = 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._next_s:
            self._dropped += 1
            return False
        if self._dropped:
            record.msg = f"{record.msg} ({self._dropped} more lines in between)"
        self._next_s, self._dropped = now + self._every_s, 0
        return True


def calm_client_logs() -> None:
    """Rate-limit aiokafka's loggers. Called once, at start."""
    for name in ("aiokafka", "aiokafka.conn", "aiokafka.cluster", "aiokafka.client"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in (
        "aiokafka",
        "aiokafka.conn",
        "aiokafka.cluster",
        "aiokafka.consumer.fetcher",
        "aiokafka.consumer.group_coordinator",
        "aiokafka.producer.sender",
    ):
        logging.getLogger(name).addFilter(OncePer())


def has_fast_client() -> bool:
    """Whether aiokafka runs with its C extension; without it reading is ten times slower."""
    try:
        import aiokafka.record._crecords  # noqa: F401
    except ImportError:
        return False
    return True
