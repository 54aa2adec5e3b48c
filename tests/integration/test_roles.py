"""Replicas share the partitions; one process trains for all; a member may come back as itself."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.running import Service
from tests.integration.traffic import (
    Message,
    Stream,
    make_stream,
    produce,
    recommendations,
    tally,
)

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WITHIN_S = 120.0
TRAIN = {"HEADWATER_ROLES": '["train"]'}
SCORE = {
    "HEADWATER_ROLES": '["score"]',
    "HEADWATER_STORAGE__SNAPSHOT_EVERY_S": "1",
    "HEADWATER_SCORER__EXCLUDE_SEEN": "true",
}


@pytest.fixture
def stream(kafka: str) -> Stream:
    return make_stream(kafka)


def owned(service: Service) -> float:
    return service.metric("headwater_assigned_partitions")


def first_answers(messages: list[Message]) -> dict[str, list[int]]:
    """By user, the offsets of the events in the order in which each was first answered."""
    seen: set[str] = set()
    found: dict[str, list[int]] = {}
    for message in messages:
        if message.rec_id not in seen:
            seen.add(message.rec_id)
            user = (message.key or b"").decode()
            found.setdefault(user, []).append(int(message.rec_id.rsplit("/", 1)[1]))
    return found


def test_replicas_come_and_go_while_another_process_trains(stream: Stream, tmp_path: Path) -> None:
    with (
        ThreadPoolExecutor(1) as background,
        Service(stream, tmp_path, TRAIN) as trainer,
        Service(stream, tmp_path, SCORE) as first,
    ):
        assert owned(trainer) == owned(first) == 4
        producing = background.submit(produce, stream, range(4_000), 100)
        with Service(stream, tmp_path, SCORE) as second:
            second.wait_for(lambda: owned(second) == owned(first) == 2, "its share", WITHIN_S)
            second.wait_for_version(after=1)
            answered = second.metric("headwater_events_total", outcome="scored")
            second.wait_for(
                lambda: second.metric("headwater_events_total", outcome="scored") > answered,
                "answers",
                WITHIN_S,
            )
            assert not producing.done()
            left_with = second.version()
            second.kill()
        first.wait_for(lambda: owned(first) == 4, "what the other had", WITHIN_S)
        expected = producing.result(WITHIN_S)
        messages = recommendations(stream, len(expected), WITHIN_S)
        result = tally(messages, expected)
        first.wait_for(lambda: first.version() == trainer.version(), "newest version", WITHIN_S)
        assert first.version() > left_with
        assert trainer.metric("headwater_events_total", outcome="scored") == 0
        assert trainer.metric("headwater_trained_events_total") > 0
        assert first.metric("headwater_trained_events_total") == 0
        assert first.worker_pid() is None
    assert (result.missing, result.unexpected) == (0, 0)
    for offsets in first_answers(messages).values():
        assert offsets == sorted(offsets)
    # Seen items stay out, whoever answered: histories moved with their partitions.
    for message in messages:
        recommendation = message.recommendation()
        assert recommendation.event.item_id not in {one.item_id for one in recommendation.items}


def test_a_replica_waits_for_a_first_version(stream: Stream, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as background:
        starting = background.submit(Service(stream, tmp_path / "score", SCORE).__enter__)
        scorer = None
        with Service(stream, tmp_path / "score", TRAIN):
            scorer = starting.result(WITHIN_S)
            expected = produce(stream, range(20))
            result = tally(recommendations(stream, 20, WITHIN_S), expected)
        assert scorer.stop() == 0
    assert (result.missing, result.duplicates) == (0, 0)


def test_a_member_with_an_instance_id_comes_back_to_its_partitions(
    stream: Stream, tmp_path: Path
) -> None:
    def member(name: str) -> Service:
        return Service(
            stream,
            tmp_path / name,
            {
                "HEADWATER_KAFKA__GROUP_INSTANCE_ID": name,
                "HEADWATER_KAFKA__SESSION_TIMEOUT_S": "60",  # longer than a start takes
            },
        )

    with member("one") as one:
        with member("two") as two:
            one.wait_for(lambda: owned(one) == owned(two) == 2, "halves", WITHIN_S)
            rebalances = one.metric("headwater_rebalances_total")
        with member("two") as two:
            two.wait_for(lambda: owned(two) == 2, "its half", WITHIN_S)
            expected = produce(stream, range(200))
            result = tally(recommendations(stream, 200, WITHIN_S), expected)
        assert one.metric("headwater_rebalances_total") == rebalances
    assert (result.missing, result.unexpected, result.duplicates) == (0, 0, 0)
