"""The client's log lines while a broker is away, what a client is made with, and its errors."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import (
    BrokerResponseError,
    ClusterAuthorizationFailedError,
    IllegalStateError,
    InvalidGroupIdError,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnsupportedVersionError,
)
from pydantic import SecretStr

from service.errors import ConfigurationError, TransientError
from service.settings import KafkaSettings, SaslMechanism, SecurityProtocol, TopicsSettings
from service.stream import connection
from service.stream.connection import OncePer, as_ours, client_arguments
from service.stream.topics import create_topics, missing_topics


def line() -> logging.LogRecord:
    return logging.LogRecord("aiokafka", logging.ERROR, "", 0, "away from %s", ("b:1",), None)


def test_one_line_passes_and_the_next_ones_are_dropped() -> None:
    calm = OncePer(every_s=60)
    assert [calm.filter(line()) for _ in range(4)] == [True, False, False, False]


def test_the_next_line_that_passes_counts_those_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    calm = OncePer(every_s=10)
    for _ in range(3):
        calm.filter(line())
    now_s = 110.0
    late = line()
    assert calm.filter(late)
    assert late.getMessage() == "away from b:1 (2 more lines in between)"
    now_s = 120.0
    again = line()
    assert calm.filter(again)
    assert again.getMessage() == "away from b:1"


def test_a_plain_connection_has_no_secrets() -> None:
    assert set(client_arguments(KafkaSettings())) == {
        "bootstrap_servers",
        "client_id",
        "security_protocol",
        "request_timeout_ms",
    }


def test_sasl_over_tls_brings_password_and_context() -> None:
    arguments = client_arguments(
        KafkaSettings(
            security_protocol=SecurityProtocol.SASL_SSL,
            sasl_username="me",
            sasl_password=SecretStr("opensesame"),
        )
    )
    assert arguments["sasl_plain_password"] == "opensesame"
    assert arguments["ssl_context"] is not None


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_certificates_that_cannot_be_read_are_named(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    kafka = KafkaSettings(security_protocol=SecurityProtocol.SSL, ssl_ca_file=path)
    with pytest.raises(ConfigurationError, match=r"kafka\.ssl_ca_file = .*ca\.pem"):
        client_arguments(kafka)


@pytest.mark.parametrize("mechanism", set(SaslMechanism) - {SaslMechanism.OAUTHBEARER})
@pytest.mark.parametrize(
    ("name", "password"), [("me", None), (None, SecretStr("opensesame")), (None, None)]
)
def test_a_missing_name_or_password_is_asked_for(
    mechanism: SaslMechanism, name: str | None, password: SecretStr | None
) -> None:
    kafka = KafkaSettings(
        security_protocol=SecurityProtocol.SASL_PLAINTEXT,
        sasl_mechanism=mechanism,
        sasl_username=name,
        sasl_password=password,
    )
    with pytest.raises(ConfigurationError, match=r"kafka\.sasl_username and kafka\.sasl_password"):
        client_arguments(kafka)


@pytest.mark.parametrize(
    "error",
    [KafkaConnectionError("gone"), NodeNotReadyError(), RequestTimedOutError(), TimeoutError()],
)
def test_what_may_pass_is_transient(error: Exception) -> None:
    told = as_ours(error, "ask for topics")
    assert isinstance(told, TransientError)
    assert str(told).startswith("cannot ask for topics now (")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (TopicAuthorizationFailedError("events"), "access control lists"),
        (ClusterAuthorizationFailedError(), "kafka.sasl_username"),
        (TransactionalIdAuthorizationFailed("headwater/events/0"), "access control lists"),
        (UnsupportedVersionError(), "upgrade it"),
        (InvalidGroupIdError(), "the broker's log"),
    ],
)
def test_what_the_broker_refuses_says_what_to_do(error: BrokerResponseError, advice: str) -> None:
    told = as_ours(error, "do it")
    assert isinstance(told, ConfigurationError)
    assert advice in str(told)
    assert type(error).__name__ in str(told)


@pytest.mark.parametrize("error", [IllegalStateError("not assigned"), KeyError("bug")])
def test_a_bug_stays_one(error: Exception) -> None:
    assert as_ours(error, "do it") is error


class Admin:
    """Stands for aiokafka's admin client; every request fails."""

    closed = False
    fault: KafkaError | TimeoutError

    async def start(self) -> None: ...

    async def close(self) -> None:
        self.closed = True

    async def list_topics(self) -> list[str]:
        raise self.fault


class NoCreator(Admin):
    async def list_topics(self) -> list[str]:
        return []

    async def create_topics(self, topics: list[object]) -> None:
        raise self.fault


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (KafkaConnectionError(), TransientError),
        (TimeoutError(), TransientError),
        (ClusterAuthorizationFailedError(), ConfigurationError),
        (UnsupportedVersionError(), ConfigurationError),
    ],
)
@pytest.mark.parametrize(("work", "admin"), [(missing_topics, Admin), (create_topics, NoCreator)])
def test_a_request_for_topics_that_fails_is_told(
    work: Any,
    admin: type[Admin],
    fault: KafkaError | TimeoutError,
    kind: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = admin()
    made.fault = fault

    def make(**_: Any) -> Admin:
        return made

    monkeypatch.setattr(connection, "AIOKafkaAdminClient", make)
    with pytest.raises(kind, match=type(fault).__name__):
        asyncio.run(work(KafkaSettings(), TopicsSettings()))
    assert made.closed
