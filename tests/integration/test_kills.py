"""Killed, frozen, stopped and started again: no event goes without its recommendation."""

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest

from tests.integration.running import (
    Service,
    children,
    eventually,
    is_gone,
    shared_memory_of,
)
from tests.integration.traffic import (
    Stream,
    dead_letters,
    event,
    make_stream,
    produce,
    recommendations,
    send,
    tally,
)

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.slow]

REPORT = Path("reports/worker-kills.json")
WITHIN_S = 120.0


@pytest.fixture
def stream(kafka: str) -> Stream:
    return make_stream(kafka)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def show(figures: Mapping[str, object]) -> None:
    print(json.dumps(figures))  # noqa: T201  # with `pytest -s`: what came of it, in figures


def recommended(service: Service) -> float:
    return service.metric("headwater_events_total", outcome="scored")


def has_recommended(service: Service, events: int) -> bool:
    return recommended(service) > events


def test_killing_the_worker_twice_loses_no_recommendation(stream: Stream, tmp_path: Path) -> None:
    """Two halves of 5,000 events at 500/s, a kill in the middle of each. The second half
    waits for the worker of the first kill to publish, however slow the machine is."""
    quick_restart = {"HEADWATER_TRAINER__RESTART__FIRST_DELAY_S": "0.1"}
    halves: list[list[str]] = []
    published: list[int] = []
    seconds_to_version: list[float] = []
    worker: int | None = None
    with Service(stream, tmp_path, quick_restart) as service, ThreadPoolExecutor(1) as background:
        for start in (0, 5_000):
            worker = service.ready_worker(besides=worker)
            producing = background.submit(produce, stream, range(start, start + 5_000), 500)
            mid = start + 1_000
            service.wait_for(partial(has_recommended, service, mid), "events", WITHIN_S)
            os.kill(worker, signal.SIGKILL)
            killed_ms = now_ms()
            assert not producing.done()
            halves.append(producing.result(WITHIN_S))
            service.wait_for(
                partial(service.versions_since, killed_ms), "a version after the kill", WITHIN_S
            )
            seconds_to_version.append((now_ms() - killed_ms) / 1000)
            published.append(len(service.versions_since(killed_ms)))
        messages = recommendations(stream, 10_000, WITHIN_S)
        service.wait_for(
            lambda: service.metric("headwater_untrained_events") == 0, "all trained on", WITHIN_S
        )
        letters = dead_letters(stream, 0, 5)
        restarts = service.metric("headwater_worker_restarts_total")

    result = tally(messages, [*halves[0], *halves[1]])
    gaps = [
        tally([one for one in messages if one.rec_id in half], half).longest_gap_s
        for half in map(frozenset, halves)
    ]
    told = asdict(result) | {
        "longest_gap_s": max(gaps),  # within a half: between them nothing is produced
        "dead_letters": len(letters),
        "worker_restarts": int(restarts),
        "seconds_from_kill_to_next_version": seconds_to_version,
    }
    show(told)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    assert (result.distinct, result.missing, result.unexpected) == (10_000, 0, 0)
    assert result.duplicates == 0
    assert not letters
    assert restarts == 2
    assert all(published)


def test_sigterm_mid_stream_leaves_exactly_the_rest(stream: Stream, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as background:
        with Service(stream, tmp_path) as service:
            producing = background.submit(produce, stream, range(3_000), 1_000)
            service.wait_for(lambda: recommended(service) > 500, "recommendations", WITHIN_S)
            asked_s = time.monotonic()
            assert service.stop() == 0, service.words()
            took_s = time.monotonic() - asked_s
            assert "Traceback" not in service.text()
        answered = len(recommendations(stream, 1, 20))
        expected = producing.result(WITHIN_S)
        with Service(stream, tmp_path):
            result = tally(recommendations(stream, len(expected), WITHIN_S), expected)

    show(asdict(result) | {"stopped_in_s": round(took_s, 2), "answered_before": answered})
    assert 500 < answered < 3_000
    assert took_s < 15
    assert (result.missing, result.unexpected, result.duplicates) == (0, 0, 0)


def test_a_killed_service_leaves_nothing_behind_and_loses_nothing(
    stream: Stream, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(1) as background:
        with Service(stream, tmp_path) as service:
            service.ready_worker()
            producing = background.submit(produce, stream, range(3_000), 1_000)
            service.wait_for(lambda: recommended(service) > 500, "recommendations", WITHIN_S)
            helpers, segments = children(service.pid), shared_memory_of(service.pid)
            helpers.append(service.ready_worker())
            assert len(segments) == 4  # one for each partition
            service.kill()
        assert eventually(lambda: all(map(is_gone, helpers)), 20)
        assert eventually(lambda: not any(Path("/dev/shm", name).exists() for name in segments), 20)
        expected = producing.result(WITHIN_S)
        with Service(stream, tmp_path):
            messages = recommendations(stream, len(expected), WITHIN_S)

    result = tally(messages, expected)
    show(asdict(result))
    assert (result.missing, result.unexpected) == (0, 0)
    causes = {(one.rec_id, one.recommendation().event.event_id) for one in messages}
    assert len(causes) == len(expected)  # a duplicate answers the same event under the same id


def test_a_frozen_worker_is_replaced_while_scoring_goes_on(stream: Stream, tmp_path: Path) -> None:
    impatient = {
        "HEADWATER_TRAINER__RESTART__HEARTBEAT_S": "0.5",
        "HEADWATER_TRAINER__RESTART__SILENT_AFTER_S": "6",
        "HEADWATER_TRAINER__RESTART__FIRST_DELAY_S": "0.1",
    }
    with Service(stream, tmp_path, impatient) as service:
        frozen = service.ready_worker()
        expected = produce(stream, range(500))
        os.kill(frozen, signal.SIGSTOP)
        moment_ms = now_ms()
        expected += produce(stream, range(500, 1_000))
        result = tally(recommendations(stream, len(expected), WITHIN_S), expected)
        assert result.missing == 0

        service.wait_for(lambda: is_gone(frozen), "end of the frozen worker", WITHIN_S)
        service.ready_worker(besides=frozen)
        expected += produce(stream, range(1_000, 1_500))
        service.wait_for(
            lambda: bool(service.versions_since(moment_ms)), "a version of the next", WITHIN_S
        )
        result = tally(recommendations(stream, len(expected), WITHIN_S), expected)
    assert (result.missing, result.unexpected, result.duplicates) == (0, 0, 0)


def test_workers_outlive_what_they_are_forked_from(stream: Stream, tmp_path: Path) -> None:
    with Service(stream, tmp_path) as service:
        first = service.ready_worker()
        os.kill(service.template_pid(), signal.SIGSTOP)
        os.kill(first, signal.SIGKILL)
        second = service.ready_worker(besides=first)
        os.kill(service.template_pid(), signal.SIGKILL)
        moment_ms = now_ms()
        expected = produce(stream, range(500))
        service.wait_for(
            lambda: bool(service.versions_since(moment_ms)), "a version of the second", WITHIN_S
        )
        os.kill(second, signal.SIGSTOP)
        assert service.stop() == 0, service.words()
        assert eventually(lambda: is_gone(second), 20)
        result = tally(recommendations(stream, len(expected), WITHIN_S), expected)
    assert (result.missing, result.unexpected, result.duplicates) == (0, 0, 0)


def test_a_second_process_joins_and_leaves_the_group(stream: Stream, tmp_path: Path) -> None:
    enough = threading.Event()
    numbers = itertools.takewhile(lambda _: not enough.is_set(), itertools.count())
    with ThreadPoolExecutor(1) as background, Service(stream, tmp_path / "one") as one:
        producing = background.submit(produce, stream, numbers, 200)
        try:
            with Service(stream, tmp_path / "two") as two:
                one.wait_for(lambda: owned(one) == owned(two) == 2, "halves", WITHIN_S)
                two.wait_for(partial(has_recommended, two, 200), "answers by both", WITHIN_S)
            one.wait_for(lambda: owned(one) == 4, "all partitions again", WITHIN_S)
        finally:
            enough.set()
        expected = producing.result(WITHIN_S)
        expected.append(send(stream, b"user-1", json.dumps(event(1)).encode()))
        result = tally(recommendations(stream, len(expected), WITHIN_S), expected)
    show(asdict(result))
    assert (result.missing, result.unexpected, result.duplicates) == (0, 0, 0)


def owned(service: Service) -> float:
    return service.metric("headwater_assigned_partitions")
