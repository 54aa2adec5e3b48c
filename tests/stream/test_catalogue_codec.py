"""Records of the items topic."""

import dataclasses
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import item_key
from service.errors import DeadLetterReason, InvalidEventError
from service.settings import ItemsSettings, VectorSettings
from service.state.catalogue import CatalogueItem
from service.stream.codec import CatalogueCodec, Record
from tests.stream.examples import record

IMAGE, AUDIO = VectorSettings(name="image", width=3), VectorSettings(name="audio", width=2)
CODEC = CatalogueCodec(ItemsSettings(max_bytes=200, vectors=(IMAGE, AUDIO)))


def keyed(key: bytes | None, value: object) -> Record:
    return dataclasses.replace(record(value), key=key)


def test_title_and_text_are_read_together() -> None:
    told = {"title": "Red shoe", "text": "leather", "categories": ["shoes"]}
    item = CODEC.decode(keyed(b"7", {"item_id": "7", **told}))
    assert (item.item_id, item.text) == ("7", "Red shoe leather")
    assert item.categories == ("shoes",)
    assert item.available


def test_vectors_of_known_sources_are_read_and_others_ignored() -> None:
    told = {"image": [1, -2.5, 0], "audio": [0.0, 0], "touch": [1]}
    item = CODEC.decode(keyed(b"7", {"item_id": "7", "vectors": told}))
    assert item.vectors.keys() == {"image"}  # audio points nowhere
    assert item.vectors["image"].dtype == np.float32
    assert item.vectors["image"].tolist() == [1.0, -2.5, 0.0]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"image": [1, 2]}, "vectors.image: 2 numbers; items.vectors says 3"),
        ({"image": [1, 2, 1e300]}, "vectors.image: a number is not finite in 32 bits"),
        ({"image": [1, 2, None]}, "vectors.image.2: "),
        ({"image": [1, 2, True]}, "vectors.image.2: "),
        ({"image": "[1, 2, 3]"}, "vectors.image: "),
        ({"ann's own": [1, None]}, "vectors.1: "),
    ],
)
def test_a_vector_that_does_not_fit_its_source_says_why(told: object, said: str) -> None:
    with pytest.raises(InvalidEventError) as raised:
        CODEC.decode(keyed(b"7", {"item_id": "7", "vectors": told}))
    assert raised.value.reason is DeadLetterReason.INVALID
    assert said in str(raised.value)


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
