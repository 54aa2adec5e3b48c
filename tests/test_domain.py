"""Events, recommendations and keys as other machines and later versions will meet them."""

import hashlib
import json
from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.domain import (
    NO_KEY,
    Cause,
    Event,
    Events,
    ItemId,
    Recommendation,
    RecommendedItem,
    Trace,
    UserId,
    item_key,
    stable_key,
    user_key,
)

_EVENT: dict[str, Any] = {
    "user_id": "u1",
    "item_id": "i1",
    "event": "view",
    "timestamp": 1_700_000_000_000,
}


def _event(**fields: object) -> Event:
    return Event.model_validate(_EVENT | fields)


# --- Keys: state on disk and versions of the model are written in them


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", -5426141060434712860),
        ("a", 3405396810240292928),
        ("42", 8820412187630416983),
        ("naïve ☃", -5705639438645954379),
    ],
)
def test_a_key_is_the_same_on_every_machine_and_in_every_release(text: str, key: int) -> None:
    assert stable_key(text) == key


@given(st.text())
def test_a_key_fits_a_signed_64_bit_column_and_is_never_the_empty_place(text: str) -> None:
    key = stable_key(text)
    assert key != NO_KEY
    assert int(np.int64(key)) == key


def test_an_id_that_hashes_to_the_empty_place_gets_another_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Zeros:
        def digest(self) -> bytes:
            return bytes(8)

    monkeypatch.setattr(hashlib, "blake2b", lambda *_, **__: Zeros())
    assert stable_key("anything") not in (NO_KEY, -1)


def test_users_and_items_share_the_hash() -> None:
    assert item_key(ItemId("x")) == stable_key("x")
    assert user_key(UserId("x")) == stable_key("x")


# --- Timestamps


_MOMENTS = st.datetimes(
    min_value=datetime(1970, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC)
).map(lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000))
_ZONES = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(_MOMENTS, _ZONES)
def test_rfc_3339_and_epoch_ms_agree(moment: datetime, zone: timezone) -> None:
    epoch_ms = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    written = moment.astimezone(zone).isoformat()
    assert _event(timestamp=written).timestamp == _event(timestamp=epoch_ms).timestamp == epoch_ms


@pytest.mark.parametrize(
    ("text", "epoch_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T01:00:00+01:00", 0),
        ("2023-11-14T22:13:20.123Z", 1_700_000_000_123),
        ("2023-11-14t22:13:20.123456z", 1_700_000_000_123),
        ("2023-11-14 22:13:20Z", 1_700_000_000_000),
    ],
)
def test_rfc_3339_in_all_its_spellings(text: str, epoch_ms: int) -> None:
    assert _event(timestamp=text).timestamp == epoch_ms


@pytest.mark.parametrize("text", ["2023-11-14T22:13:20", "2023-11-14", "2023-11-14 22:13"])
def test_a_time_without_a_zone_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="timezone"):
        _event(timestamp=text)


@pytest.mark.parametrize(
    "value",
    [
        "1700000000",  # seconds or milliseconds? nobody can tell
        "1700000000000",
        "+1700000000",
        "yesterday",
        "",
        "2023-13-01T00:00:00Z",
        1.7e12,
        True,
        None,
        -1,
        "1969-12-31T23:59:59Z",
        253_402_300_800_000,  # the year 10000
        float("nan"),
    ],
)
def test_what_is_not_a_time_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        _event(timestamp=value)


# --- Events


def test_the_smallest_event_has_four_fields() -> None:
    event = _event()
    assert (event.event_id, event.value, event.context) == (None, None, None)


@pytest.mark.parametrize("missing", sorted(_EVENT))
def test_an_event_without_a_required_field_is_refused(missing: str) -> None:
    with pytest.raises(ValidationError, match="Field required"):
        Event.model_validate({name: value for name, value in _EVENT.items() if name != missing})


@pytest.mark.parametrize("field", ["user_id", "item_id", "event"])
@pytest.mark.parametrize("value", ["", 7, None, ["x"], "x" * 513, "\ud800"])
def test_an_id_is_a_short_text(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        _event(**{field: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "5", True])
def test_a_value_that_is_no_finite_number_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        _event(value=value)


@pytest.mark.parametrize("value", [0, -3, 2.5])
def test_a_value_is_any_finite_number(value: float) -> None:
    assert _event(value=value).value == value


def test_fields_that_nobody_knows_are_ignored() -> None:
    assert _event(shelf="top") == _event()


def test_an_event_cannot_be_changed() -> None:
    event = _event()
    with pytest.raises(ValidationError, match="frozen"):
        event.user_id = "u2"  # type: ignore[misc]  # what this test is about


_IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=512)


@given(
    st.builds(
        Event,
        user_id=_IDS,
        item_id=_IDS,
        event=_IDS.filter(lambda kind: len(kind) <= 64),
        timestamp=st.integers(0, 253_402_300_799_999),
        event_id=st.none() | _IDS,
        value=st.none() | st.floats(-3.4e38, 3.4e38),
        context=st.none() | st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers()),
    )
)
def test_an_event_survives_json(event: Event) -> None:
    assert Event.model_validate(json.loads(event.model_dump_json())) == event


# --- Recommendations


def _recommendation() -> Recommendation:
    return Recommendation(
        rec_id="events/0/12",
        user_id="u1",
        items=[RecommendedItem(item_id="i2", score=0.5)],
        model_version=3,
        trained_through={"0": 10},
        event=Cause(item_id="i1", event="view", timestamp=1_700_000_000_000),
        generated_at=1_700_000_000_050,
    )


def test_a_recommendation_survives_json() -> None:
    recommendation = _recommendation()
    assert Recommendation.model_validate_json(recommendation.model_dump_json()) == recommendation


def test_a_recommendation_holds_nothing_undeclared() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        Recommendation.model_validate(_recommendation().model_dump() | {"reason": "x"})


# --- Events as columns


def _columns(events: int) -> Events:
    """Every column says at each place which event it is of."""
    whole = np.arange(events, dtype=np.int64)
    names = [str(each) for each in range(events)]
    return Events(
        partition=whole.astype(np.int32),
        offset=whole,
        user=whole,
        item=whole,
        kind=whole.astype(np.uint8),
        timestamp=whole,
        appended=whole,
        value=whole.astype(np.float32),
        codes=whole.astype(np.int32),
        user_ids=[UserId(name) for name in names],
        item_ids=[ItemId(name) for name in names],
        event_ids=list(names),
        traces=[Trace(name) for name in names],
    )


@given(st.lists(st.integers(0, 99), max_size=20))
def test_a_choice_of_events_keeps_their_columns_together(rows: list[int]) -> None:
    chosen = _columns(100).take(np.array(rows, np.int64))
    assert len(chosen) == len(rows)
    for column in fields(Events):
        if column.name == "traces":
            assert chosen.traces == [Trace(str(row)) for row in rows]
        else:
            assert [int(each) for each in getattr(chosen, column.name)] == rows
