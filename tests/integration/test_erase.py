"""A user is forgotten: in histories, held-out rows, snapshots, and in what was recommended."""

import threading
from pathlib import Path

import numpy as np
import orjson
import pytest
from safetensors.numpy import load_file

from service.domain import UserId, user_key
from service.state.snapshot_parts import decode
from tests.integration.running import Service, headwater
from tests.integration.traffic import (
    COMMITTED,
    USERS,
    Message,
    Stream,
    answers,
    make_stream,
    produce,
    send,
)

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PARTITIONS = 2
WITHIN_S = 120.0
OFTEN = {
    "HEADWATER_STORAGE__SNAPSHOT_EVERY_S": "1",
    "HEADWATER_TRAINER__HOLDOUT__WINDOW_ROWS": "1000",
}


@pytest.fixture
def stream(kafka: str) -> Stream:
    return make_stream(kafka, PARTITIONS)


def key_of(user: int) -> int:
    return user_key(UserId(f"user-{user}"))


def bytes_of(user: int) -> bytes:
    return key_of(user).to_bytes(8, "little", signed=True)


def snapshot_parts(service: Service) -> list[bytes]:
    """Of all snapshots, whether finished or not."""
    while True:
        try:
            files = list((service.storage / "snapshots").rglob("part-*.safetensors"))
            return [file.read_bytes() for file in files]
        except FileNotFoundError:  # one was removed just now
            continue


def snapshot_users(service: Service) -> dict[int, int]:
    """Users in the parts of all snapshots, and the most events that one of them has of each."""
    found: dict[int, int] = {}
    for part in map(decode, snapshot_parts(service)):
        for user, events in zip(part.user.tolist(), part.events.tolist(), strict=True):
            found[user] = max(found.get(user, 0), events)
    return found


def is_in_snapshots(service: Service, user: int) -> bool:
    """Whether the bytes of a user's key stand anywhere in a part."""
    return any(bytes_of(user) in part for part in snapshot_parts(service))


def trainer_file(service: Service, version: int) -> Path:
    return service.storage / "registry" / "versions" / f"{version:08d}" / "trainer.safetensors"


def held_users(service: Service) -> set[int]:
    """Numbers of the users with rows in the newest version's holdout."""
    held = load_file(trainer_file(service, service.manifests()[-1].version)).get("holdout.user")
    keys = np.zeros(0, np.int64) if held is None else held
    return {user for user in range(USERS) if key_of(user) in keys}


def trained(service: Service) -> dict[int, int]:
    """Up to where the newest version was trained."""
    return {int(one): at for one, at in service.manifests()[-1].trained_through.items()}


def is_past(offsets: dict[int, int], rec_ids: list[str]) -> bool:
    for rec_id in rec_ids:
        _, partition, offset = rec_id.rsplit("/", 2)
        if offsets.get(int(partition), 0) <= int(offset):
            return False
    return True


def of_user(messages: list[Message], user: int) -> list[Message]:
    return [one for one in messages if one.key == f"user-{user}".encode()]


def erase(service: Service, user: int) -> str:
    done = headwater(["erase", f"user-{user}", "--wait", "60"], service.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_user_is_forgotten_everywhere_while_training_goes_on(
    stream: Stream, tmp_path: Path
) -> None:
    with Service(stream, tmp_path, OFTEN) as service:
        produce(stream, range(5 * USERS))
        service.wait_for(lambda: held_users(service), "held-out rows in a version", WITHIN_S)
        gone = min(held_users(service))
        other = max(held_users(service))
        service.wait_for(lambda: is_in_snapshots(service, gone), "the user in a snapshot", WITHIN_S)

        numbers = [one for one in range(5 * USERS, 30 * USERS) if one % USERS != gone]
        traffic = threading.Thread(target=produce, args=(stream, numbers, 300))
        traffic.start()
        # The last of them are still waiting for training.
        own = produce(stream, [gone + turn * USERS for turn in range(5, 8)])
        said = erase(service, gone)
        assert "tombstone" in said
        assert "until 10 newer ones are published (registry.keep_versions)" in said
        assert "for 7 days (its retention.ms)" in said
        traffic.join()
        after = produce(stream, [number for number in range(USERS) if number != gone])

        service.wait_for(lambda: is_past(trained(service), after), "a later version", WITHIN_S)
        newest = trainer_file(service, service.manifests()[-1].version)
        assert bytes_of(other) in newest.read_bytes()
        assert bytes_of(gone) not in newest.read_bytes()

        service.wait_for(lambda: not is_in_snapshots(service, gone), "clean snapshots", WITHIN_S)
        users = snapshot_users(service)
        assert set(users) == {key_of(user) for user in range(USERS) if user != gone}
        assert min(users.values()) >= 5
        assert service.metric("headwater_history_users") == USERS - 1

        total = 5 * USERS + len(own) + len(numbers) + len(after) + PARTITIONS
        messages = answers(stream, total, WITHIN_S)
        assert len(messages) == total
        assert [one.value is None for one in of_user(messages, gone)] == [False] * 8 + [
            True
        ] * PARTITIONS
        assert sum(one.value is None for one in messages) == PARTITIONS
        service.kill()

    with Service(stream, tmp_path, OFTEN) as service:
        (again,) = produce(stream, [gone])
        service.wait_for(lambda: key_of(gone) in snapshot_users(service), "a snapshot", WITHIN_S)
        assert snapshot_users(service)[key_of(gone)] == 1
        assert service.metric("headwater_history_users") == USERS
        last = of_user(answers(stream, total + 1, WITHIN_S), gone)[-1]
        assert last.value is not None
        assert last.rec_id == again


def test_replica_and_trainer_forget_a_user_and_exactly_once_output_says_so(
    stream: Stream, tmp_path: Path
) -> None:
    score = OFTEN | {"HEADWATER_ROLES": '["score"]', "HEADWATER_KAFKA__DELIVERY": "exactly_once"}
    train = OFTEN | {"HEADWATER_ROLES": '["train"]'}
    with (
        Service(stream, tmp_path, train) as trainer,
        Service(stream, tmp_path, score) as replica,
    ):
        before = produce(stream, range(5 * USERS))
        trainer.wait_for(lambda: held_users(trainer), "held-out rows in a version", WITHIN_S)
        gone = min(held_users(trainer))
        replica.wait_for(lambda: is_in_snapshots(replica, gone), "the user in one", WITHIN_S)
        erase(replica, gone)
        numbers = [one for one in range(5 * USERS, 10 * USERS) if one % USERS != gone]
        after = produce(stream, numbers, 300)
        trainer.wait_for(lambda: is_past(trained(trainer), after), "a later version", WITHIN_S)
        newest = trainer_file(trainer, trainer.manifests()[-1].version)
        assert bytes_of(gone) not in newest.read_bytes()
        # Those of both groups.
        replica.wait_for(lambda: not is_in_snapshots(replica, gone), "clean ones", WITHIN_S)
        assert replica.metric("headwater_history_users") == USERS - 1
        assert trainer.metric("headwater_history_users") == USERS - 1
        total = len(before) + len(after) + PARTITIONS
        messages = answers(stream, total, WITHIN_S, COMMITTED)
    assert len(messages) == total
    assert [one.value is None for one in of_user(messages, gone)] == [False] * 5 + [
        True
    ] * PARTITIONS
    assert sum(one.value is None for one in messages) == PARTITIONS


def test_an_erasure_event_is_read_again_after_a_kill_before_the_next_snapshot(
    stream: Stream, tmp_path: Path
) -> None:
    with Service(stream, tmp_path) as service:
        produce(stream, range(3 * USERS))
        answers(stream, 3 * USERS, WITHIN_S)
        assert service.stop() == 0
        assert snapshot_users(service)[key_of(7)] == 3

    with Service(stream, tmp_path) as service:
        record = orjson.dumps({"user_id": "user-7", "event": "erase"})
        send(stream, b"user-7", record)
        service.wait_for(
            lambda: service.metric("headwater_events_total", outcome="erased"), "erased", WITHIN_S
        )
        assert service.metric("headwater_history_users") == USERS - 1
        service.kill()
        assert is_in_snapshots(service, 7)

    with Service(stream, tmp_path) as service:
        produce(stream, [8])
        service.wait_for(lambda: not is_in_snapshots(service, 7), "clean snapshots", WITHIN_S)
        service.wait_for(
            lambda: service.metric("headwater_history_users") == USERS - 1, "one less", WITHIN_S
        )
        messages = answers(stream, 3 * USERS + 2, WITHIN_S)
        assert of_user(messages, 7)[-1].value is None
        assert of_user(messages, 8)[-1].value is not None
