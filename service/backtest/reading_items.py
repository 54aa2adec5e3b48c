"""Files of items: what a catalogue says of them, in the formats of event files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson

from service.backtest.options import ItemColumns
from service.backtest.reading import numbered
from service.domain import MAX_ID, Float32s, ItemId, item_key
from service.errors import ConfigurationError
from service.settings import VectorSettings
from service.state.catalogue import CatalogueItem, vectors_from

_SEPARATORS = str.maketrans("|;", ",,")  # between categories in one field


def read_items(
    file: Path, columns: ItemColumns, sources: Sequence[VectorSettings] = ()
) -> list[CatalogueItem]:
    """Each item once, as its last row has it, with the vectors of the `sources`. Raises
    ConfigurationError."""
    strangers = {name for name, _ in columns.vectors} - {source.name for source in sources}
    if strangers:
        raise ConfigurationError(
            f"--items-vectors names {', '.join(sorted(strangers))}, which items.vectors does not"
        )
    items: dict[ItemId, CatalogueItem] = {}
    unmet = set(columns.named)
    for line, row in numbered(file):
        if isinstance(row, str):
            raise ConfigurationError(f"{file}:{line}: {row}")
        try:
            vectors = vectors_from(_numbers(row, columns, sources), sources)
        except ValueError as error:
            raise ConfigurationError(f"{file}:{line}: {error}") from None
        unmet -= row.keys()
        item = _item(file, line, row, columns, vectors)
        items[item.item_id] = item
    if unmet:
        raise ConfigurationError(
            f"{file} has no column {', '.join(map(repr, sorted(unmet)))}; --items-text, "
            "--items-categories and --items-vectors name them"
        )
    has_vectors = any(item.vectors for item in items.values())
    if sources and not has_vectors:
        named = ", ".join(column for _, column in _vector_columns(columns, sources))
        raise ConfigurationError(
            f"{file} has no vector in the columns {named}; --items-vectors names them"
        )
    if not has_vectors and not any(item.text for item in items.values()):
        raise ConfigurationError(
            f"{file} has no text in the columns {', '.join(columns.text)}; --items-text names them"
        )
    return list(items.values())


def _item(
    file: Path,
    line: int,
    row: Mapping[str, object],
    columns: ItemColumns,
    vectors: dict[str, Float32s],
) -> CatalogueItem:
    value = row.get(columns.item)
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(name, str) or not 0 < len(name) <= MAX_ID:
        raise ConfigurationError(
            f"{file}:{line}: {columns.item} is no id: {value!r}; --items-id names its column"
        )
    item = ItemId(name)
    text = " ".join(str(row[column]) for column in columns.text if row.get(column))
    categories = _categories(row.get(columns.categories))
    return CatalogueItem(item_key(item), item, text, categories, vectors)


def _vector_columns(
    columns: ItemColumns, sources: Sequence[VectorSettings]
) -> list[tuple[str, str]]:
    """The source and the column of each kind of vectors."""
    named = dict(columns.vectors)
    return [(source.name, named.get(source.name, source.name)) for source in sources]


def _numbers(
    row: Mapping[str, object], columns: ItemColumns, sources: Sequence[VectorSettings]
) -> dict[str, list[float]]:
    """The vectors of a row, each a list, or one as JSON in a field. Raises ValueError."""
    found = {}
    for name, column in _vector_columns(columns, sources):
        value = row.get(column)
        if isinstance(value, str):
            try:
                value = orjson.loads(value) if value.strip() else None
            except orjson.JSONDecodeError:
                raise ValueError(
                    f"{column} is no vector: a field has it as JSON, [0.1, 2]"
                ) from None
        if value is None:
            continue
        if not isinstance(value, list) or not all(type(one) in (int, float) for one in value):
            raise ValueError(f"{column} is no vector: it is not a list of numbers")
        found[name] = value
    return found


def _categories(value: object) -> tuple[str, ...]:
    """A list, or one field in which they are separated."""
    if isinstance(value, list):
        return tuple(str(one) for one in value)
    parts = str(value or "").translate(_SEPARATORS).split(",")
    return tuple(part.strip() for part in parts if part.strip())
