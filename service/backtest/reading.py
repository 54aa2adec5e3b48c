"""Event files: CSV, TSV, JSONL and Parquet, each also compressed by gzip, as a `Table`.

What the topic's decoder would refuse is a bad row here: it ends the reading with the line's
number, or is left out and counted.
"""

import codecs
import csv
import gzip
import importlib
import io
import math
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import orjson

from service.backtest.options import Columns, TimeUnit
from service.backtest.table import Table, keys_of
from service.domain import LARGEST_VALUE, LATEST_MS, MAX_ID, ItemId, UserId
from service.errors import ConfigurationError
from service.settings import CategoryFeature, EventsSettings, Feature, NumberFeature
from service.state.features import Context, Features, at

_Row = Mapping[str, object]
# Line numbers, from 1, and rows; a text says why a line is no row.
Numbered = Iterator[tuple[int, _Row | str]]
# Milliseconds below this are before March 1973: more likely they are seconds.
_LEAST_LIKELY_MS = 100_000_000_000
_NEVER_CLOSED = "unexpected end of data"  # of csv.Error
MS_APART = 1000  # events without a time
_OBJECTS = (".jsonl", ".ndjson")
_FIRST_ROWS = 1000  # that tell what all have: the first alone may be a bad one


@dataclass(frozen=True, slots=True)
class Read:
    """A file."""

    table: Table  # in time order
    bad: int  # rows left out
    first_bad: str | None  # where the first of them stands, and why
    timed: bool  # False: without a time column, in the order of the file
    repeated: int = 0  # rows left out because of their event_id, as the service does


@dataclass(frozen=True, slots=True)
class _Event:
    user: str
    item: str
    kind: int
    time_ms: int
    value: float
    context: Context | None
    event_id: str | None


class BadRowError(Exception):
    """Why a row is no event."""


def read(
    file: Path,
    columns: Columns,
    settings: EventsSettings,
    features: Sequence[Feature] = (),
    *,
    skip_bad: bool = False,
) -> Read:
    """All events of a file, in time order, with codes of `features`. Raises ConfigurationError."""
    _require_read(columns.context, features)
    events: list[_Event] = []
    parser, bad, first_bad = None, 0, None
    stood: dict[str, int] = {}  # at which of the rows each event_id was last
    repeated = 0
    # Objects differ: what not all must have may come with any of them.
    later = _optional(columns) if _ending(file) in _OBJECTS else set[str]()
    rows = numbered(file)
    first = list(islice(rows, _FIRST_ROWS))
    objects = [row for _, row in first if not isinstance(row, str)]
    found = dict.fromkeys(name for row in objects for name in row)
    names = _names(columns, settings)
    whole = [row for row in objects if all(_at(row, names[one]) for one in ("user", "item"))]
    counts = Counter(name for row in whole for name in row)
    most = {name for name, rows_with in counts.items() if 2 * rows_with >= len(whole)}
    for line, row in chain(first, rows):
        try:
            if isinstance(row, str):
                raise BadRowError(row)
            found = found or dict.fromkeys(row)
            parser = parser or _parser(
                file, names, [*found, *later], most or found, columns, settings, features
            )
            later -= row.keys()
            event = parser.event(row, len(events))
            if event.event_id is not None:
                place, last = len(events) + repeated, stood.get(event.event_id)
                if last is not None and place - last <= settings.deduplicate:
                    repeated += 1
                    continue
                stood[event.event_id] = place
            events.append(event)
        except BadRowError as error:
            if not skip_bad:
                raise ConfigurationError(
                    f"{file}:{line}: {error}; --skip-bad leaves such rows out and counts them"
                ) from None
            bad, first_bad = bad + 1, first_bad or f"{file.name}:{line}: {error}"
    if parser is None or not events:
        raise ConfigurationError(f"{file} holds no events{f': {first_bad}' if first_bad else ''}")
    if later:
        raise ConfigurationError(f"{file} has {min(later)!r} in none of its objects")
    table = _table(events, Features(features, settings.kinds))
    return Read(table, bad, first_bad, parser.timed, repeated)


def _ending(file: Path) -> str:
    """That says what the file holds, compressed or not."""
    return (file.with_suffix("") if file.suffix == ".gz" else file).suffix


def _optional(columns: Columns) -> set[str]:
    """The columns that were named of which an event may have nothing."""
    value = {columns.value.partition(".")[0]} if columns.value else set[str]()
    return value | set(columns.context)


def _require_read(context: Sequence[str], features: Sequence[Feature]) -> None:
    """Raises ConfigurationError where a column was named that no feature reads."""
    named = {one.name for one in features if isinstance(one, CategoryFeature | NumberFeature)}
    unread = [name for name in context if name not in named]
    if unread:
        raise ConfigurationError(
            f"--context names {', '.join(unread)}, which no feature in model.context reads: add it "
            'there as {"kind": "category", "name": "NAME"}, or of the kind "number"'
        )


def _parser(
    file: Path,
    names: Mapping[str, str],
    found: Collection[str],
    most: Collection[str],
    columns: Columns,
    settings: EventsSettings,
    features: Sequence[Feature],
) -> "_Parser":
    """For the columns `names`, of those that were `found`, or stand in `most` rows. Raises
    ConfigurationError where one is missing that was named, or that must be."""
    for ours, theirs in names.items():
        if not _is_in(theirs, found) and (ours in ("user", "item") or getattr(columns, ours)):
            raise ConfigurationError(
                f"{file} has no column {theirs!r} but {', '.join(map(repr, found))}; "
                "--user, --item, --time, --event and --value name them"
            )
    missing = [name for name in columns.context if name not in found]
    if missing:
        raise ConfigurationError(
            f"{file} has no column {missing[0]!r} but {', '.join(map(repr, found))}"
        )
    return _Parser(
        names,
        settings,
        columns.time_unit,
        columns.context,
        features,
        timed=bool(columns.time) or _is_in(names["time"], most),
        has_kind=bool(columns.event) or _is_in(names["event"], most),
    )


def _is_in(name: str, found: Collection[str]) -> bool:
    """Whether a column is there, or what its path begins with."""
    return name in found or name.partition(".")[0] in found


def _names(columns: Columns, settings: EventsSettings) -> dict[str, str]:
    theirs = settings.fields
    default = Columns(theirs.user_id, theirs.item_id, theirs.timestamp, theirs.event, theirs.value)
    return {
        column.name: getattr(columns, column.name) or getattr(default, column.name)
        for column in fields(Columns)
        if column.name not in ("time_unit", "context")
    }


class _Parser:
    """Rows to events, by the names of the columns."""

    def __init__(
        self,
        names: Mapping[str, str],
        settings: EventsSettings,
        unit: TimeUnit | None,
        context: Sequence[str],
        features: Sequence[Feature],
        *,
        timed: bool,
        has_kind: bool,
    ) -> None:
        self._name = names
        self._kinds = {kind: code for code, kind in enumerate(settings.kinds)}
        self._unit = unit
        self._context_name = settings.fields.context
        self._event_id_name = settings.fields.event_id
        self._context_columns = context
        self._has_features = bool(features)
        self._has_later = False  # than the least likely
        self.timed = timed
        self._has_kind = has_kind

    def event(self, row: _Row, number: int) -> _Event:
        """The `number`th event. Raises BadRowError."""
        return _Event(
            self._id(row, "user"),
            self._id(row, "item"),
            self._kind(row) if self._is_there(row, "event", self._has_kind) else 0,
            self._time(row) if self._is_there(row, "time", self.timed) else number * MS_APART,
            self._value(row),
            self._context(row) if self._has_features else None,
            self._event_id(row),
        )

    def _is_there(self, row: _Row, column: str, in_all: bool) -> bool:
        """As in the first rows; JSON objects may differ."""
        if not in_all and self._get(row, column) is not None:
            raise BadRowError(
                f"it has {self._name[column]!r}, which the first rows have not: give all or none"
            )
        return in_all

    def _get(self, row: _Row, column: str) -> Any:
        return _at(row, self._name[column])

    def _context(self, row: _Row) -> Context:
        """An object, or its JSON, and the columns that belong to it."""
        context = _at(row, self._context_name)
        if isinstance(context, str):
            found = _json_row(context.encode()) if context else {}
            if isinstance(found, str):
                raise BadRowError(f"{self._context_name} is {found}")
            context = found
        own = {name: row.get(name) for name in self._context_columns}
        return {**context, **own} if isinstance(context, Mapping) else own

    def _event_id(self, row: _Row) -> str | None:
        """None where it has none: an empty one names nothing."""
        value = _at(row, self._event_id_name)
        return None if value is None or value == "" else str(value)

    def _id(self, row: _Row, column: str) -> str:
        value = self._get(row, column)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not 0 < len(value) <= MAX_ID:
            raise BadRowError(f"{self._name[column]} is no id: {_shown(value)}")
        return value

    def _kind(self, row: _Row) -> int:
        kind = self._get(row, "event")
        if not isinstance(kind, str) or kind not in self._kinds:
            raise BadRowError(
                f"event kind {_shown(kind)} is not in events.kinds ({', '.join(self._kinds)})"
            )
        return self._kinds[kind]

    def _value(self, row: _Row) -> float:
        value = self._get(row, "value")
        if value is None or value == "":
            return math.nan
        number = _number(value)
        if number is None or abs(number) > LARGEST_VALUE:
            raise BadRowError(f"{self._name['value']} is no number: {_shown(value)}")
        return number

    def _time(self, row: _Row) -> int:
        value = self._get(row, "time")
        number = _number(value)
        if number is None:
            time_ms = _moment(value, self._name["time"])
        elif self._unit is TimeUnit.SECONDS:
            time_ms = round(number * 1000)
        else:
            time_ms = round(number)
            if self._unit is None and 0 <= time_ms < _LEAST_LIKELY_MS:
                told = f"{self._name['time']} {_shown(value)} is before 1973 in milliseconds"
                if self._has_later:
                    raise BadRowError(f"{told}, and times before it are not")
                raise ConfigurationError(
                    f"{told}: say --time-unit s, or --time-unit ms if it is meant"
                )
            self._has_later = True
        if not 0 <= time_ms <= LATEST_MS:
            raise BadRowError(f"{self._name['time']} is out of range: {_shown(value)}")
        return time_ms


def _at(row: _Row, name: str) -> Any:
    """A column of this name, or, as events have it, what lies at its dotted path."""
    return row[name] if name in row else at(row, tuple(name.split(".")))


def _number(value: object) -> float | None:
    """A finite number, from a text too."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _moment(value: object, name: str) -> int:
    """RFC 3339, or what Parquet gives; that without a zone is UTC."""
    moment = value
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if isinstance(moment, datetime) and moment.tzinfo is None:
            raise BadRowError(f"{name} has no zone, such as a Z at the end: {_shown(value)}")
    if not isinstance(moment, datetime):
        raise BadRowError(f"{name} is neither a number nor RFC 3339: {_shown(value)}")
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _shown(value: object) -> str:
    return repr(value)[:80]


def _table(events: list[_Event], features: Features) -> Table:
    time = np.array([event.time_ms for event in events], np.int64)
    order = np.argsort(time, kind="stable")
    ordered = [events[place] for place in order.tolist()]
    user_ids = [UserId(event.user) for event in ordered]
    item_ids = [ItemId(event.item) for event in ordered]
    kind, time = np.array([event.kind for event in ordered], np.uint8), time[order]
    return Table(
        keys_of(user_ids),
        keys_of(item_ids),
        kind,
        time,
        np.array([event.value for event in ordered], np.float32),
        features.codes([event.context for event in ordered], kind, time),
        user_ids,
        item_ids,
    )


def numbered(file: Path) -> Numbered:
    """The rows of a file with their line numbers. Raises ConfigurationError."""
    try:
        match _ending(file):
            case ".csv":
                yield from _separated(file, ",", csv.QUOTE_MINIMAL)
            case ".tsv":
                yield from _separated(file, "\t", csv.QUOTE_NONE)
            case ending if ending in _OBJECTS:
                yield from _json_lines(file)
            case ".parquet":
                yield from _parquet(file)
            case other:
                raise ConfigurationError(
                    f"{file}: unknown ending {other!r}; "
                    "known are .csv, .tsv, .jsonl, .ndjson and .parquet, each also with .gz"
                )
    except (OSError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigurationError(f"cannot read {file}: {reason}") from None
    except (csv.Error, zlib.error) as error:
        raise ConfigurationError(f"{file} is not what its ending says: {error}") from None


def _bytes(file: Path) -> IO[bytes]:
    if file.suffix == ".gz":
        return cast(IO[bytes], gzip.open(file))
    return file.open("rb")


def _separated(file: Path, separator: str, quoting: Literal[0, 3]) -> Numbered:
    with (
        _bytes(file) as raw,
        io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as lines,
    ):
        rows = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
        header = next(rows, [])
        if not _is_utf8(header):
            raise ConfigurationError(f"{file} is not UTF-8")
        header = _told_apart(header)
        for row in _rows_of(rows):
            if isinstance(row, str):
                yield rows.line_num, row
            elif len(row) == len(header):
                yield rows.line_num, dict(zip(header, row, strict=True))
            elif row:  # not an empty line
                yield rows.line_num, f"{len(row)} fields, but the header has {len(header)}"


def _told_apart(header: list[str]) -> list[str]:
    """With numbers behind names that stand there more than once: none of them is found then."""
    counts, place = Counter(header), Counter[str]()
    names = []
    for name in header:
        place[name] += 1
        names.append(f"{name} ({place[name]})" if counts[name] > 1 else name)
    return names


def _rows_of(reader: Any) -> Iterator[list[str] | str]:
    """The rows of a csv.reader; a text says why one is none. Raises csv.Error where a quote is not
    closed in its line: what follows is lost up to the next quote, or all of it."""
    while True:
        before = reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > before + 1 or str(error) == _NEVER_CLOSED:
                raise csv.Error(f"{error} (a quote from line {before + 1} on)") from None
            yield str(error)
        else:
            yield row if _is_utf8(row) else "not UTF-8"


def _is_utf8(row: Sequence[str]) -> bool:
    """Whether no byte had to be escaped."""
    try:
        "".join(row).encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_lines(file: Path) -> Numbered:
    with _bytes(file) as lines:
        for number, line in enumerate(lines, start=1):
            told = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if told.strip():
                yield number, _json_row(told)


def _json_row(line: bytes) -> _Row | str:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else "not a JSON object"


def _parquet(file: Path) -> Numbered:
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigurationError(f"to read {file}: `pip install pyarrow`") from None
    with _bytes(file) as raw:
        content = io.BytesIO(raw.read())
    try:
        batches = parquet.ParquetFile(content).iter_batches()
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (ValueError, arrow.ArrowException) as error:  # as of times finer than microseconds
        raise ConfigurationError(f"{file} cannot be read: {error}") from None
