"""The histories of a service that lives, read from outside: from its shared memory."""

from multiprocessing import shared_memory
from pathlib import Path
from typing import cast

import numpy as np

from service.domain import Partition
from service.settings import Settings, load_settings
from service.state.features import keys_of
from service.state.histories import SLACK, HistorySlab, SlabAddress, slab_bytes
from tests.faults.oracle import Found
from tests.integration.running import Service, shared_memory_of

_SHARED_MEMORY = Path("/dev/shm")


class _Copy:
    """Stands in for shared memory. To attach to it for real would make this process's resource
    tracker remove it when we end."""

    def __init__(self, data: bytes) -> None:
        self.buf = memoryview(data)

    def close(self) -> None:
        self.buf = memoryview(b"")


def read_histories(service: Service) -> dict[int, Found]:
    """By user key, of all partitions that the service owns. It must be idle."""
    settings = load_settings(None, service.environ, {})
    found: dict[int, Found] = {}
    for name in shared_memory_of(service.pid):
        data = (_SHARED_MEMORY / name).read_bytes()
        found |= _of_slab(name, data, settings)
    return found


def _of_slab(name: str, data: bytes, settings: Settings) -> dict[int, Found]:
    features = keys_of(settings.model.context)
    size = slab_bytes(settings.history, len(features))
    if len(data) < size:  # rounded up to pages on some systems
        return {}
    address = SlabAddress(
        Partition(0),  # of no meaning to who reads it
        name,
        settings.history.users,
        settings.history.events + SLACK,
        tuple(features),
    )
    slab = HistorySlab(address, cast(shared_memory.SharedMemory, _Copy(data)), owner=False)
    slots = np.arange(slab.used, dtype=np.int32)
    counts = slab.counts(slots)
    windows = slab.all_windows(slots, counts, settings.history.events)
    return {
        user: Found(
            tuple(offset for offset in offsets if offset >= 0),
            tuple(item for item, offset in zip(items, offsets, strict=True) if offset >= 0),
        )
        for user, items, offsets in zip(
            slab.users(slots).tolist(),
            windows.item.tolist(),
            windows.offset.tolist(),
            strict=True,
        )
    }
