"""With exactly-once output a reader of what is committed finds each recommendation once, however
the service ends."""

import hashlib
import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import Consumer

from service.sandbox.kafka import LocalKafka
from tests.integration.running import Service
from tests.integration.traffic import (
    COMMITTED,
    Stream,
    answer,
    dead_letters,
    event,
    is_transaction_held_open,
    make_stream,
    produce,
    recommendations,
    send,
    tally,
)

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.slow]

ONCE = {"HEADWATER_KAFKA__DELIVERY": "exactly_once"}
WITHIN_S = 120.0
SESSION_S = 6.0  # as the tests' services have it
MIB = 1024 * 1024


@pytest.fixture
def stream(kafka: str) -> Stream:
    return make_stream(kafka)


def show(figures: Mapping[str, object]) -> None:
    print(json.dumps(figures))  # noqa: T201  # with `pytest -s`: what came of it, in figures


def recommended(service: Service) -> float:
    return service.metric("headwater_events_total", outcome="scored")


def owned(service: Service) -> float:
    return service.metric("headwater_assigned_partitions")


def has_committed(service: Service, transactions: int) -> bool:
    return service.metric("headwater_commits_total", result="committed") > transactions


@contextmanager
def load(stream: Stream, per_s: float) -> Iterator[list[str]]:
    """Events at a steady rate meanwhile; at the end the rec_ids that must answer them."""
    enough = threading.Event()
    numbers = itertools.takewhile(lambda _: not enough.is_set(), itertools.count())
    expected: list[str] = []
    with ThreadPoolExecutor(1) as background:
        producing = background.submit(produce, stream, numbers, per_s)
        try:
            yield expected
        finally:
            enough.set()
            expected += producing.result(WITHIN_S)


def freeze_mid_transaction(service: Service, stream: Stream) -> None:
    """SIGSTOP, at a moment at which it holds a transaction open."""
    deadline_s = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline_s:
        os.kill(service.pid, signal.SIGSTOP)
        if is_transaction_held_open(stream):
            return
        os.kill(service.pid, signal.SIGCONT)
        time.sleep(0.05)
    raise AssertionError(f"held no transaction open:\n{service.words()}")


def assert_once(stream: Stream, expected: list[str]) -> int:
    """As aiokafka reads it, and as another client does. Gives the records that were aborted."""
    messages = recommendations(stream, len(expected), WITHIN_S, COMMITTED)
    result = tally(messages, expected)
    all_there_is = recommendations(stream, len(expected), WITHIN_S)
    aborted = len(all_there_is) - len(messages)
    show(asdict(result) | {"aborted": aborted})
    assert (result.missing, result.unexpected, result.duplicates) == (0, 0, 0)
    assert Counter(read_by_another(stream, len(expected))) == Counter(expected)
    # A user's events are in order only where they are of one partition.
    users: dict[tuple[bytes | None, str], list[int]] = {}
    for message in messages:
        place, offset = message.rec_id.rsplit("/", 1)
        users.setdefault((message.key, place), []).append(int(offset))
    assert all(offsets == sorted(offsets) for offsets in users.values())
    return aborted


def read_by_another(stream: Stream, count: int) -> list[str]:
    """The committed rec_ids by librdkafka, some time past the last."""
    consumer = Consumer(
        {
            "bootstrap.servers": stream.bootstrap,
            "group.id": f"{stream.name}-reader",
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([stream.recommendations])
    found: list[str] = []
    deadline_s = time.monotonic() + WITHIN_S
    try:
        while time.monotonic() < deadline_s:
            messages = consumer.consume(1_000, 2.0)
            found += [json.loads(one.value() or b"")["rec_id"] for one in messages]
            if not messages and len(found) >= count:
                break
    finally:
        consumer.close()
    return found


def test_killed_again_and_again_each_is_there_once(stream: Stream, tmp_path: Path) -> None:
    with load(stream, 100) as expected:
        for _ in range(3):
            with Service(stream, tmp_path, ONCE) as service:
                service.wait_for(partial(has_committed, service, 20), "transactions", WITHIN_S)
                freeze_mid_transaction(service, stream)
                service.kill()
    with Service(stream, tmp_path, ONCE):
        aborted = assert_once(stream, expected)
    assert aborted  # the kills hit what was under way


def test_a_member_joins_and_leaves(stream: Stream, tmp_path: Path) -> None:
    with Service(stream, tmp_path / "one", ONCE) as one:
        with load(stream, 200) as expected:
            with Service(stream, tmp_path / "two", ONCE) as two:
                one.wait_for(lambda: owned(one) == owned(two) == 2, "halves", WITHIN_S)
                two.wait_for(partial(has_committed, two, 20), "answers by both", WITHIN_S)
            one.wait_for(lambda: owned(one) == 4, "all partitions again", WITHIN_S)
        assert_once(stream, expected)


def test_a_member_that_slept_through_its_session_writes_nothing_more(
    stream: Stream, tmp_path: Path
) -> None:
    """It wakes with events at hand that the other has answered, and goes on as a new member."""
    with (
        Service(stream, tmp_path / "one", ONCE) as one,
        Service(stream, tmp_path / "two", ONCE) as two,
    ):
        one.wait_for(lambda: owned(one) == owned(two) == 2, "halves", WITHIN_S)
        with load(stream, 300) as expected:
            two.wait_for(partial(has_committed, two, 10), "answers by both", WITHIN_S)
            freeze_mid_transaction(two, stream)
            try:
                one.wait_for(lambda: owned(one) == 4, "all partitions", WITHIN_S)
                one.wait_for(partial(has_committed, one, 100), "transactions", WITHIN_S)
            finally:
                os.kill(two.pid, signal.SIGCONT)
            two.wait_for(lambda: owned(one) == owned(two) == 2, "halves again", WITHIN_S)
            before = two.metric("headwater_commits_total", result="committed")
            two.wait_for(partial(has_committed, two, int(before)), "new answers", WITHIN_S)
            fenced = two.metric("headwater_commits_total", result="fenced")
        aborted = assert_once(stream, expected)
    show({"fenced": fenced, "aborted": aborted})
    assert fenced + aborted


def test_a_broker_that_dies_and_comes_back_spoils_nothing(tmp_path: Path) -> None:
    with LocalKafka(tmp_path / "kafka") as broker:
        stream = make_stream(broker.bootstrap)
        with Service(stream, tmp_path / "service", ONCE) as service:
            with load(stream, 100) as expected:
                service.wait_for(partial(has_committed, service, 20), "transactions", WITHIN_S)
                broker.kill()
                broker.start()
                before = service.metric("headwater_commits_total", result="committed")
                service.wait_for(
                    partial(has_committed, service, int(before) + 20), "more", WITHIN_S
                )
            assert_once(stream, expected)


def test_a_dead_letter_that_is_refused_does_not_spoil_its_transaction(
    stream: Stream, tmp_path: Path
) -> None:
    value = b"v" * (20 * MIB)
    with Service(stream, tmp_path, ONCE):
        expected = [send(stream, b"ann", json.dumps(event(number)).encode()) for number in range(3)]
        refused = send(stream, b"ann", value, compression="gzip")
        expected += produce(stream, range(100))
        after = send(stream, b"ann", json.dumps(event(4)).encode())
        assert answer(stream, after).rec_id == after
        letters = dead_letters(stream, 1, WITHIN_S, COMMITTED)
        assert_once(stream, [*expected, after])
    assert [letter.origin for letter in letters] == [refused]
    assert letters[0].value == value[: 64 * 1024]
    digest = hashlib.sha256(value).hexdigest().encode()
    assert letters[0].headers["headwater-sha256"] == digest
