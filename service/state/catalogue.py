"""The catalogue: what is told of items beside the events."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from service.domain import Float32s, Int64s, ItemId, ItemKey
from service.settings import VectorSettings


@dataclass(frozen=True, slots=True)
class CatalogueItem:
    """One item as the catalogue describes it; the last word on it counts."""

    key: ItemKey
    item_id: ItemId
    text: str = ""
    categories: tuple[str, ...] = ()
    vectors: dict[str, Float32s] = field(default_factory=dict)  # [width] each, by source
    available: bool = True


def vectors_from(
    given: Mapping[str, Sequence[float]], sources: Sequence[VectorSettings]
) -> dict[str, Float32s]:
    """Of what is `given` for an item, by source, that of the known sources.

    A vector of zeros points nowhere and is left out. Raises ValueError, with the reason, for one
    that does not fit its source.
    """
    found = {}
    for source in sources:
        numbers = given.get(source.name)
        if numbers is None:
            continue
        if len(numbers) != source.width:
            raise ValueError(
                f"vectors.{source.name}: {len(numbers)} numbers; items.vectors says {source.width}"
            )
        with np.errstate(over="ignore"):
            vector = np.array(numbers, np.float64).astype(np.float32)
        if not np.isfinite(vector).all():
            raise ValueError(f"vectors.{source.name}: a number is not finite in 32 bits")
        if vector.any():
            found[source.name] = vector
    return found


class Catalogue:
    """Which items may not be recommended. Nothing is told of most: these may be."""

    def __init__(self) -> None:
        self._gone: set[int] = set()
        self._withdrawn: Int64s = np.zeros(0, np.int64)
        self._is_current = True

    @property
    def withdrawn(self) -> Int64s:
        """Item keys, rising. Another array once it has changed, so that another thread may hold on
        to this one."""
        if not self._is_current:
            self._withdrawn = np.sort(np.fromiter(self._gone, np.int64, len(self._gone)))
            self._is_current = True
        return self._withdrawn

    def learn(self, items: Iterable[CatalogueItem]) -> None:
        """Take what is told of items, in the order in which it was told."""
        for item in items:
            if item.available == (item.key in self._gone):
                self._is_current = False
                (self._gone.discard if item.available else self._gone.add)(item.key)
