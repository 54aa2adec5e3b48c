"""What has to be set right is told at start: one line, exit code 2, no stack trace."""

import socket
from pathlib import Path

import pytest

from tests.integration.running import Environment, environment, headwater
from tests.integration.traffic import Stream

pytestmark = pytest.mark.integration


def refusal(stream: Stream, folder: Path, more: Environment) -> str:
    """The one line that `serve` ends with."""
    done = headwater(["serve"], environment(stream, folder / "storage", more))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("headwater: ")
    return lines[0]


def test_an_unreachable_broker(stream: Stream, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        line = refusal(
            stream,
            tmp_path,
            {
                "HEADWATER_KAFKA__BOOTSTRAP_SERVERS": address,
                "HEADWATER_KAFKA__CONNECT_TIMEOUT_S": "5",
            },
        )
    assert address in line
    assert "headwater sandbox" in line


@pytest.mark.parametrize(
    ("setting", "value", "asked_for"),
    [
        ("SSL_CA_FILE", "no-such-file.pem", "kafka.ssl_ca_file = no-such-file.pem"),
        ("SASL_PASSWORD", None, "kafka.sasl_username and kafka.sasl_password"),
        ("SASL_MECHANISM", "MD5", "kafka.sasl_mechanism"),
        ("SECURITY_PROTOCOL", "TLS", "kafka.security_protocol"),
    ],
)
def test_wrong_security_settings(
    setting: str, value: str | None, asked_for: str, stream: Stream, tmp_path: Path
) -> None:
    secured = {
        "SECURITY_PROTOCOL": "SASL_SSL",
        "SASL_USERNAME": "ann",
        "SASL_PASSWORD": "open-sesame",
        setting: value,
    }
    named = {f"HEADWATER_KAFKA__{name}": text for name, text in secured.items() if text is not None}
    assert asked_for in refusal(stream, tmp_path, named)


def test_a_missing_topic(stream: Stream, tmp_path: Path) -> None:
    line = refusal(stream, tmp_path, {"HEADWATER_TOPICS__EVENTS": "hw-not-there"})
    assert "hw-not-there" in line
    assert "headwater doctor --create" in line


def test_an_unknown_setting(stream: Stream, tmp_path: Path) -> None:
    line = refusal(stream, tmp_path, {"HEADWATER_KAFKA__BOOTSTRAP": "localhost:9092"})
    assert "unknown setting kafka.bootstrap" in line
    assert "headwater config" in line


def test_a_wrong_model_folder(stream: Stream, tmp_path: Path) -> None:
    absent = tmp_path / "no-model"
    backbone = f'{{"kind": "pretrained", "name": "{absent}"}}'
    line = refusal(stream, tmp_path, {"HEADWATER_MODEL__BACKBONE": backbone})
    assert str(absent) in line


def test_an_admin_port_that_is_taken(stream: Stream, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = refusal(stream, tmp_path, {"HEADWATER_ADMIN__PORT": str(port)})
    assert f"127.0.0.1:{port}" in line
    assert "admin.port" in line
