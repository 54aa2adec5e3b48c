"""What is fuzzed, and what must hold of it: either a checked value or a reason for the dead letter.

Everything else that a target raises is a find. None of this needs the fuzzer itself.
"""

from collections.abc import Callable

import numpy as np
import orjson

from service.domain import (
    MAX_ID,
    NO_KEY,
    Event,
    ItemId,
    Offset,
    Partition,
    Recommendation,
    Version,
)
from service.errors import DeadLetterReason, InvalidEventError
from service.settings import (
    CategoryFeature,
    EventKindFeature,
    EventsSettings,
    FieldsSettings,
    GapFeature,
    HourFeature,
    ItemsSettings,
    NumberFeature,
    TextSettings,
    VectorSettings,
)
from service.stream.codec import (
    CatalogueCodec,
    EventCodec,
    Header,
    RecommendationCodec,
    Record,
    encode_offsets,
    trace_of,
)
from service.stream.dead_letters import dead_letter_headers

NOW_MS = 1_700_000_000_000
_MAX_HEADER = 1024
_LAST_MS = 253_402_300_799_999

_SETTINGS = EventsSettings(max_bytes=16_384)
_FEATURES = (
    CategoryFeature(name="page.kind"),
    NumberFeature(name="price", log=True),
    EventKindFeature(),
    HourFeature(),
    GapFeature(),
)
_PLAIN = EventCodec(_SETTINGS, _FEATURES)
_MAPPED = EventCodec(
    EventsSettings(
        max_bytes=16_384,
        fields=FieldsSettings(user_id="customer.id", timestamp="meta.at.ms", context="meta"),
    ),
    _FEATURES,
)
_RECOMMENDATIONS = RecommendationCodec("events", _SETTINGS.kinds)
_ITEMS = ItemsSettings(
    text=TextSettings(), vectors=(VectorSettings(name="image", width=3),), max_bytes=16_384
)
_CATALOGUE = CatalogueCodec(_ITEMS)
_OFFSETS = encode_offsets({Partition(0): Offset(0)})


def event(value: bytes) -> None:
    """The value of a record of the events topic, read by two settings."""
    record = Record(0, 5, NOW_MS, b"user", value, ())
    for codec in (_PLAIN, _MAPPED):
        erasure = codec.erasure(record)
        if erasure is not None:
            assert 0 < len(erasure.user_id) <= MAX_ID
            assert erasure.user != NO_KEY
            assert (erasure.partition, erasure.offset) == (0, 5)
        try:
            found = codec.decode(record, NOW_MS)
        except InvalidEventError as error:
            _check_refusal(record, error)
        else:
            assert erasure is None
            _check_event(codec, record, found)


def fields(data: bytes) -> None:
    """An event whose fields are the lines, so that more of what is tried is an object."""
    names = (b"user_id", b"item_id", b"event", b"timestamp", b"event_id", b"value", b"context")
    pairs = zip(names, data.split(b"\n"), strict=False)
    event(b"{" + b",".join(b'"%b":%b' % pair for pair in pairs if pair[1]) + b"}")


def _check_event(codec: EventCodec, record: Record, found: Event) -> None:
    for name in (found.user_id, found.item_id):
        assert 0 < len(name) <= MAX_ID
    assert found.event in _SETTINGS.kinds
    assert 0 <= found.timestamp <= min(_LAST_MS, NOW_MS + round(_SETTINGS.max_future_s * 1000))
    columns = codec.columns([(record, found)])
    assert len(columns) == 1
    assert NO_KEY not in (columns.user[0], columns.item[0])
    assert np.isnan(columns.value[0]) == (found.value is None)
    assert not np.isinf(columns.value).any()
    price = columns.codes[0, 1:2].view(np.float32)
    assert np.isfinite(price).all()
    answer = _RECOMMENDATIONS.encode(
        columns, 0, [(ItemId(found.item_id), 0.5)], Version(1), _OFFSETS, NOW_MS
    )
    sent = Recommendation.model_validate_json(answer, strict=True)
    assert (sent.user_id, sent.event.item_id) == (found.user_id, found.item_id)
    assert (sent.event.event_id, sent.event.timestamp) == (found.event_id, found.timestamp)
    plain = found.model_dump(exclude={"context"}, exclude_none=True)
    again = _PLAIN.decode(Record(0, 5, NOW_MS, None, orjson.dumps(plain), ()), NOW_MS)
    assert again == found.model_copy(update={"context": None})


def catalogue(data: bytes) -> None:
    """A record of the items topic: its key up to the first line's end, then its value."""
    key, _, value = data.partition(b"\n")
    record = Record(0, 5, NOW_MS, key, value or None, ())
    try:
        item = _CATALOGUE.decode(record)
    except InvalidEventError as error:
        _check_refusal(record, error)
        return
    assert 0 < len(item.item_id) <= MAX_ID
    assert item.item_id.encode() == key
    assert item.key != NO_KEY
    item.text.encode()
    assert all(category.encode() for category in item.categories)
    for vector in item.vectors.values():
        assert vector.shape == (3,)
        assert np.isfinite(vector).all()


def headers(data: bytes) -> None:
    """The headers of a record, one a line, as `name=value`; a line without `=` has no value."""
    found: list[Header] = []
    for line in data.split(b"\n"):
        name, given, content = line.partition(b"=")
        found.append((name.decode(errors="backslashreplace"), content if given else None))  # type: ignore[arg-type]  # aiokafka gives None
    trace = trace_of(found)
    if trace is not None:
        for text in (trace.parent, trace.state or ""):
            assert text.isascii()
            assert text.isprintable()
    record = Record(0, 5, NOW_MS, None, b"{", tuple(found))
    try:
        _PLAIN.decode(record, NOW_MS)
    except InvalidEventError as error:
        _check_refusal(record, error)
    else:
        raise AssertionError("half an object was read as an event")


def _check_refusal(record: Record, error: InvalidEventError) -> None:
    assert error.reason in DeadLetterReason
    letter = dead_letter_headers("events", record, error)
    own = [header for header in record.headers if not header[0].startswith("headwater-")]
    assert letter[: len(own)] == own
    ours = dict(letter[len(own) :])
    assert all(name.startswith("headwater-") for name in ours)
    assert all(len(content) <= _MAX_HEADER for content in ours.values())
    assert ours["headwater-offset"] == b"5"


TARGETS: dict[str, Callable[[bytes], None]] = {
    "event": event,
    "fields": fields,
    "catalogue": catalogue,
    "headers": headers,
}
