"""The catalogue: what is told of items beside the events."""

from dataclasses import dataclass, field

from service.domain import Float32s, ItemId, ItemKey


@dataclass(frozen=True, slots=True)
class CatalogueItem:
    """One item as the catalogue describes it."""

    key: ItemKey
    item_id: ItemId
    text: str = ""
    categories: tuple[str, ...] = ()
    vectors: dict[str, Float32s] = field(default_factory=dict)  # [width] each, by source
