"""State comes back from snapshots: also what Kafka does not have any more."""

import asyncio
import re
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from confluent_kafka.admin import AdminClient

from tests.integration.running import Service
from tests.integration.traffic import (
    USERS,
    Stream,
    event,
    make_stream,
    produce,
    recommendations,
)

pytestmark = pytest.mark.integration

PARTITIONS = 2
WITHIN_S = 90.0
OFTEN = {"HEADWATER_STORAGE__SNAPSHOT_EVERY_S": "0.5", "HEADWATER_SCORER__EXCLUDE_SEEN": "true"}


@pytest.fixture
def stream(kafka: str) -> Stream:
    return make_stream(kafka, PARTITIONS)


async def delete_records(stream: Stream, before: dict[int, int]) -> None:
    """As retention does."""
    client = AIOKafkaAdminClient(bootstrap_servers=stream.bootstrap)
    await client.start()
    try:
        await client.delete_records(
            {
                TopicPartition(stream.events, partition): RecordsToDelete(before_offset=offset)
                for partition, offset in before.items()
            }
        )
    finally:
        await client.close()


def next_offsets(rec_ids: list[str]) -> dict[int, int]:
    """By partition, the one after the last of these."""
    last: dict[int, int] = {}
    for rec_id in rec_ids:
        _, partition, offset = rec_id.rsplit("/", 2)
        last[int(partition)] = max(last.get(int(partition), 0), int(offset) + 1)
    return last


def taken_up(service: Service) -> dict[int, tuple[int, int]]:
    """By partition: users restored, and the offset from which it reads."""
    found = re.findall(
        r"partition (\d+): (\d+) users found .*, reading from offset (\d+)", service.text()
    )
    return {int(partition): (int(users), int(offset)) for partition, users, offset in found}


def test_histories_outlive_retention(stream: Stream, tmp_path: Path) -> None:
    with Service(stream, tmp_path, OFTEN) as service:
        expected = produce(stream, range(2 * USERS))
        recommendations(stream, len(expected), WITHIN_S)
        # Until all is in a version: training reads what it does not have again.
        ends = next_offsets(expected)
        service.wait_for_version(after=1)
    asyncio.run(delete_records(stream, ends))

    with Service(stream, tmp_path, OFTEN) as service:
        begun = taken_up(service)
        assert sum(users for users, _ in begun.values()) == USERS
        (more,) = produce(stream, [2 * USERS])  # the third event of user 0
        found = recommendations(stream, len(expected) + 1, WITHIN_S)
        (answer,) = (one.recommendation() for one in found if one.rec_id == more)
        items = [item.item_id for item in answer.items]
        assert items
        # All three are seen: the first two are known from the snapshot alone.
        assert not {"item-0", "item-1", "item-2"} & set(items)
        assert service.metric("headwater_history_users") == USERS


def test_a_group_that_kafka_has_forgotten_goes_on_where_it_was(
    stream: Stream, tmp_path: Path
) -> None:
    """As after a week without a member: its committed offsets are gone."""
    with Service(stream, tmp_path, OFTEN):
        expected = produce(stream, range(USERS))
        recommendations(stream, len(expected), WITHIN_S)
    admin = AdminClient({"bootstrap.servers": stream.bootstrap})
    admin.delete_consumer_groups([stream.name])[stream.name].result(WITHIN_S)

    with Service(stream, tmp_path, OFTEN):
        expected += produce(stream, range(USERS, 2 * USERS))
        found = recommendations(stream, len(expected), WITHIN_S)
    assert sorted(one.rec_id for one in found) == sorted(expected)  # none of the first ones again


@pytest.mark.slow
def test_partitions_move_to_another_replica_with_what_kafka_no_longer_has(
    stream: Stream, tmp_path: Path
) -> None:
    train = {"HEADWATER_ROLES": '["train"]'}
    score = {"HEADWATER_ROLES": '["score"]', **OFTEN}
    with (
        Service(stream, tmp_path, train) as trainer,
        Service(stream, tmp_path, score) as first,
    ):
        expected = produce(stream, range(2 * USERS))
        recommendations(stream, len(expected), WITHIN_S)
        ends = next_offsets(expected)
        trainer.wait_for(lambda: trained(trainer) == ends, "trained", WITHIN_S)
        first.wait_for(lambda: snapshotted(first) == ends, "snapshots", WITHIN_S)
        asyncio.run(delete_records(stream, ends))
        with Service(stream, tmp_path, score) as second:
            second.wait_for(lambda: len(taken_up(second)) == 1, "its share", WITHIN_S)
            ((users, offset),) = taken_up(second).values()
            assert 0 < users < USERS
            assert offset in ends.values()
            more = produce(stream, range(2 * USERS, 3 * USERS))
            found = recommendations(stream, len(expected) + USERS, WITHIN_S)
            second.wait_for(
                lambda: second.metric("headwater_events_total", outcome="scored") == users,
                "answers",
                WITHIN_S,
            )
    # Nobody gets again what they have seen, though the first two events are in snapshots alone.
    seen: dict[str, set[str]] = {}
    for number in range(3 * USERS):
        one = event(number)
        seen.setdefault(str(one["user_id"]), set()).add(str(one["item_id"]))
    answers = [one.recommendation() for one in found if one.rec_id in set(more)]
    assert len(answers) == USERS
    for answer in answers:
        assert not seen[answer.user_id] & {item.item_id for item in answer.items}


def test_after_a_kill_only_what_followed_the_watermarks_is_read_again(
    stream: Stream, tmp_path: Path
) -> None:
    with Service(stream, tmp_path, OFTEN) as service:
        expected = produce(stream, range(5 * USERS))
        ends = kill_once_kept(service, stream, expected)

    with Service(stream, tmp_path, OFTEN) as service:
        begun = taken_up(service)
        assert sum(users for users, _ in begun.values()) == USERS
        assert {partition: offset for partition, (_, offset) in begun.items()} == ends


def test_a_repeat_of_what_came_before_a_kill_is_known(stream: Stream, tmp_path: Path) -> None:
    known = {**OFTEN, "HEADWATER_EVENTS__DEDUPLICATE": "1000"}
    with Service(stream, tmp_path, known) as service:
        first = produce(stream, range(2 * USERS))
        kill_once_kept(service, stream, first)

    with Service(stream, tmp_path, known) as service:
        produce(stream, range(20))
        (new,) = produce(stream, [2 * USERS])
        answers = recommendations(stream, len(first) + 1, WITHIN_S)
        service.wait_for(
            lambda: service.metric("headwater_events_total", outcome="duplicate") == 20,
            "the repeats in the metric",
            WITHIN_S,
        )
    assert {one.rec_id for one in answers} == {*first, new}


def kill_once_kept(service: Service, stream: Stream, rec_ids: list[str]) -> dict[int, int]:
    """kill -9 when all of these are answered, in a version and in snapshots; where they end."""
    recommendations(stream, len(rec_ids), WITHIN_S)
    ends = next_offsets(rec_ids)
    service.wait_for(lambda: trained(service) == ends, "trained", WITHIN_S)
    service.wait_for(lambda: snapshotted(service) == ends, "snapshots", WITHIN_S)
    service.kill()
    return ends


def trained(service: Service) -> dict[int, int]:
    """Up to where the newest version was trained."""
    return {int(one): at for one, at in service.manifests()[-1].trained_through.items()}


def snapshotted(service: Service) -> dict[int, int]:
    """Up to where each partition's newest snapshot reaches."""
    files = sorted((service.storage / "snapshots").glob("*/*/*/manifest.json"))
    return {int(file.parts[-3]): int(file.parts[-2].split("-")[0]) for file in files}
