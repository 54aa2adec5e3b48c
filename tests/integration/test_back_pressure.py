"""While training is behind the source is paused, and what waits in Kafka is told."""

import os
import signal
from pathlib import Path

import pytest

from service.registry.manifest import Origin
from tests.integration.running import Service
from tests.integration.traffic import Stream, make_stream, produce, recommendations, tally

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.slow]

WITHIN_S = 90.0


@pytest.fixture
def stream(kafka: str) -> Stream:
    return make_stream(kafka)


def lag(service: Service) -> float:
    return sum(
        service.metric("headwater_lag_records", partition=str(partition)) for partition in range(4)
    )


def read(service: Service) -> float:
    return service.metric("headwater_events_total", outcome="scored")


def test_the_lag_grows_while_the_source_is_paused(stream: Stream, tmp_path: Path) -> None:
    little_room = {
        "HEADWATER_BATCH__TRAIN_MAX_EVENTS": "50",
        "HEADWATER_BATCH__MAX_UNTRAINED_EVENTS": "200",
        "HEADWATER_TRAINER__RESTART__SILENT_AFTER_S": "600",
    }
    with Service(stream, tmp_path, little_room) as service:
        worker = service.ready_worker()
        os.kill(worker, signal.SIGSTOP)
        try:
            expected = produce(stream, range(1_000))
            service.wait_for(
                lambda: service.metric("headwater_source_paused") == 1, "pause", WITHIN_S
            )
            service.wait_for(lambda: lag(service) == 1_000 - read(service), "lag", WITHIN_S)
            assert lag(service) > 0
            expected += produce(stream, range(1_000, 1_300))
            service.wait_for(lambda: lag(service) == 1_300 - read(service), "more lag", WITHIN_S)
            assert service.metric("headwater_source_paused") == 1
        finally:
            os.kill(worker, signal.SIGCONT)
        service.wait_for(lambda: lag(service) == 0, "the end of the lag", WITHIN_S)
        result = tally(recommendations(stream, len(expected), WITHIN_S), expected)
    assert (result.missing, result.unexpected, result.duplicates) == (0, 0, 0)


def test_a_gate_that_lets_nothing_through_does_not_stop_the_stream(
    stream: Stream, tmp_path: Path
) -> None:
    little_room = {
        "HEADWATER_BATCH__TRAIN_MAX_EVENTS": "50",
        "HEADWATER_BATCH__MAX_UNTRAINED_EVENTS": "200",
        "HEADWATER_TRAINER__GATE__MIN_ROWS": "100000",
        "HEADWATER_TRAINER__HOLDOUT__WINDOW_ROWS": "100000",
    }
    with Service(stream, tmp_path, little_room) as service:
        expected = produce(stream, range(1_000))
        result = tally(recommendations(stream, len(expected), WITHIN_S), expected)
        assert (result.missing, result.unexpected, result.duplicates) == (0, 0, 0)
        manifests = service.manifests()
        origins = {one.origin for one in manifests}
        assert Origin.SETTLED in origins
        assert Origin.TRAINED not in origins
        given_up = sum(one.given_up for one in manifests)
        assert service.metric("headwater_skipped_sequences_total") >= given_up > 0
