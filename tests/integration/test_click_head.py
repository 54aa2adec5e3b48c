"""Impressions with labels, on a broker, to a click head in versions that a restart goes on from."""

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from torch import Tensor

from service.domain import Version
from service.registry.registry import Registry
from service.settings import RegistrySettings
from tests.integration.running import Service
from tests.integration.traffic import (
    Stream,
    event,
    make_stream,
    produce,
    recommendations,
    tally,
)

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WITHIN_S = 120.0
WITH_A_HEAD = {"HEADWATER_CLICK__ENABLED": "true"}


@pytest.fixture
def stream(kafka: str) -> Stream:
    return make_stream(kafka)


def show(stream: Stream, numbers: Iterable[int]) -> None:
    """Every third item that is shown is clicked."""

    async def append() -> None:
        async with AIOKafkaProducer(bootstrap_servers=stream.bootstrap, linger_ms=2) as producer:
            sent = []
            for number in numbers:
                one = event(number) | {
                    "event": "impression",
                    "value": int(number % 3 == 0),
                    "event_id": f"shown-{number}",
                }
                key = str(one["user_id"]).encode()
                sent.append(await producer.send(stream.events, json.dumps(one).encode(), key=key))
            await asyncio.gather(*sent)

    asyncio.run(append())


def counted(service: Service) -> tuple[float, float]:
    """Labels and clicks of all items, as the newest version has counted them."""
    registry = Registry(service.storage / "registry", RegistrySettings())
    _, artifact = registry.load(Version(service.version()))
    found: Tensor | None = artifact.weights.get("click.tally")  # the very first has no head
    return (0.0, 0.0) if found is None else (float(found[:, 1].sum()), float(found[:, 2].sum()))


def wait_for_labels(service: Service, more_than: float) -> None:
    service.wait_for(
        lambda: counted(service)[0] > more_than, f"{more_than} labels in a version", WITHIN_S
    )


def test_a_head_learns_over_restarts(stream: Stream, tmp_path: Path) -> None:
    expected: list[str] = []
    before = 0.0
    for start in (0, 1_000):
        with Service(stream, tmp_path, WITH_A_HEAD) as service:
            show(stream, range(start, start + 600))
            expected += produce(stream, range(start, start + 1_000))
            wait_for_labels(service, before + 300)
            labels, clicks = counted(service)
            assert clicks == pytest.approx(labels / 3, rel=0.2)
            assert service.metric("headwater_click_labels_total") > 0
            before = labels
    result = tally(recommendations(stream, len(expected), WITHIN_S), expected)
    assert (result.missing, result.unexpected) == (0, 0)  # what is shown is not answered
