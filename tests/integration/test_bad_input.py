"""Bad records through a real Kafka and service: each is told, nothing stalls, nobody is named."""

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.integration.running import Service
from tests.integration.traffic import (
    Message,
    Stream,
    dead_letters,
    event,
    make_stream,
    recommendations,
    send,
)

pytestmark = pytest.mark.integration

CANARY = "canary-user-4711-zebra"
PASSWORD = "planted-password-0815"
HASH_KEY = "planted-hash-key-1234567"
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HOUR_MS, YEAR_MS = 3_600_000, 31_536_000_000  # events may be dated two hours ahead


@pytest.fixture(scope="module")
def stream(kafka: str) -> Stream:
    """One partition: what would stall it stalls all that comes behind."""
    return make_stream(kafka, partitions=1)


@pytest.fixture(scope="module")
def live(stream: Stream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    secrets = tmp_path_factory.mktemp("secrets")
    (secrets / "password").write_text(PASSWORD + "\n")
    more = {
        "HEADWATER_EVENTS__DEDUPLICATE": "100000",
        "HEADWATER_LOG__LEVEL": "DEBUG",
        "HEADWATER_KAFKA__SASL_USERNAME": "me",
        "HEADWATER_KAFKA__SASL_PASSWORD_FILE": str(secrets / "password"),
        "HEADWATER_PRIVACY__HASH_KEY": HASH_KEY,
    }
    with Service(stream, tmp_path_factory.mktemp("live"), more) as service:
        yield service


def named(**fields: object) -> bytes:
    """An event of the canary's, with what is wrong about it."""
    plain = event(1) | {"user_id": CANARY, "event_id": None} | fields
    return json.dumps({name: value for name, value in plain.items() if value is not None}).encode()


def bad_records() -> list[tuple[bytes | None, str]]:
    """Values, and the reasons that must be told."""
    soon = time.time_ns() // 1_000_000 + 2 * HOUR_MS + 600_000
    quoted = CANARY.encode()
    return [
        (None, "malformed"),
        (b"", "malformed"),
        (quoted, "malformed"),
        (b'{"user_id": "' + quoted, "malformed"),
        (b'{"user_id": "' + quoted + b'\xff\xfe"}', "malformed"),
        (named().replace(b"zebra", b"zebra\\ud800"), "malformed"),
        (named().replace(b'"view"', b"NaN"), "malformed"),
        (named(value=1).replace(b'"value": 1', b'"value": Infinity'), "malformed"),
        (named(value=1).replace(b'"value": 1', b'"value": 1e999'), "malformed"),
        (b"[" * 50_000, "malformed"),
        (b'{"a":' * 10_000 + quoted, "malformed"),
        (b"null", "malformed"),
        (json.dumps([CANARY]).encode(), "malformed"),
        (json.dumps(CANARY).encode(), "malformed"),
        (b"{}", "invalid"),
        (named(user_id=[CANARY]), "invalid"),
        (named(user_id={CANARY: 1}), "invalid"),
        (named(user_id=CANARY * 30), "invalid"),
        (named(item_id=5), "invalid"),
        (named(timestamp=CANARY), "invalid"),
        (named(timestamp="2026-" + CANARY), "invalid"),
        (named(timestamp=-1), "invalid"),
        (named(timestamp=10**18), "invalid"),
        (named(timestamp=1.5), "invalid"),
        (named(value=CANARY), "invalid"),
        (named(value=1e300), "invalid"),
        (named(context=[CANARY]), "invalid"),
        (named(event_id=""), "invalid"),
        (named(event=CANARY), "unknown_kind"),
        (named(event="browse"), "unknown_kind"),
        (named(timestamp=soon), "future"),
        (named(context={"long": "x" * 70_000}), "oversized"),
        (named(context={"long": "x" * 10_000_000}), "oversized"),
    ]


def send_bad(stream: Stream) -> dict[str, str]:
    """Each between headers and keys of many kinds; the reason for each place."""
    keys = [CANARY.encode(), None, b"\xff\xfe", b""]
    headers = [
        [("traceparent", PARENT), ("tracestate", b"a=1")],
        [("traceparent", b"ours")],
        [("own", b"\xff\xfe"), ("", b"")],
        [],
    ]
    return {
        # The broker takes 10 MB of zeros and x only when they are compressed.
        send(stream, keys[n % 4], value, headers[n % 4], "gzip"): reason
        for n, (value, reason) in enumerate(bad_records())
        if not (value is None and keys[n % 4] is None)
    }


def send_good(stream: Stream) -> tuple[set[str], set[str]]:
    """Events that must be answered: late ones, one in the future and one user's flood. And
    duplicates, which must not."""
    now_ms = time.time_ns() // 1_000_000
    wanted = {
        send(stream, CANARY.encode(), named(timestamp=now_ms + HOUR_MS)),
        send(stream, CANARY.encode(), named(timestamp=now_ms - YEAR_MS)),
        send(stream, b"\xff", named(user_id="\u0000\ufffd" + CANARY)),
        send(stream, CANARY.encode(), named(event_id="sent-twice")),
    }
    twice = {
        send(stream, CANARY.encode(), named(event_id="sent-twice")),
        send(stream, None, named(event_id="sent-twice", item_id="other")),
    }
    wanted |= {send(stream, CANARY.encode(), named(item_id=f"item-{n}")) for n in range(100)}
    wanted.add(send(stream, b"bob", named(user_id="bob")))
    return wanted, twice


def occurrences(*texts: str | bytes) -> int:
    whole = b"\n".join(text.encode() if isinstance(text, str) else text for text in texts)
    return sum(whole.count(word.encode()) for word in (CANARY, PASSWORD, HASH_KEY))


def ours(letter: Message) -> dict[str, bytes]:
    return {name: text for name, text in letter.headers.items() if name.startswith("headwater-")}


def test_bad_records_are_told_and_good_ones_answered_and_nobody_is_named(
    live: Service, stream: Stream
) -> None:
    reasons = send_bad(stream)
    wanted, twice = send_good(stream)
    answers = recommendations(stream, len(wanted), 90)
    assert {one.rec_id for one in answers} == wanted
    assert len(answers) == len(wanted)
    assert not twice & {one.rec_id for one in answers}
    letters = dead_letters(stream, len(reasons), 60)
    assert {one.origin: one.headers["headwater-reason"].decode() for one in letters} == reasons
    assert len(letters) == len(reasons)
    live.wait_for(
        lambda: live.metric("headwater_events_total", outcome="duplicate") == len(twice),
        "the duplicates in the metric",
        20,
    )

    # A worker that crashes, and a line about it.

    os.kill(live.ready_worker(), signal.SIGKILL)
    live.wait_for(lambda: "trainer worker ended" in live.text(), "the end of the worker", 60)
    live.wait_for(lambda: live.metric("headwater_worker_up") == 1, "the next worker", 60)
    again = send(stream, CANARY.encode(), named(item_id="item-after"))
    assert {one.rec_id for one in recommendations(stream, len(wanted) + 1, 60)} == wanted | {again}

    log, metrics = live.text(), live.get("/metrics")[1]
    counts = {
        "log": occurrences(log),
        "metrics": occurrences(metrics),
        "dead-letter headers": occurrences(*(b" ".join(ours(one).values()) for one in letters)),
        "traces": occurrences(*(b" ".join(one.headers.values()) for one in answers)),
    }
    print(f"{len(log.splitlines())} lines of log; occurrences: {counts}")  # noqa: T201  # -s shows it
    assert set(counts.values()) == {0}
    hashes = {ours(one).get("headwater-user") for one in letters if one.key == CANARY.encode()}
    assert len(hashes) == 1
    (named_by,) = hashes
    assert named_by is not None
    assert named_by.decode() in log
