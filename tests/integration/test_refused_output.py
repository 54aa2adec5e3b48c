"""Kafka takes nothing for a while: the service says so, ends when told to, and loses nothing."""

from pathlib import Path

import pytest

from service.sandbox.kafka import LocalKafka
from tests.integration.running import Service, eventually
from tests.integration.traffic import make_stream, produce, recommendations, tally

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WITHIN_S = 120.0
EVENTS = 10_000  # more than are answered before the broker stands still


def test_it_goes_unready_and_ends_when_told(tmp_path: Path) -> None:
    with LocalKafka(tmp_path / "kafka") as broker:
        stream = make_stream(broker.bootstrap)
        with Service(stream, tmp_path / "service") as service:
            expected = produce(stream, range(EVENTS))
            service.wait_for(
                lambda: service.metric("headwater_events_total", outcome="scored") > 100,
                "events under way",
                WITHIN_S,
            )
            broker.pause()
            try:
                assert eventually(lambda: service.get("/readyz")[0] == 503, WITHIN_S)
                assert "Kafka has taken nothing for" in service.get("/readyz")[1]
                assert service.metric("headwater_events_total", outcome="scored") < EVENTS
                assert service.stop() == 0
            finally:
                broker.resume()
        with Service(stream, tmp_path / "service") as service:
            result = tally(recommendations(stream, EVENTS, WITHIN_S), expected)
            assert eventually(service.is_ready, WITHIN_S)
    assert (result.missing, result.unexpected) == (0, 0)
