"""Files of items: what a catalogue says of them, in the formats of event files."""

from collections.abc import Mapping
from pathlib import Path

from service.backtest.options import ItemColumns
from service.backtest.reading import numbered
from service.domain import MAX_ID, ItemId, item_key
from service.errors import ConfigurationError
from service.state.catalogue import CatalogueItem

_SEPARATORS = str.maketrans("|;", ",,")  # between categories in one field


def read_items(file: Path, columns: ItemColumns) -> list[CatalogueItem]:
    """Each item once, as its last row has it. Raises ConfigurationError."""
    items: dict[ItemId, CatalogueItem] = {}
    has_text = False
    for line, row in numbered(file):
        if isinstance(row, str):
            raise ConfigurationError(f"{file}:{line}: {row}")
        item = _item(file, line, row, columns)
        items[item.item_id] = item
        has_text = has_text or bool(item.text)
    if not has_text:
        raise ConfigurationError(
            f"{file} has no text in the columns {', '.join(columns.text)}; --items-text names them"
        )
    return list(items.values())


def _item(file: Path, line: int, row: Mapping[str, object], columns: ItemColumns) -> CatalogueItem:
    value = row.get(columns.item)
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(name, str) or not 0 < len(name) <= MAX_ID:
        raise ConfigurationError(
            f"{file}:{line}: {columns.item} is no id: {value!r}; --items-id names its column"
        )
    item = ItemId(name)
    text = " ".join(str(row[column]) for column in columns.text if row.get(column))
    return CatalogueItem(item_key(item), item, text, _categories(row.get(columns.categories)))


def _categories(value: object) -> tuple[str, ...]:
    """A list, or one field in which they are separated."""
    if isinstance(value, list):
        return tuple(str(one) for one in value)
    parts = str(value or "").translate(_SEPARATORS).split(",")
    return tuple(part.strip() for part in parts if part.strip())
