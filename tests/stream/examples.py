"""Records as a source reads them."""

from typing import Any

import orjson

from service.stream.codec import Header, Record

NOW_MS = 1_700_000_000_000


def plain_event(**fields: Any) -> dict[str, Any]:
    """An event as its JSON says it; a field given as None is left out."""
    event = {"user_id": "u1", "item_id": "i1", "event": "view", "timestamp": NOW_MS} | fields
    return {name: value for name, value in event.items() if value is not None}


def record(
    value: object, *, offset: int = 7, partition: int = 2, headers: tuple[Header, ...] = ()
) -> Record:
    """A record that holds these bytes, or this object as JSON."""
    data = value if isinstance(value, bytes) or value is None else orjson.dumps(value)
    return Record(partition, offset, NOW_MS + 5, b"u1", data, headers)
