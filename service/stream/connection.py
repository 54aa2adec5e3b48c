"""What every Kafka client of ours is made with, and how its errors are told."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    BrokerResponseError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IncompatibleBrokerVersion,
    InvalidSessionTimeoutError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnrecognizedBrokerVersion,
    UnsupportedVersionError,
)
from aiokafka.helpers import create_ssl_context

from service.errors import ConfigurationError, TransientError
from service.settings import Delivery, KafkaSettings, SaslMechanism, SecurityProtocol
from service.stream.tokens import token_provider

_LOG_EVERY_S = 10.0
_RETRY_FIRST_S = 0.2
_RETRY_LAST_S = 10.0
_ADVICE: tuple[tuple[tuple[type[KafkaError], ...], str], ...] = (
    (
        (
            TopicAuthorizationFailedError,
            GroupAuthorizationFailedError,
            ClusterAuthorizationFailedError,
            TransactionalIdAuthorizationFailed,
        ),
        "allow it to our user (kafka.sasl_username) in Kafka's access control lists",
    ),
    (
        (UnsupportedVersionError, IncompatibleBrokerVersion, UnrecognizedBrokerVersion),
        "the broker is too old: upgrade it",
    ),
    (
        (InvalidSessionTimeoutError,),
        "set kafka.session_timeout_s within the broker's group.min.session.timeout.ms and "
        "group.max.session.timeout.ms",
    ),
    ((BrokerResponseError,), "the broker's log may say why"),
)


def client_arguments(kafka: KafkaSettings) -> dict[str, Any]:
    """Address, name and security, as any aiokafka client takes them. Reads `kafka.ssl_ca_file`;
    raises ConfigurationError where security settings are missing or wrong."""
    arguments: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "client_id": kafka.client_id,
        "security_protocol": kafka.security_protocol.value,
        "request_timeout_ms": round(kafka.request_timeout_s * 1000),
    }
    if kafka.security_protocol in (SecurityProtocol.SSL, SecurityProtocol.SASL_SSL):
        cafile = str(kafka.ssl_ca_file) if kafka.ssl_ca_file else None
        try:
            arguments["ssl_context"] = create_ssl_context(cafile=cafile)
        except OSError as error:
            raise ConfigurationError(
                f"cannot read certificates from kafka.ssl_ca_file = {cafile} ({error.strerror}); "
                "name a PEM file"
            ) from None
    if kafka.security_protocol in (SecurityProtocol.SASL_PLAINTEXT, SecurityProtocol.SASL_SSL):
        arguments |= {"sasl_mechanism": kafka.sasl_mechanism.value, **_credentials(kafka)}
    return arguments


def isolation_level(kafka: KafkaSettings) -> str:
    """For whoever reads: exactly-once output is so only to readers of what was committed."""
    once = kafka.delivery is Delivery.EXACTLY_ONCE
    return "read_committed" if once else "read_uncommitted"


def _credentials(kafka: KafkaSettings) -> dict[str, Any]:
    needs = f"kafka.security_protocol = {kafka.security_protocol.value} needs"
    if kafka.sasl_mechanism is SaslMechanism.OAUTHBEARER:
        if kafka.oauth is None:
            raise ConfigurationError(
                f"{needs}, with kafka.sasl_mechanism = OAUTHBEARER, kafka.oauth: set its kind to "
                "file or client"
            )
        return {"sasl_oauth_token_provider": token_provider(kafka.oauth)}
    if kafka.sasl_username is None or kafka.sasl_password is None:
        raise ConfigurationError(f"{needs} kafka.sasl_username and kafka.sasl_password: set both")
    return {
        "sasl_plain_username": kafka.sasl_username,
        "sasl_plain_password": kafka.sasl_password.get_secret_value(),
    }


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, KafkaConnectionError | KafkaTimeoutError | TimeoutError):
        return True
    return isinstance(error, KafkaError) and bool(error.retriable)


def retry_delays_s() -> Iterator[float]:
    """Between one try of what we try without end and the next: each twice the one before, up to
    a bound."""
    delay_s = _RETRY_FIRST_S
    while True:
        yield delay_s
        delay_s = min(delay_s * 2, _RETRY_LAST_S)


def as_ours(error: BaseException, what: str) -> BaseException:
    """The one line for an error of the client while we were to do `what`: a TransientError, a
    ConfigurationError, or the error itself where it is neither."""
    reason = str(error) or type(error).__name__
    if is_passing(error):
        return TransientError(f"cannot {what} now ({reason}); start again when Kafka is well")
    for kinds, advice in _ADVICE:
        if isinstance(error, kinds):
            return ConfigurationError(f"Kafka does not let us {what} ({reason}); {advice}")
    return error


@contextmanager
def told(what: str) -> Iterator[None]:
    """What the client raises inside is raised as `as_ours` tells it."""
    try:
        yield
    except (KafkaError, TimeoutError) as error:
        raise as_ours(error, what) from None


@contextmanager
def _muted(logger: logging.Logger) -> Iterator[list[str]]:
    """Nothing of this logger is shown; gives what it says, for the error that is raised."""
    said: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        said.append(record.getMessage())
        return False

    logger.addFilter(keep)
    try:
        yield said
    finally:
        logger.removeFilter(keep)


@asynccontextmanager
async def admin_client(kafka: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A started admin client. Raises ConfigurationError when no broker answers in time, and for
    requests that fail what `as_ours` tells."""
    try:
        client = AIOKafkaAdminClient(**client_arguments(kafka))
    except (KafkaError, OSError, ValueError) as error:
        raise ConfigurationError(f"kafka.* settings do not make a client: {error}") from None
    try:
        # The client's own errors for a wrong port arrive only after its many retries.
        with _muted(logging.getLogger("aiokafka")) as said:
            await asyncio.wait_for(client.start(), kafka.connect_timeout_s)
    except (KafkaError, OSError, TimeoutError, ValueError) as error:
        await client.close()
        # What went wrong at the last server; the error itself only says that something did.
        reason = said[-1] if said else str(error) or type(error).__name__
        raise ConfigurationError(
            f"no Kafka answers at kafka.bootstrap_servers = {kafka.bootstrap_servers!r} "
            f"({reason}); start it, correct the address or the security settings, "
            "or try `headwater sandbox`"
        ) from None
    try:
        with told("ask for topics"):
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
