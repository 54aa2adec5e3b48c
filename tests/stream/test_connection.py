"""The client's log lines while a broker is away, and what a client is made with."""

import logging

import pytest
from pydantic import SecretStr

from service.settings import KafkaSettings, SecurityProtocol
from service.stream.connection import OncePer, client_arguments


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
