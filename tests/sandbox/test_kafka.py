import socket

import pytest

from service.errors import ConfigurationError
from service.sandbox.broker_files import server_properties
from service.sandbox.kafka import LocalKafka


def test_given_properties_replace_ours() -> None:
    lines = server_properties(1, 2, {"auto.create.topics.enable": "true", "num.io.threads": "2"})
    properties = dict(line.split("=", 1) for line in lines.splitlines())
    assert properties["auto.create.topics.enable"] == "true"
    assert properties["num.io.threads"] == "2"
    assert properties["advertised.listeners"] == "PLAINTEXT://127.0.0.1:1"


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} is in use"):
            LocalKafka(port=port).start()


def test_the_address_is_not_known_before_a_port_is_chosen() -> None:
    with pytest.raises(RuntimeError, match="chosen at start"):
        _ = LocalKafka().bootstrap
    assert LocalKafka(port=9092).bootstrap == "127.0.0.1:9092"


def test_stopping_what_never_ran_does_nothing() -> None:
    broker = LocalKafka()
    broker.stop()
    broker.kill()
    assert broker.pid is None
