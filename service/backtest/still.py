"""A memory that learns nothing more."""

from service.domain import Int64s, ItemId, ItemKey
from service.model.memory import Memory
from service.model.vocabulary import Vocabulary
from service.settings import MemorySettings


class StillMemory(Memory):
    """Recalls what it was loaded with."""

    def learn(self, item: ItemKey, item_id: ItemId, before: Int64s) -> None:
        pass


def still(memory: Memory | None, settings: MemorySettings) -> StillMemory | None:
    """A copy of what a memory knows now."""
    if memory is None:
        return None
    tensors = memory.tensors()
    ids = [memory.item_id(key) for key in tensors["memory.key"].tolist()]
    copy = StillMemory(settings)
    copy.load(tensors, Vocabulary((ItemId(""), *(name for name in ids if name is not None))))
    return copy
