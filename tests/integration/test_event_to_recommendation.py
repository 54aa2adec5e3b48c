"""One live service: events become recommendations and weights, bad records dead letters."""

import json
import shutil
import subprocess
import time

import confluent_kafka
import orjson
import pytest

from service.domain import Partition
from service.registry.registry import Registry
from service.settings import RegistrySettings
from tests.integration.running import Service
from tests.integration.traffic import (
    Stream,
    answer,
    dead_letters,
    event,
    produce,
    recommendations,
    send,
    tally,
)

pytestmark = pytest.mark.integration

TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
WITHIN_S = 90.0


def test_an_event_comes_back_as_a_recommendation(live: Service, stream: Stream) -> None:
    one = event(1) | {"user_id": "ann", "event_id": "the-first"}
    rec_id = send(
        stream,
        b"some other key",
        json.dumps(one).encode(),
        [("traceparent", TRACE), ("tracestate", b"vendor=1")],
    )
    message = answer(stream, rec_id)

    told = message.recommendation()
    assert message.key == b"ann"
    assert told.user_id == "ann"
    assert told.event.event_id == "the-first"
    assert told.event.timestamp == one["timestamp"]
    assert told.model_version >= 1
    assert told.traceparent == TRACE.decode()
    assert told.tracestate == "vendor=1"
    assert message.headers == {"traceparent": TRACE, "tracestate": b"vendor=1"}


def test_events_reach_the_weights_that_serve(live: Service, stream: Stream) -> None:
    before, pid = live.version(), live.pid
    expected = produce(stream, range(2_000))
    last = {0: 0} | {
        int(place[1]): int(place[2]) for place in (one.rsplit("/", 2) for one in expected)
    }
    registry = Registry(live.storage / "registry", RegistrySettings())

    def is_learned() -> bool:
        version = live.version()
        if version <= before or version not in registry.versions():
            return False
        through = registry.manifest(registry.versions()[-1]).trained_through
        served = version == registry.versions()[-1]
        return served and all(through.get(Partition(p), 0) > o for p, o in last.items())

    live.wait_for(is_learned, "a version trained through the events", WITHIN_S)

    told = answer(stream, send(stream, b"ann", json.dumps(event(2)).encode())).recommendation()
    assert told.model_version > before
    assert all(told.trained_through[str(p)] > offset for p, offset in last.items())
    assert len(told.items) == 10
    assert [item.score for item in told.items] == sorted(
        (item.score for item in told.items), reverse=True
    )
    result = tally(recommendations(stream, len(expected), WITHIN_S), expected)
    assert result.missing == 0
    assert live.pid == pid
    assert live.running.poll() is None
    assert live.metric("headwater_gate_decisions_total", verdict="promote") >= 1
    assert live.metric("headwater_event_to_weights_seconds_count") >= 1


def test_what_cannot_become_an_event_is_a_dead_letter(live: Service, stream: Stream) -> None:
    good = event(3)
    ahead_ms = good["timestamp"] + 10_800_000 if isinstance(good["timestamp"], int) else 0
    cases: dict[bytes, tuple[bytes | None, str]] = {
        b"not-json": (b"{broken", "malformed"),
        b"not-utf8": (b'{"user_id": "\xff"}', "malformed"),
        b"not-an-object": (b"[1, 2]", "malformed"),
        b"empty": (b"", "malformed"),
        b"tombstone": (None, "malformed"),
        b"no-user": (json.dumps({"item_id": "i", "event": "view"}).encode(), "invalid"),
        b"wrong-type": (json.dumps(good | {"timestamp": "soon"}).encode(), "invalid"),
        b"kind": (json.dumps(good | {"event": "teleport"}).encode(), "unknown_kind"),
        b"large": (json.dumps(good | {"context": {"pad": "x" * 70_000}}).encode(), "oversized"),
        b"future": (json.dumps(good | {"timestamp": ahead_ms}).encode(), "future"),
    }
    origins = {
        key: send(stream, key, value, [("source", b"test")]) for key, (value, _) in cases.items()
    }
    after = [send(stream, f"k{n}".encode(), json.dumps(event(n)).encode()) for n in range(8)]

    letters = {one.key: one for one in dead_letters(stream, len(cases), WITHIN_S)}
    assert letters.keys() == cases.keys()
    for key, (value, reason) in cases.items():
        letter = letters[key]
        assert letter.value == value, key
        assert letter.headers["headwater-reason"] == reason.encode(), key
        assert letter.origin == origins[key]
        assert letter.headers["headwater-detail"]
        assert int(letter.headers["headwater-timestamp"]) > 0
        assert letter.headers["source"] == b"test"
    came = {answer(stream, rec_id).rec_id for rec_id in after}
    assert came == set(after)  # the stream moves on
    assert live.metric("headwater_dead_letters_total", reason="malformed") == 5


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_a_second_independent_client_produces_and_reads(
    live: Service, stream: Stream, compression: str
) -> None:

    reader = confluent_kafka.Consumer(
        {
            "bootstrap.servers": stream.bootstrap,
            "group.id": f"{stream.name}-{compression}",
            "auto.offset.reset": "earliest",
        }
    )
    reader.subscribe([stream.recommendations])
    placed: list[str] = []

    def delivered(error: object, message: confluent_kafka.Message) -> None:
        assert error is None
        placed.append(f"{message.topic()}/{message.partition()}/{message.offset()}")

    writer = confluent_kafka.Producer(
        {"bootstrap.servers": stream.bootstrap, "compression.type": compression}
    )
    for number in range(100):
        one = event(number) | {"user_id": f"librdkafka-{number % 10}"}
        writer.produce(
            stream.events,
            json.dumps(one).encode(),
            key=str(one["user_id"]).encode(),
            on_delivery=delivered,
        )
    assert writer.flush(WITHIN_S) == 0
    assert len(placed) == 100

    missing = set(placed)
    deadline_s = time.monotonic() + WITHIN_S
    try:
        while missing and time.monotonic() < deadline_s:
            found = reader.poll(1.0)
            if found is None:
                continue
            assert found.error() is None
            value = found.value()
            assert value is not None
            missing.discard(orjson.loads(value)["rec_id"])
    finally:
        reader.close()
    assert not missing


def test_the_probes_say_live_and_ready(live: Service) -> None:
    assert live.get("/livez") == (200, "live\n")
    assert live.get("/readyz") == (200, "ready\n")
    assert live.get("/elsewhere")[0] == 404


def test_promtool_finds_nothing_to_mend_in_the_metrics(live: Service) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on the PATH; it comes with Prometheus")
    status, page = live.get("/metrics")
    assert status == 200
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
