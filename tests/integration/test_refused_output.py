"""The recommendations topic refuses what it is sent, and may take it later."""

import asyncio
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from tests.integration.running import Service, eventually
from tests.integration.traffic import Stream, make_stream, produce, recommendations, tally

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WITHIN_S = 120.0
# Enough to fill every place in which a batch waits for its acknowledgement.
EVENTS = 4_000


@pytest.fixture
def stream(kafka: str) -> Stream:
    return make_stream(kafka)


def require_replicas(stream: Stream, count: int) -> None:
    """With more than there are Kafka refuses every record for now, and gives out old ones."""

    async def alter() -> None:
        client = AIOKafkaAdminClient(bootstrap_servers=stream.bootstrap)
        await client.start()
        try:
            setting = {"min.insync.replicas": str(count)}
            topic = ConfigResource(ConfigResourceType.TOPIC, stream.recommendations, setting)
            await client.alter_configs([topic])
        finally:
            await client.close()

    asyncio.run(alter())


def test_it_goes_unready_ends_when_told_and_loses_nothing(stream: Stream, tmp_path: Path) -> None:
    with Service(stream, tmp_path) as service:
        expected = produce(stream, range(100))
        recommendations(stream, len(expected), WITHIN_S)
        require_replicas(stream, 2)
        expected += produce(stream, range(100, EVENTS))
        assert eventually(lambda: service.get("/readyz")[0] == 503, WITHIN_S)
        assert "Kafka has taken nothing for" in service.get("/readyz")[1]
        assert service.stop() == 0
    require_replicas(stream, 1)
    with Service(stream, tmp_path) as service:
        result = tally(recommendations(stream, len(expected), WITHIN_S), expected)
        assert eventually(service.is_ready, WITHIN_S)
    assert (result.missing, result.unexpected) == (0, 0)
