import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import Int32s
from service.settings import (
    CategoryFeature,
    EventKindFeature,
    Feature,
    GapFeature,
    HourFeature,
    NumberFeature,
)
from service.state.features import (
    Context,
    Features,
    gap_codes,
    hashed,
    keys_of,
    number_codes,
    picked,
)

COUNTRY, PRICE = CategoryFeature(name="geo.country"), NumberFeature(name="price")
HOUR_MS = 3_600_000


def codes_of(context: Context | None, *features: Feature, kind: int = 0, time: int = 0) -> Int32s:
    kinds, times = np.array([kind], np.uint8), np.array([time], np.int64)
    codes: Int32s = Features(features, ("view", "buy")).codes([context], kinds, times)[0]
    return codes


def country(value: object) -> int:
    return int(codes_of({"geo": {"country": value}}, COUNTRY)[0])


def test_a_category_is_the_hash_of_its_text() -> None:
    assert country("NO") == hashed("NO") != country("SE")
    assert country(7) == country("7")
    assert country(True) == country("true")
    assert codes_of({"geo.country": "NO"}, COUNTRY)[0] == hashed("NO")


@pytest.mark.parametrize("value", [None, "", [], {"a": 1}])
def test_what_is_no_text_is_absent_from_a_category(value: object) -> None:
    assert country(value) == 0


@pytest.mark.parametrize("context", [None, {}, {"geo": None}, {"geo": "NO"}, {"geo": {}}])
def test_a_context_without_the_name_is_absent(context: dict[str, Any] | None) -> None:
    assert codes_of(context, COUNTRY, PRICE).tolist() == [0, 0]


@given(st.floats(-(2.0**127), 2.0**127, width=32, allow_subnormal=False))
def test_a_number_keeps_its_32_bits(number: float) -> None:
    (code,) = number_codes([number]).tolist()
    assert code != 0
    assert struct.unpack("f", struct.pack("i", code))[0] == number
    assert number_codes([repr(number)]).tolist() == [code]


@pytest.mark.parametrize(
    "value", [None, "", "dear", math.nan, math.inf, "nan", 1e39, 10**400, [1], {"a": 1}]
)
def test_what_is_no_number_is_absent(value: object) -> None:
    assert codes_of({"price": value}, PRICE).tolist() == [0]


def test_a_number_too_small_for_32_bits_is_zero_and_there() -> None:
    assert number_codes([1e-60, 0, False]).tolist() == [-(2**31)] * 3


@given(st.text())
def test_a_hash_is_never_what_stands_for_absent(text: str) -> None:
    assert 1 <= hashed(text) < 2**31


def test_kind_and_hour_are_read_off_the_event() -> None:
    codes = codes_of(None, EventKindFeature(), HourFeature(), kind=1, time=49 * HOUR_MS)
    assert codes.tolist() == [hashed("buy"), 2]


def test_a_gap_is_in_seconds_and_absent_before_a_first_event() -> None:
    time, before = np.array([5000, 9999, 0, 10**15]), np.array([0, 8000, 4000, 0])
    is_first = np.array([True, False, False, False])
    assert gap_codes(time, before, is_first).tolist() == [0, 2, 1, 2**31 - 1]


@given(st.lists(st.sampled_from("abcde"), unique=True), st.lists(st.sampled_from("abcde")))
def test_columns_are_found_by_their_key(present: list[str], wanted: list[str]) -> None:
    codes = np.arange(1, 2 * len(present) + 1, dtype=np.int32).reshape(2, len(present))
    seen = picked(codes, present, wanted)
    assert seen.shape == (2, len(wanted))
    for place, key in enumerate(wanted):
        own = codes[:, present.index(key)] if key in present else np.zeros(2, np.int32)
        assert seen[:, place].tolist() == own.tolist()


def test_a_key_tells_what_is_read_and_not_what_is_made_of_it() -> None:
    few, many = CategoryFeature(name="a", buckets=2), CategoryFeature(name="a", buckets=9)
    assert keys_of([few]) == keys_of([many]) != keys_of([NumberFeature(name="a")])
    assert len(set(keys_of([EventKindFeature(), HourFeature(), GapFeature()]))) == 3
