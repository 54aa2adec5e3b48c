"""Bytes to events and recommendations to bytes, whatever arrives."""

import json
from contextlib import suppress
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import (
    Erasure,
    Event,
    ItemId,
    Offset,
    Partition,
    Recommendation,
    Trace,
    UserId,
    Version,
    item_key,
)
from service.errors import ConfigurationError, DeadLetterReason, InvalidEventError
from service.settings import (
    CategoryFeature,
    EventsSettings,
    FieldsSettings,
    HourFeature,
    NumberFeature,
)
from service.state.features import hashed, number_codes
from service.stream.codec import (
    EventCodec,
    Header,
    RecommendationCodec,
    encode_erasure,
    encode_offsets,
    trace_of,
)
from tests.stream.examples import NOW_MS, plain_event, record

SETTINGS = EventsSettings(max_bytes=2_000, max_future_s=60)
CODEC = EventCodec(SETTINGS)
MALFORMED = DeadLetterReason.MALFORMED
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def decoded(value: object, codec: EventCodec = CODEC) -> Event:
    return codec.decode(record(value), NOW_MS)


def refusal(value: object, codec: EventCodec = CODEC) -> InvalidEventError:
    with pytest.raises(InvalidEventError) as caught:
        decoded(value, codec)
    return caught.value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = sorted(Event.model_fields)


class TestContext:
    """What is said beside an event is read as far as it can be, and never refuses the event."""

    CODEC = EventCodec(
        SETTINGS, (CategoryFeature(name="page.kind"), NumberFeature(name="price"), HourFeature())
    )

    def codes(self, *contexts: dict[str, Any] | None) -> list[list[int]]:
        events = [plain_event(**({} if one is None else {"context": one})) for one in contexts]
        records = [record(event) for event in events]
        found = [(one, self.CODEC.decode(one, NOW_MS)) for one in records]
        codes: list[list[int]] = self.CODEC.columns(found).codes.tolist()
        return codes

    def test_features_become_codes(self) -> None:
        hour = 1 + plain_event()["timestamp"] // 3_600_000 % 24
        page, (price,) = hashed("home"), number_codes([2.5]).tolist()
        assert self.codes({"page": {"kind": "home"}, "price": 2.5}, None) == [
            [page, price, hour],
            [0, 0, hour],
        ]

    @given(st.dictionaries(st.sampled_from(["page", "price", "page.kind", "x"]), json_values))
    def test_no_context_refuses_an_event(self, context: dict[str, Any]) -> None:
        event = Event.model_validate(plain_event(context=context))
        (codes,) = self.CODEC.columns([(record({}), event)]).codes
        number = codes[1:2].view(np.float32)
        assert np.isfinite(number).all()

    def test_without_features_there_are_no_codes(self) -> None:
        event = plain_event(context={"price": 1})
        assert CODEC.columns([(record(event), decoded(event))]).codes.shape == (1, 0)


class TestDecoding:
    def test_an_event_is_read_field_by_field(self) -> None:
        event = decoded(plain_event(value=3, event_id="e1", context={"page": "home"}, other=1))
        assert event.model_dump() == plain_event(value=3.0, event_id="e1", context={})

    def test_of_a_context_only_what_features_name_is_held(self) -> None:
        context = {"page": {"kind": "home", "more": [1]}, "price": 2.5, "large": [[]] * 99}
        event = TestContext.CODEC.decode(record(plain_event(context=context)), NOW_MS)
        assert event.context == {"page.kind": "home", "price": 2.5}
        codec = TestContext.CODEC
        plain = Event.model_validate(plain_event(context=context))
        found, wanted = (codec.columns([(record({}), one)]).codes for one in (event, plain))
        assert found.tolist() == wanted.tolist()

    @given(st.binary(max_size=200))
    def test_bytes_become_an_event_or_a_dead_letter_and_nothing_else(self, data: bytes) -> None:
        with suppress(InvalidEventError):
            decoded(data)

    @given(st.dictionaries(st.sampled_from(NAMES), json_values))
    def test_an_object_becomes_an_event_or_a_dead_letter_and_nothing_else(
        self, fields: dict[str, Any]
    ) -> None:
        try:
            event = decoded(plain_event() | fields)
        except InvalidEventError:
            return
        columns = CODEC.columns([(record(b""), event)])
        assert event.value is None or np.isfinite(columns.value[0])

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (None, DeadLetterReason.MALFORMED),
            (b"", DeadLetterReason.MALFORMED),
            (b"{", DeadLetterReason.MALFORMED),
            (b"\xff\xfe{}", DeadLetterReason.MALFORMED),
            (b"[" * 1_900, DeadLetterReason.MALFORMED),
            (b"[1]", DeadLetterReason.MALFORMED),
            (b'"view"', DeadLetterReason.MALFORMED),
            ({}, DeadLetterReason.INVALID),
            (plain_event(user_id=""), DeadLetterReason.INVALID),
            (plain_event(item_id=5), DeadLetterReason.INVALID),
            (plain_event(item_id="x" * 513), DeadLetterReason.INVALID),
            (plain_event(timestamp="yesterday"), DeadLetterReason.INVALID),
            (plain_event(timestamp=-1), DeadLetterReason.INVALID),
            (plain_event(timestamp=True), DeadLetterReason.INVALID),
            (plain_event(value=1e300), DeadLetterReason.INVALID),
            (b'{"user_id":"\\ud800","item_id":"i","event":"view","timestamp":1}', MALFORMED),
            (b'{"value": NaN}', MALFORMED),
            (b'{"value": -Infinity}', MALFORMED),
            (b'{"value": 1e999}', MALFORMED),
            (b"null", MALFORMED),
            (plain_event(value="3"), DeadLetterReason.INVALID),
            (plain_event(event_id=""), DeadLetterReason.INVALID),
            (plain_event(timestamp=10**18), DeadLetterReason.INVALID),
            (plain_event(event="browse"), DeadLetterReason.UNKNOWN_KIND),
            (plain_event(timestamp=NOW_MS + 61_000), DeadLetterReason.FUTURE),
            (plain_event(context={"long": "x" * 2_000}), DeadLetterReason.OVERSIZED),
        ],
    )
    def test_a_refusal_says_why(self, value: object, reason: DeadLetterReason) -> None:
        assert refusal(value).reason is reason

    @pytest.mark.parametrize("field", [*NAMES, "canary-17"])
    @pytest.mark.parametrize(
        "wrong", ["canary-17", "2026-canary-17", ["canary-17"], {"canary-17": 1}]
    )
    def test_a_refusal_quotes_nothing_of_the_record(self, field: str, wrong: object) -> None:
        for value in (plain_event(**{field: wrong}), [wrong], b"canary-17", b'{"canary-17'):
            with suppress(InvalidEventError):
                decoded(value)
                continue
            assert "canary" not in refusal(value).detail

    def test_an_event_may_be_a_year_late(self) -> None:
        assert decoded(plain_event(timestamp=NOW_MS - 31_536_000_000)).user_id == "u1"

    def test_a_refusal_names_the_field_by_its_path(self) -> None:
        assert refusal(plain_event(item_id=5)).detail.startswith("item_id: ")

    def test_a_refusal_names_the_setting_that_would_let_it_through(self) -> None:
        assert "events.kinds" in refusal(plain_event(event="browse")).detail
        assert "events.max_bytes" in refusal(b"x" * 2_001).detail

    def test_headers_count_into_the_size(self) -> None:
        long = record(plain_event(), headers=(("tracestate", b"x" * 2_000),))
        with pytest.raises(InvalidEventError) as caught:
            CODEC.decode(long, NOW_MS)
        assert caught.value.reason is DeadLetterReason.OVERSIZED

    def test_a_clock_may_be_wrong_by_the_limit(self) -> None:
        assert decoded(plain_event(timestamp=NOW_MS + 60_000)).timestamp == NOW_MS + 60_000

    def test_a_time_may_be_a_text_with_a_zone(self) -> None:
        event = decoded(plain_event(timestamp="2023-11-14T23:13:20+01:00"))
        assert event.timestamp == NOW_MS


class TestFieldNames:
    MAPPED = EventCodec(
        EventsSettings(
            fields=FieldsSettings(user_id="customer.id", item_id="sku", timestamp="meta.at.ms")
        )
    )

    def test_fields_are_found_under_the_users_names(self) -> None:
        theirs = {
            "customer": {"id": "u9"},
            "sku": "i9",
            "event": "buy",
            "meta": {"at": {"ms": NOW_MS}},
        }
        event = decoded(theirs, self.MAPPED)
        assert (event.user_id, event.item_id, event.event) == ("u9", "i9", "buy")
        assert event.timestamp == NOW_MS

    def test_our_own_names_mean_nothing_then(self) -> None:
        assert refusal(plain_event(), self.MAPPED).reason is DeadLetterReason.INVALID

    @pytest.mark.parametrize("customer", ["u9", None, [], {"id": None}, {"ident": "u9"}])
    def test_a_broken_path_is_a_missing_field(self, customer: object) -> None:
        theirs = {"customer": customer, "sku": "i", "event": "buy", "meta": {"at": {"ms": 1}}}
        fault = refusal(theirs, self.MAPPED)
        assert (fault.reason, fault.detail) == (
            DeadLetterReason.INVALID,
            "user_id: Field required",
        )


class TestColumns:
    def test_element_i_of_every_column_belongs_to_the_same_event(self) -> None:
        records = [
            record(plain_event(user_id=f"u{i}", item_id=f"i{i}", event=kind), offset=i)
            for i, kind in enumerate(["view", "buy", "click"])
        ]
        events = CODEC.columns([(each, CODEC.decode(each, NOW_MS)) for each in records])
        assert len(events) == 3
        assert events.offset.tolist() == [0, 1, 2]
        assert events.partition.tolist() == [2, 2, 2]
        assert events.user_ids == ["u0", "u1", "u2"]
        assert events.item.tolist() == [item_key(ItemId(f"i{i}")) for i in range(3)]
        assert [SETTINGS.kinds[kind] for kind in events.kind] == ["view", "buy", "click"]
        assert events.appended.tolist() == [NOW_MS + 5] * 3
        assert np.isnan(events.value).all()

    def test_no_events_are_empty_columns_of_the_same_types(self) -> None:
        none, one = CODEC.columns([]), CODEC.columns([(record(b""), decoded(plain_event()))])
        assert len(none) == 0
        for name in ("partition", "offset", "user", "item", "kind", "timestamp", "value"):
            assert getattr(none, name).dtype == getattr(one, name).dtype


class TestTraceContext:
    def test_it_is_read_from_the_headers_whatever_their_case(self) -> None:
        headers = [("Traceparent", PARENT.encode()), ("TRACESTATE", b"vendor=1"), ("x", b"\xff")]
        assert trace_of(headers) == Trace(PARENT, "vendor=1")

    @pytest.mark.parametrize("name", ["tracestate", "parent"])
    def test_there_is_none_without_a_parent(self, name: str) -> None:
        assert trace_of([(name, b"vendor=1")]) is None
        assert trace_of([]) is None

    @pytest.mark.parametrize(
        "parent",
        [
            b"\xff\xfe",
            b"ann",
            PARENT.encode() + b"\n",
            PARENT.encode() + b"-ann",
            PARENT.upper().encode(),
            b"ff" + PARENT.encode()[2:],
            b"00-" + b"0" * 32 + PARENT.encode()[35:],
            PARENT.encode()[:36] + b"0" * 16 + b"-01",
        ],
    )
    def test_there_is_none_where_the_parent_has_another_form(self, parent: bytes) -> None:
        assert trace_of([("traceparent", parent)]) is None

    @pytest.mark.parametrize("state", [b"\xff", b"ann", b"a=\x00", b"a=" + b"x" * 600, b"a=1\r\n"])
    def test_a_state_of_another_form_is_dropped_alone(self, state: bytes) -> None:
        headers = [("traceparent", PARENT.encode()), ("tracestate", state)]
        assert trace_of(headers) == Trace(PARENT)

    @pytest.mark.parametrize("state", ["a=1", "a@b/c=x y,d*e=!, f=~"])
    def test_a_state_may_have_several_members(self, state: str) -> None:
        headers = [("traceparent", PARENT.encode()), ("tracestate", state.encode())]
        assert trace_of(headers) == Trace(PARENT, state)


class TestRecommendations:
    @staticmethod
    def encoded(headers: tuple[Header, ...] = (), **fields: Any) -> Recommendation:
        read = record(plain_event(**fields), headers=headers)
        events = CODEC.columns([(read, CODEC.decode(read, NOW_MS))])
        data = RecommendationCodec("events", SETTINGS.kinds).encode(
            events,
            0,
            [(ItemId("i2"), 0.12345678), (ItemId("ï3"), -1.0)],
            Version(4),
            encode_offsets({Partition(0): Offset(10), Partition(1): Offset(0)}),
            NOW_MS + 9,
        )
        return Recommendation.model_validate_json(data, strict=True)

    def test_the_bytes_are_a_recommendation_as_the_schema_has_it(self) -> None:
        sent = self.encoded(event_id="e1")
        assert sent.rec_id == "events/2/7"
        assert sent.user_id == "u1"
        assert [(item.item_id, item.score) for item in sent.items] == [
            ("i2", 0.123457),
            ("ï3", -1.0),
        ]
        assert sent.model_version == 4
        assert sent.trained_through == {"0": 10, "1": 0}
        assert sent.event.model_dump() == plain_event(event_id="e1", user_id=None)
        assert sent.generated_at == NOW_MS + 9
        assert sent.traceparent is None

    def test_they_carry_the_trace_context_of_the_event(self) -> None:
        sent = self.encoded((("traceparent", PARENT.encode()), ("tracestate", b"v=1")))
        assert (sent.traceparent, sent.tracestate) == (PARENT, "v=1")

    @given(st.text(min_size=1, max_size=64).filter(lambda text: text.isprintable()))
    def test_any_id_that_an_event_may_have_comes_back_as_it_was(self, text: str) -> None:
        sent = self.encoded(user_id=text, item_id=text)
        assert (sent.user_id, sent.event.item_id) == (text, text)


class TestErasure:
    def test_a_user_id_and_the_kind_are_enough(self) -> None:
        found = CODEC.erasure(record({"user_id": "u9", "event": "erase"}, offset=4, partition=1))
        assert found == Erasure(Partition(1), Offset(4), UserId("u9"))

    @pytest.mark.parametrize(
        "value",
        [
            plain_event(),
            plain_event(item_id="erase"),
            plain_event(context={"event": "erase"}),
            {"event": "erase"},
            {"user_id": 7, "event": "erase"},
            {"user_id": "", "event": "erase"},
            ["erase"],
            b'"erase',
            None,
            {"user_id": "u", "event": "erase", "more": "x" * 2_000},
        ],
    )
    def test_nothing_else_is_one(self, value: object) -> None:
        assert CODEC.erasure(record(value)) is None

    @pytest.mark.parametrize("kind", ["erase", "forget me", "l\u00f6schen", "\u5220\u9664"])
    @pytest.mark.parametrize(
        "fields", [FieldsSettings(), FieldsSettings(user_id="who.id", event="who.did")]
    )
    def test_what_is_sent_is_understood_however_json_is_escaped(
        self, kind: str, fields: FieldsSettings
    ) -> None:
        settings = EventsSettings(erase=kind, fields=fields)
        sent = encode_erasure(settings, UserId("u9"), NOW_MS)
        for data in (sent, json.dumps(orjson.loads(sent)).encode()):
            found = EventCodec(settings).erasure(record(data))
            assert found is not None
            assert found.user_id == "u9"

    def test_where_no_kind_is_set_there_is_none(self) -> None:
        settings = EventsSettings(erase="")
        codec = EventCodec(settings)
        assert codec.erasure(record({"user_id": "u9", "event": "erase"})) is None
        with pytest.raises(ConfigurationError, match=r"events\.erase"):
            encode_erasure(settings, UserId("u9"), NOW_MS)

    @pytest.mark.parametrize("user", ["", "u" * 513])
    def test_what_is_no_user_id_is_not_sent(self, user: str) -> None:
        with pytest.raises(ConfigurationError, match="1 to 512 characters"):
            encode_erasure(SETTINGS, UserId(user), NOW_MS)
