"""Events and recommendations as they stand on the topics, and the words used inside.

On the edge they are pydantic models, checked and documented (`docs/schemas/`). Inside,
events travel as the columns of a `MicroBatch`: numpy arrays and offsets, no object per event.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, NamedTuple, NewType

import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

ItemId = NewType("ItemId", str)  # the id on the topic
ItemKey = NewType("ItemKey", int)  # its stable 64-bit hash, used in state
UserId = NewType("UserId", str)
UserKey = NewType("UserKey", int)
Row = NewType("Row", int)  # an index in one version's embedding table
Version = NewType("Version", int)
Partition = NewType("Partition", int)
Offset = NewType("Offset", int)

Offsets = Mapping[Partition, Offset]  # per partition, the first offset that is not covered


def is_covered(offsets: Offsets, through: Offsets) -> bool:
    """Whether all before `offsets` is before `through` too."""
    return all(through.get(partition, 0) >= offset for partition, offset in offsets.items())


def advance(marks: dict[Partition, Offset], to: Offsets) -> None:
    """Move marks forward; none goes back."""
    for partition, offset in to.items():
        marks[partition] = max(marks.get(partition, offset), offset)


class Reached(NamedTuple):
    """How far a partition has come: the first offset that is not covered."""

    applied: Offset  # to histories
    answered: Offset  # acknowledged


Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Uint8s = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

NO_KEY = 0  # never the hash of an id; marks an empty place in a history

MAX_ID = 512  # characters; ids are keys in state and on topics, not documents
LATEST_MS = 253_402_300_799_999  # the end of the year 9999
LARGEST_VALUE = 3.4e38  # inside, a column of 32-bit floats
_MAX_CATEGORIES = 100
_AWARE = TypeAdapter(AwareDatetime)


def no_codes(*shape: int) -> Int32s:
    """Codes [*shape, features] where there are no features."""
    return np.zeros((*shape, 0), np.int32)


def stable_key(text: str) -> int:
    """The signed 64-bit BLAKE2b hash of an id; the same on every machine and never `NO_KEY`."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


def item_key(item_id: ItemId) -> ItemKey:
    return ItemKey(stable_key(item_id))


def user_key(user_id: UserId) -> UserKey:
    return UserKey(stable_key(user_id))


def _epoch_ms(value: object) -> object:
    """Epoch milliseconds from an RFC 3339 text; numbers pass.

    Digits in quotes are refused: pydantic would guess seconds or milliseconds by their size.
    """
    if isinstance(value, str):
        if value[4:5] != "-":
            raise ValueError("a text must be RFC 3339, such as 2026-01-31T09:30:00Z")
        moment: datetime = _AWARE.validate_python(value)
        return round(moment.timestamp() * 1000)
    return value


Id = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
_Ms = Annotated[int, Field(ge=0, le=LATEST_MS)]
EpochMs = Annotated[
    _Ms,
    BeforeValidator(_epoch_ms, json_schema_input_type=_Ms | datetime),
    Field(description="Epoch milliseconds, or RFC 3339 with a zone."),
]
Value = Annotated[float, Field(ge=-LARGEST_VALUE, le=LARGEST_VALUE)]


class Event(BaseModel):
    """One behaviour record from the events topic. Fields beyond these are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    user_id: Id
    item_id: Id
    event: Annotated[str, Field(min_length=1, max_length=64, description="The kind, e.g. `view`.")]
    timestamp: EpochMs
    event_id: Id | None = Field(
        default=None,
        description="One of its own for each event: when it comes again within "
        "`events.deduplicate` records, it is the same event, sent twice.",
    )
    value: Value | None = Field(default=None, description="A price, a rating, a dwell time.")
    context: dict[str, Any] | None = Field(
        default=None, description="What the model may read beside the item: see `model.context`."
    )


class ErasureRecord(BaseModel):
    """One record of the events topic that has a user forgotten: its `event` is `events.erase` of
    the settings. Fields beyond these are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    user_id: Id
    event: str


class CatalogueRecord(BaseModel):
    """One record of the items topic, keyed by item id; one without a value withdraws the item.

    Fields beyond these are ignored.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    item_id: Id
    title: str = ""
    text: str = ""
    categories: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[],
        max_length=_MAX_CATEGORIES,
        description="An item without either text or vectors begins as the mean of its categories.",
    )
    vectors: dict[str, list[float]] = Field(
        default={},
        description="By source, as long as `items.vectors` in the settings says; other sources are "
        "ignored. Only the direction of a vector counts.",
    )
    available: bool = Field(default=True, description="False: not recommended until it is again.")


class RecommendedItem(BaseModel):
    """One place of a ranking."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item_id: Id
    score: float = Field(
        description="Comparable within one recommendation only. 0: the ranking was short, and is "
        "filled up with what is popular."
    )


class Cause(BaseModel):
    """The event that a recommendation answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item_id: Id
    event: str
    timestamp: int = Field(description="Epoch milliseconds.")
    event_id: Id | None = None


class Recommendation(BaseModel):
    """One record of the recommendations topic, keyed by user id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rec_id: str = Field(
        description="TOPIC/PARTITION/OFFSET of the event: the same when sent twice."
    )
    user_id: Id
    items: list[RecommendedItem] = Field(description="Best first.")
    model_version: int = Field(ge=0)
    trained_through: dict[str, int] = Field(
        description="Per partition, the first offset whose event is not yet in the weights."
    )
    event: Cause
    generated_at: int = Field(description="Epoch milliseconds.")
    traceparent: str | None = Field(default=None, description="W3C trace context of the event.")
    tracestate: str | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """The W3C trace context of an event's headers."""

    parent: str
    state: str | None = None


@dataclass(frozen=True)
class Erasure:
    """A user is to be forgotten: all events that stand before this place in its partition."""

    partition: Partition
    offset: Offset
    user_id: UserId

    @cached_property
    def user(self) -> UserKey:
        return user_key(self.user_id)


@dataclass(frozen=True, slots=True)
class Events:
    """Decoded events of one or more partitions, as columns.

    Element i of every column belongs to the same event; events of one partition stand in
    offset order.
    """

    partition: Int32s
    offset: Int64s
    user: Int64s  # user keys
    item: Int64s  # item keys
    kind: Uint8s  # index in the settings' kinds
    timestamp: Int64s  # epoch ms, by the event itself
    appended: Int64s  # epoch ms, by Kafka
    value: Float32s  # NaN where absent
    codes: Int32s  # [events, features] what the model may read of the context; 0 where absent
    user_ids: list[UserId]
    item_ids: list[ItemId]
    event_ids: list[str | None]
    traces: list[Trace | None]

    def __len__(self) -> int:
        return len(self.offset)

    def at_or_after(self, offsets: Offsets) -> Bools:
        """Which of the events stand at or after their partition's offset; 0 where there is none."""
        marks = np.zeros(len(self), np.int64)
        for partition, offset in offsets.items():
            marks[self.partition == partition] = offset
        return self.offset >= marks

    def take(self, rows: Int64s) -> "Events":
        """Some of the events, in the order given."""
        chosen = rows.tolist()
        return Events(
            self.partition[rows],
            self.offset[rows],
            self.user[rows],
            self.item[rows],
            self.kind[rows],
            self.timestamp[rows],
            self.appended[rows],
            self.value[rows],
            self.codes[rows],
            [self.user_ids[row] for row in chosen],
            [self.item_ids[row] for row in chosen],
            [self.event_ids[row] for row in chosen],
            [self.traces[row] for row in chosen],
        )

    def erased(self, erasures: Collection[Erasure]) -> Bools:
        """Which of the events are to be forgotten."""
        return are_erased(self.partition, self.offset, self.user, erasures)


def no_events() -> Events:
    none, longs, short = np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.float32)
    kind = np.zeros(0, np.uint8)
    return Events(none, longs, longs, longs, kind, longs, longs, short, no_codes(0), [], [], [], [])


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The unit that is trained on: events as columns, with the offsets that follow them.

    Element i of every column belongs to the same event. `ordinal` is the event's place in its
    user's history, by which a reader of the history slab finds what came before it.
    """

    partition: Int32s
    offset: Int64s
    user: Int64s  # user keys
    slot: Int32s  # the user's place in the partition's history slab
    ordinal: Int64s
    item: Int64s  # item keys
    kind: Uint8s  # index in the settings' kinds
    timestamp: Int64s  # epoch ms
    value: Float32s  # NaN where absent
    codes: Int32s  # [events, features]
    item_ids: tuple[tuple[ItemKey, ItemId], ...]  # of every item in it
    next_offsets: Offsets
    opened_s: float  # monotonic time at which its oldest event was read
    erasures: tuple[Erasure, ...] = ()  # read since the last; it has no event that they erase

    def __len__(self) -> int:
        return len(self.offset)

    def take(self, rows: Int64s) -> "MicroBatch":
        """Some of the events; the offsets after the batch stay."""
        return MicroBatch(
            self.partition[rows],
            self.offset[rows],
            self.user[rows],
            self.slot[rows],
            self.ordinal[rows],
            self.item[rows],
            self.kind[rows],
            self.timestamp[rows],
            self.value[rows],
            self.codes[rows],
            self.item_ids,
            self.next_offsets,
            self.opened_s,
            self.erasures,
        )

    def without(self, erasures: Collection[Erasure]) -> "MicroBatch":
        """Without the events that these erase."""
        gone = are_erased(self.partition, self.offset, self.user, erasures)
        return self.take(np.flatnonzero(~gone)) if gone.any() else self


def are_erased(
    partition: Int32s, offset: Int64s, user: Int64s, erasures: Collection[Erasure]
) -> Bools:
    """Which events, by place and user key, stand before an erasure of their user."""
    gone = np.zeros(len(user), np.bool_)
    named = {one.user for one in erasures}.intersection(user.tolist())  # few: mostly none
    for one in erasures:
        if one.user in named:
            gone |= (user == one.user) & (partition == one.partition) & (offset < one.offset)
    return gone


def earlier(keys: Int64s) -> Int64s:
    """How often each key stands before its place."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1)) if len(keys) else order
    count = np.empty(len(keys), np.int64)
    count[order] = np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))
    return count
