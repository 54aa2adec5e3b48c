"""Records past Kafka's usual limit of 1 MiB: they are told, and the stream moves on.

Compressed they fit into an events topic of that limit; what we write is not compressed.
"""

import hashlib
import json

import pytest

from tests.integration.running import Service
from tests.integration.traffic import Stream, answer, dead_letter, event, send

pytestmark = pytest.mark.integration

TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("value_bytes", "header_bytes"),
    [(3 * MIB, 10), (100, 3 * MIB)],
    ids=["value", "header"],
)
def test_a_record_past_the_usual_limit_is_a_dead_letter_whole(
    value_bytes: int, header_bytes: int, live: Service, stream: Stream
) -> None:
    key = f"huge-{value_bytes}".encode()
    value, header = b"v" * value_bytes, b"h" * header_bytes
    rec_id = send(stream, key, value, [("own", header)], "gzip")
    after = send(stream, key, json.dumps(event(4)).encode())

    letter = dead_letter(stream, rec_id)
    assert letter.key == key
    assert letter.value == value
    assert letter.headers["own"] == header
    assert letter.headers["headwater-reason"] == b"oversized"
    assert "headwater-truncated-from-bytes" not in letter.headers
    assert answer(stream, after).rec_id == after


@pytest.mark.parametrize(
    ("value_bytes", "header_bytes"),
    [(20 * MIB, 10), (100, 20 * MIB)],
    ids=["value", "header"],
)
def test_what_the_dead_letter_topic_refuses_keeps_its_beginning(
    value_bytes: int, header_bytes: int, live: Service, stream: Stream
) -> None:
    key = f"monstrous-{value_bytes}".encode()
    value = b"v" * value_bytes
    rec_id = send(stream, key, value, [("own", b"h" * header_bytes)], "gzip")
    after = send(stream, key, json.dumps(event(5)).encode())

    letter = dead_letter(stream, rec_id)
    assert letter.key == key
    assert letter.value == value[: 64 * 1024]
    assert "own" not in letter.headers
    assert letter.headers["headwater-reason"] == b"oversized"
    assert letter.headers["headwater-truncated-from-bytes"] == str(value_bytes).encode()
    assert letter.headers["headwater-sha256"] == hashlib.sha256(value).hexdigest().encode()
    assert answer(stream, after).rec_id == after


def test_headers_with_names_of_ours_do_not_stand_in_the_way(live: Service, stream: Stream) -> None:
    """As a dead letter has that is sent to the events topic again."""
    names = ("headwater-truncated-from-bytes", "headwater-mine")
    own = [(name, b"h" * 20 * MIB) for name in names]
    rec_id = send(stream, b"again", b"v" * 100, own, "gzip")
    after = send(stream, b"again", json.dumps(event(7)).encode())
    letter = dead_letter(stream, rec_id)
    assert letter.value == b"v" * 100
    assert "headwater-mine" not in letter.headers
    assert "headwater-truncated-from-bytes" not in letter.headers
    assert answer(stream, after).rec_id == after


def test_headers_within_the_limit_do_not_weigh_on_the_recommendation(
    live: Service, stream: Stream
) -> None:
    headers = [(f"own-{number}", b"h" * 1_000) for number in range(50)]
    rec_id = send(stream, b"ann", json.dumps(event(6)).encode(), [*headers, ("traceparent", TRACE)])
    assert answer(stream, rec_id).headers == {"traceparent": TRACE}
