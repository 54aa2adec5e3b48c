"""What a dead letter tells of its record, and of its user only a hash."""

import logging

import pytest

from service.errors import ConfigurationError, DeadLetterReason, InvalidEventError
from service.settings import PrivacySettings, TopicsSettings
from service.stream.dead_letters import DeadLetters, dead_letter_headers, shortened
from tests.stream.examples import NOW_MS, record

FAULT = InvalidEventError(DeadLetterReason.INVALID, "user_id: Field required")
LETTERS = DeadLetters(TopicsSettings(), PrivacySettings())


def test_the_user_is_named_by_a_keyed_hash(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    topic, key, value, headers = LETTERS.of(record(b"{"), FAULT)
    assert (topic, key, value) == (TopicsSettings().dead_letter, b"u1", b"{")
    named = dict(headers)["headwater-user"]
    assert len(named) == 16
    assert b"u1" not in b"".join(content for _, content in headers)
    assert named.decode() in caplog.text
    assert "u1" not in caplog.text.replace(named.decode(), "")


def test_the_key_of_an_item_names_no_user() -> None:
    *_, headers = LETTERS.of(record(b"{"), FAULT, "items")
    assert dict(headers)["headwater-topic"] == b"items"
    assert "headwater-user" not in dict(headers)


def test_headers_say_why_and_whence_after_the_records_own() -> None:
    headers = dead_letter_headers("events", record(b"", headers=(("own", b"1"),)), FAULT)
    assert headers == [
        ("own", b"1"),
        ("headwater-reason", b"invalid"),
        ("headwater-detail", b"user_id: Field required"),
        ("headwater-topic", b"events"),
        ("headwater-partition", b"2"),
        ("headwater-offset", b"7"),
        ("headwater-timestamp", str(NOW_MS + 5).encode()),
    ]


def test_no_header_of_the_records_own_passes_for_one_of_ours() -> None:
    """A dead letter that was sent to the events topic again has them."""
    own = (("headwater-user", b"u1"), ("headwater-truncated-from-bytes", b"9"))
    letter = LETTERS.of(record(b"v" * 100_000, headers=own), FAULT)
    assert not set(own) & set(letter[3])

    cut = shortened(letter, TopicsSettings().dead_letter)
    assert len(cut[2] or b"") == 64 * 1024
    assert dict(cut[3])["headwater-truncated-from-bytes"] == b"100000"
    with pytest.raises(ConfigurationError, match="raise its max"):
        shortened(cut, TopicsSettings().dead_letter)


def test_a_long_detail_is_cut_and_any_text_can_be_told() -> None:
    fault = InvalidEventError(DeadLetterReason.MALFORMED, "\ud800" + "x" * 5_000)
    detail = dict(dead_letter_headers("events", record(b""), fault))["headwater-detail"]
    assert detail == b"?" + b"x" * 1_023
