"""Bytes to events and recommendations to bytes."""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from pydantic import ValidationError

from service.domain import (
    MAX_ID,
    CatalogueRecord,
    Erasure,
    ErasureRecord,
    Event,
    Events,
    ItemId,
    Offset,
    Offsets,
    Partition,
    Trace,
    UserId,
    Version,
    item_key,
    user_key,
)
from service.errors import ConfigurationError, DeadLetterReason, InvalidEventError
from service.settings import EventsSettings, Feature, ItemsSettings
from service.state.catalogue import CatalogueItem, vectors_from
from service.state.features import Features, at

Header = tuple[str, bytes]

# https://www.w3.org/TR/trace-context/: only what has this form is passed on, so that nothing else
# travels under these names.
_TRACE_PARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_TRACE_MEMBER = rb"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{1,256}"
_TRACE_STATE = re.compile(rb"%b(?:,[ \t]*%b){0,31}" % (_TRACE_MEMBER, _TRACE_MEMBER))
_MAX_TRACE_STATE = 512  # bytes; more need not be passed on


@dataclass(frozen=True, slots=True)
class Record:
    """A record as the source read it."""

    partition: int
    offset: int
    appended_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...]


class EventCodec:
    """Decodes and checks events by the user's settings."""

    def __init__(self, settings: EventsSettings, features: Sequence[Feature] = ()) -> None:
        """`features` are what is kept of an event's context."""
        self._settings = settings
        self._features = Features(features, settings.kinds)
        self._kinds = {kind: code for code, kind in enumerate(settings.kinds)}
        # Stands in every erasure as JSON writes it, and in few other records.
        self._erase_mark = _mark_of(settings.erase) if settings.erase else None
        names = settings.fields.model_dump()
        self._paths = {ours: tuple(theirs.split(".")) for ours, theirs in names.items()}
        self._is_plain = all(path == (ours,) for ours, path in self._paths.items())

    def decode(self, record: Record, now_ms: int) -> Event:
        """The event in a record. Raises InvalidEventError with the reason for the dead letter."""
        value = record.value
        if value is None:
            raise InvalidEventError(DeadLetterReason.MALFORMED, "the record has no value")
        # With key and headers: the trace goes on into the recommendation, which must fit too.
        size = len(value) + len(record.key or b"")
        size += sum(len(name) + len(content or b"") for name, content in record.headers)
        if size > self._settings.max_bytes:
            raise InvalidEventError(
                DeadLetterReason.OVERSIZED,
                f"{size} bytes; events.max_bytes is {self._settings.max_bytes}",
            )
        plain = _json_object(value)
        plain = plain if self._is_plain else self._renamed(plain)
        if isinstance(plain.get("context"), dict):
            plain["context"] = self._features.needed(plain["context"])
        try:
            event = Event.model_validate(plain)
        except ValidationError as error:
            raise InvalidEventError(DeadLetterReason.INVALID, _first_fault(error)) from None
        if event.event not in self._kinds:
            raise InvalidEventError(
                DeadLetterReason.UNKNOWN_KIND,
                # Not quoted: where fields are mapped wrongly it may be anything, a user id too.
                "event: this kind is not in events.kinds",
            )
        ahead_s = (event.timestamp - now_ms) / 1000
        if ahead_s > self._settings.max_future_s:
            raise InvalidEventError(
                DeadLetterReason.FUTURE, f"dated {ahead_s:.0f} s ahead of this clock"
            )
        return event

    def erasure(self, record: Record) -> Erasure | None:
        """The user whom a record asks to forget; None for any other, of which `decode` tells."""
        value = record.value
        if self._erase_mark is None or value is None or self._erase_mark not in value:
            return None
        if len(value) > self._settings.max_bytes:
            return None
        try:
            plain = _json_object(value)
            found = ErasureRecord.model_validate(plain if self._is_plain else self._renamed(plain))
        except (InvalidEventError, ValidationError):
            return None
        if found.event != self._settings.erase:
            return None
        return Erasure(Partition(record.partition), Offset(record.offset), UserId(found.user_id))

    def _renamed(self, plain: Mapping[str, Any]) -> dict[str, Any]:
        found = {ours: at(plain, path) for ours, path in self._paths.items()}
        return {ours: value for ours, value in found.items() if value is not None}

    def columns(self, decoded: list[tuple[Record, Event]]) -> Events:
        """Events as columns, in the order given."""
        records = [record for record, _ in decoded]
        events = [event for _, event in decoded]
        missing = float("nan")
        kind = np.array([self._kinds[event.event] for event in events], np.uint8)
        timestamp = np.array([event.timestamp for event in events], np.int64)
        return Events(
            partition=np.array([record.partition for record in records], np.int32),
            offset=np.array([record.offset for record in records], np.int64),
            user=np.array([user_key(UserId(event.user_id)) for event in events], np.int64),
            item=np.array([item_key(ItemId(event.item_id)) for event in events], np.int64),
            kind=kind,
            timestamp=timestamp,
            appended=np.array([record.appended_ms for record in records], np.int64),
            value=np.array(
                [missing if event.value is None else event.value for event in events], np.float32
            ),
            codes=self._features.codes([event.context for event in events], kind, timestamp),
            user_ids=[UserId(event.user_id) for event in events],
            item_ids=[ItemId(event.item_id) for event in events],
            event_ids=[event.event_id for event in events],
            traces=[trace_of(record.headers) for record in records],
        )


def _mark_of(kind: str) -> bytes:
    """What stands in a record of this kind whoever encoded it: what needs no escape."""
    return max(re.findall(r"[A-Za-z0-9_.-]+", kind), key=len, default="").encode()


def encode_erasure(settings: EventsSettings, user_id: UserId, now_ms: int) -> bytes:
    """A record that has a user forgotten, with the fields' names as the settings have them. Raises
    ConfigurationError where they have no kind for it, and for what is no user id."""
    if not settings.erase:
        raise ConfigurationError("events.erase is empty: no record has a user forgotten")
    if not 0 < len(user_id) <= MAX_ID:
        raise ConfigurationError(f"a user id has 1 to {MAX_ID} characters")
    try:
        user_id.encode()
    except UnicodeEncodeError:
        raise ConfigurationError("a user id is text in UTF-8") from None
    fields, record = settings.fields, dict[str, Any]()
    for name, value in (
        (fields.user_id, user_id),
        (fields.event, settings.erase),
        (fields.timestamp, now_ms),
    ):
        *path, last = name.split(".")
        place = record
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
    return orjson.dumps(record)


def trace_of(headers: Iterable[Header]) -> Trace | None:
    """The W3C trace context in a record's headers; None where there is none that has its form."""
    found = {name.lower(): value for name, value in headers or ()}
    parent = found.get("traceparent")
    if not parent or not _TRACE_PARENT.fullmatch(parent):
        return None
    state = found.get("tracestate") or b""
    is_state = len(state) <= _MAX_TRACE_STATE and _TRACE_STATE.fullmatch(state)
    return Trace(parent.decode(), state.decode() if is_state else None)


class CatalogueCodec:
    """Decodes and checks records of the items topic."""

    def __init__(self, settings: ItemsSettings) -> None:
        self._max_bytes = settings.max_bytes
        self._sources = settings.vectors

    def decode(self, record: Record) -> CatalogueItem:
        """What a record says of its item. Raises InvalidEventError with the reason for the dead
        letter."""
        named = _item_named(record.key)
        if record.value is None:
            return CatalogueItem(item_key(named), named, available=False)
        size = len(record.value) + len(record.key or b"")
        if size > self._max_bytes:
            raise InvalidEventError(
                DeadLetterReason.OVERSIZED, f"{size} bytes; items.max_bytes is {self._max_bytes}"
            )
        try:
            found = CatalogueRecord.model_validate(_json_object(record.value))
        except ValidationError as error:
            known = [source.name for source in self._sources]
            raise InvalidEventError(DeadLetterReason.INVALID, _first_fault(error, known)) from None
        if found.item_id != named:
            raise InvalidEventError(
                DeadLetterReason.INVALID,
                "the key must be the item_id: compaction goes by it",
            )
        text = " ".join(filter(None, (found.title, found.text)))
        try:
            vectors = vectors_from(found.vectors, self._sources)
        except ValueError as error:
            raise InvalidEventError(DeadLetterReason.INVALID, str(error)) from None
        return CatalogueItem(
            item_key(named), named, text, tuple(found.categories), vectors, found.available
        )


def _item_named(key: bytes | None) -> ItemId:
    try:
        name = (key or b"").decode()
    except UnicodeDecodeError:
        name = ""
    if not 0 < len(name) <= MAX_ID:
        raise InvalidEventError(DeadLetterReason.INVALID, "the record's key is no item id")
    return ItemId(name)


def _json_object(value: bytes) -> dict[str, Any]:
    try:
        plain = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise InvalidEventError(DeadLetterReason.MALFORMED, f"not JSON: {error}") from None
    except RecursionError:
        raise InvalidEventError(DeadLetterReason.MALFORMED, "nested too deeply") from None
    if not isinstance(plain, dict):
        raise InvalidEventError(DeadLetterReason.MALFORMED, "not a JSON object")
    return plain


class RecommendationCodec:
    """Encodes recommendations as `service.domain.Recommendation` describes them."""

    def __init__(self, topic: str, kinds: tuple[str, ...]) -> None:
        self._topic = topic
        self._kinds = kinds

    def encode(
        self,
        events: Events,
        row: int,
        ranking: list[tuple[ItemId, float]],
        version: Version,
        trained_through: orjson.Fragment,
        now_ms: int,
    ) -> bytes:
        """The recommendation that answers event `row`. Scores are rounded to six digits."""
        cause: dict[str, Any] = {
            "item_id": events.item_ids[row],
            "event": self._kinds[events.kind[row]],
            "timestamp": int(events.timestamp[row]),
        }
        if events.event_ids[row] is not None:
            cause["event_id"] = events.event_ids[row]
        message: dict[str, Any] = {
            "rec_id": f"{self._topic}/{events.partition[row]}/{events.offset[row]}",
            "user_id": events.user_ids[row],
            "items": [{"item_id": item, "score": round(score, 6)} for item, score in ranking],
            "model_version": version,
            "trained_through": trained_through,
            "event": cause,
            "generated_at": now_ms,
        }
        trace = events.traces[row]
        if trace is not None:
            message["traceparent"] = trace.parent
            if trace.state is not None:
                message["tracestate"] = trace.state
        return orjson.dumps(message)


def encode_offsets(offsets: Offsets) -> orjson.Fragment:
    """Offsets as JSON, made once per version rather than once per recommendation."""
    return orjson.Fragment(orjson.dumps({str(p): o for p, o in offsets.items()}))


def _first_fault(error: ValidationError, known: Container[str] = ()) -> str:
    """Where it lies. Of the keys within a field only the `known` are named: the others are the
    record's own words."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field, *inside = fault["loc"] or ("event",)
    path = [field, *(part for part in inside if isinstance(part, int) or part in known)]
    return f"{'.'.join(map(str, path))}: {fault['msg']}"
