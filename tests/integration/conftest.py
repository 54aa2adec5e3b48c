"""What the tests against a real Kafka share."""

import os
from collections.abc import Iterator

import pytest

from service.sandbox.kafka import LocalKafka
from service.settings import ENV_TEST_KAFKA
from tests.integration.running import Service
from tests.integration.traffic import Stream, make_stream


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """Bootstrap servers: those that the environment names, otherwise of a Kafka of our own.

    Shared by the whole session: use topics and groups of your own, and leave it running.
    """
    named = os.environ.get(ENV_TEST_KAFKA)
    if named:
        yield named
        return
    with LocalKafka() as broker:
        yield broker.bootstrap


@pytest.fixture(scope="module")
def stream(kafka: str) -> Stream:
    """Topics of a module's own."""
    return make_stream(kafka)


@pytest.fixture(scope="module")
def live(stream: Stream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Shared by a module whose tests only add records."""
    with Service(stream, tmp_path_factory.mktemp("live")) as service:
        yield service
