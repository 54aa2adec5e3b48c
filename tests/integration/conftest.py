"""What the tests against a real Kafka share."""

import os
from collections.abc import Iterator

import pytest

from service.sandbox.kafka import LocalKafka
from service.settings import ENV_TEST_KAFKA


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
