"""Small slabs, and what a reader in another process sees of one."""

from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np

from service.domain import Int32s, Int64s, Partition
from service.settings import HistorySettings
from service.state.histories import HistorySlab, SlabAddress


def a_slab(
    users: int = 8, events: int = 4, partition: int = 0, features: Sequence[str] = ()
) -> HistorySlab:
    settings = HistorySettings(users=users, events=events)
    return HistorySlab.create(Partition(partition), settings, features)


def append(slab: HistorySlab, users: list[int], items: list[int]) -> tuple[Int32s, Int64s]:
    """Events whose time and offset are the number of their item."""
    return slab.append(
        np.array(users, np.int64),
        np.array(items, np.int64),
        np.zeros(len(users), np.uint8),
        np.array(items, np.int64),
        np.array(items, np.int64),
    )


def send_windows(address: SlabAddress, slot: int, end: int, answers: Connection) -> None:
    """Attaches, reads one window, sends it, and leaves."""
    slab = HistorySlab.attach(address)
    windows = slab.windows(np.array([slot], np.int32), np.array([end], np.int64), 4)
    answers.send((slab.used, windows.item.tolist(), windows.intact.tolist()))
    slab.close()
