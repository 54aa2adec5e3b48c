"""What is kept of an event's context: one code for each feature in the settings.

A code is what was said, not yet what a model makes of it: buckets and scales belong to a version's
weights. So versions with other features read the same histories, and one that does not know a
column passes it over.

    category, event kind   a hash of the text, 1 or more
    number                 the bits of its 32-bit float
    hour                   1 for the first of the day, UTC
    gap                    1 and the seconds since the user's event before

0 says that there is nothing. A context that a feature cannot read counts as absent: what is said
beside an event is no reason to lose it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from service.domain import LARGEST_VALUE, Bools, Int32s, Int64s, Uint8s, stable_key
from service.settings import (
    CategoryFeature,
    EventKindFeature,
    Feature,
    GapFeature,
    HourFeature,
    NumberFeature,
)

Context = Mapping[str, Any]

_LARGEST = 2**31 - 1
_ZERO = np.float32(-0.0)  # for the number 0, whose bits would say that there is none
_HOUR_MS = 3_600_000
_READ = (str, int, float)  # and bool, which is an int


class Features:
    """The features of the settings, as columns."""

    def __init__(self, features: Sequence[Feature] = (), kinds: Sequence[str] = ()) -> None:
        self._features = tuple(features)
        self._names = [
            one.name for one in features if isinstance(one, CategoryFeature | NumberFeature)
        ]
        self._kinds = np.array([hashed(kind) for kind in kinds], np.int32)

    def needed(self, context: Context) -> dict[str, Any]:
        """What of a context is read, by the features' names: a context may be large, and events are
        held by the thousand."""
        found = {name: _found([context], name)[0] for name in self._names}
        return {name: value for name, value in found.items() if isinstance(value, _READ)}

    def codes(self, contexts: Sequence[Context | None], kind: Uint8s, timestamp: Int64s) -> Int32s:
        """Of some events. [events, features], without gaps: histories tell those."""
        codes = np.zeros((len(contexts), len(self._features)), np.int32)
        for place, feature in enumerate(self._features):
            match feature:
                case CategoryFeature(name=name):
                    codes[:, place] = list(map(category_code, _found(contexts, name)))
                case NumberFeature(name=name):
                    codes[:, place] = number_codes(_found(contexts, name))
                case EventKindFeature():
                    codes[:, place] = self._kinds[kind]
                case HourFeature():
                    codes[:, place] = 1 + timestamp // _HOUR_MS % 24
                case GapFeature():
                    pass
        return codes


def keys_of(features: Sequence[Feature]) -> tuple[str, ...]:
    """By which columns are found, whatever else the settings say of a feature."""
    return tuple(feature.key for feature in features)


def gap_place(keys: Sequence[str]) -> int | None:
    """The column of the gap, if there is one."""
    key = GapFeature().key
    return keys.index(key) if key in keys else None


def gap_codes(time: Int64s, before: Int64s, is_first: Bools) -> Int32s:
    """From the times of events and of those before them. [events]"""
    code = 1 + np.clip((time - before) // 1000, 0, _LARGEST - 1)
    return np.where(is_first, 0, code).astype(np.int32)


def picked(codes: Int32s, present: Sequence[str], wanted: Sequence[str]) -> Int32s:
    """Codes [any, present] as somebody with other features sees them. [any, wanted]"""
    if tuple(present) == tuple(wanted):
        return codes
    chosen = np.zeros((*codes.shape[:-1], len(wanted)), np.int32)
    for place, key in enumerate(wanted):
        if key in present:
            chosen[..., place] = codes[..., present.index(key)]
    return chosen


def _found(contexts: Sequence[Context | None], name: str) -> list[object]:
    """What stands at a name, or a dotted name, of each; None where nothing does."""
    path = name.split(".")
    return [one[name] if one is not None and name in one else at(one, path) for one in contexts]


def at(place: Any, path: Sequence[str]) -> Any:
    """What stands in nested objects behind these keys; None where nothing does."""
    for key in path:
        place = place.get(key) if isinstance(place, Mapping) else None
    return place


def kind_codes(then: Sequence[str], now: Sequence[str]) -> tuple[Uint8s, Bools]:
    """What the codes of kinds `then` are `now`, and which still are of a kind. [256] each: rows
    from before names were kept may have any."""
    code, is_known = np.zeros(256, np.uint8), np.zeros(256, np.bool_)
    for place, kind in enumerate(then):
        if kind in now:
            code[place], is_known[place] = now.index(kind), True
    return code, is_known


def category_code(value: object) -> int:
    if isinstance(value, bool):
        value = "true" if value else "false"
    if isinstance(value, int | float):
        value = str(value)
    return hashed(value) if isinstance(value, str) and value else 0


def number_codes(values: Sequence[object]) -> Int32s:
    number = np.array(list(map(_number, values)), np.float32)
    code = np.where(number == 0, _ZERO, number).view(np.int32)
    return np.where(np.isnan(number), 0, code)


def _number(value: object) -> float:
    """NaN where it is none that 32 bits hold."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return math.nan
    return number if abs(number) <= LARGEST_VALUE else math.nan


def hashed(text: str) -> int:
    """1 .. 2**31 - 1; the same on every machine."""
    return 1 + (stable_key(text) % _LARGEST)
