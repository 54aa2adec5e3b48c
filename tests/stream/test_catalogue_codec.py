"""Records of the items topic."""

import dataclasses
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import item_key
from service.errors import DeadLetterReason, InvalidEventError
from service.state.catalogue import CatalogueItem
from service.stream.codec import CatalogueCodec, Record
from tests.stream.examples import record

CODEC = CatalogueCodec(max_bytes=200)


def keyed(key: bytes | None, value: object) -> Record:
    return dataclasses.replace(record(value), key=key)


def test_title_and_text_are_read_together() -> None:
    told = {"title": "Red shoe", "text": "leather", "categories": ["shoes"]}
    item = CODEC.decode(keyed(b"7", {"item_id": "7", **told}))
    assert (item.item_id, item.text) == ("7", "Red shoe leather")
    assert item.categories == ("shoes",)
    assert item.available


@pytest.mark.parametrize("value", [None, {"item_id": "7", "available": False}])
def test_a_tombstone_withdraws_as_being_unavailable_does(value: object) -> None:
    item = CODEC.decode(keyed(b"7", value))
    assert item.key == item_key(item.item_id)
    assert not item.available


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"7", {"item_id": "8"}, DeadLetterReason.INVALID),
        (None, {"item_id": "8"}, DeadLetterReason.INVALID),
        (b"\xff", None, DeadLetterReason.INVALID),
        (b"", None, DeadLetterReason.INVALID),
        (b"7", {"item_id": "7", "available": "no"}, DeadLetterReason.INVALID),
        (b"7", {"item_id": "7", "categories": "shoes"}, DeadLetterReason.INVALID),
        (b"7", b"{", DeadLetterReason.MALFORMED),
        (b"7", b"[]", DeadLetterReason.MALFORMED),
        (b"7", {"item_id": "7", "text": "x" * 200}, DeadLetterReason.OVERSIZED),
    ],
)
def test_what_is_no_record_says_why(
    key: bytes | None, value: object, reason: DeadLetterReason
) -> None:
    with pytest.raises(InvalidEventError) as raised:
        CODEC.decode(keyed(key, value))
    assert raised.value.reason is reason


@given(key=st.none() | st.binary(max_size=20), value=st.none() | st.binary(max_size=60))
def test_whatever_arrives_is_an_item_or_a_dead_letter(
    key: bytes | None, value: bytes | None
) -> None:
    with suppress(InvalidEventError):
        assert isinstance(CODEC.decode(keyed(key, value)), CatalogueItem)
