"""Writes state snapshots beside the pipeline, which does not wait for them."""

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

from service.domain import Offsets, Partition
from service.metrics import Metrics
from service.settings import Settings
from service.state.duplicates import Arrays, Duplicates
from service.state.features import keys_of
from service.state.histories import HistorySlab
from service.state.snapshots import SnapshotCancelledError, Snapshots
from service.storage.store import Store

log = logging.getLogger(__name__)

_NICE = 10
# Erasures of so long share a snapshot, which may have to be full.
ERASED_WITHIN_S = 5.0
# When partitions are given up the next owner, or who stops us, waits for it.
_LAST_WITHIN_S = 5.0


def snapshots_of(settings: Settings) -> Snapshots:
    """Raises ConfigurationError for storage of which nothing installed knows."""
    return Snapshots(
        Store(settings.storage.snapshots_url),
        settings.topics.events,
        settings.reading.group_id,
        settings.events.kinds,
        keys_of(settings.model.context),
        settings.storage.keep_snapshots,
    )


def in_the_background() -> None:
    """The calling thread runs when others leave the processor to it. Linux alone can do that to one
    thread; elsewhere nothing changes."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


class Snapshotter:
    """One snapshot at a time, of all partitions one after the other, in a thread."""

    def __init__(
        self,
        snapshots: Snapshots,
        every_s: float | None,
        metrics: Metrics,
        slabs: Mapping[Partition, HistorySlab],
        duplicates: Duplicates,
        thread: Executor,
    ) -> None:
        """`slabs` are those at hand; they and `snapshots` are others' only after `settle`."""
        self._snapshots = snapshots
        self._every_s = every_s
        self._metrics = metrics
        self._slabs = slabs
        self._duplicates = duplicates
        self._thread = thread
        self._cancel = threading.Event()
        self._writing: asyncio.Future[None] | None = None

    async def run(self, lock: asyncio.Lock, applied: Callable[[], Offsets]) -> None:
        """Every now and then, and soon after an erasure, for ever. Under `lock` no event is being
        applied."""
        while self._every_s is not None:
            await self._until_due(self._every_s)
            async with lock:
                writing = self._start(applied())
            await asyncio.wait([writing])

    async def _until_due(self, every_s: float) -> None:
        due_s = time.monotonic() + every_s
        while (left_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, ERASED_WITHIN_S))
            if any(slab.erased for slab in self._slabs.values()):
                return

    async def last(self, applied: Offsets) -> None:
        """Once more, before the slabs go; given up where it takes too long. Under the lock."""
        await self.settle()
        if self._every_s is not None:
            await asyncio.wait([self._start(applied)], timeout=_LAST_WITHIN_S)
            await self.settle()

    async def settle(self) -> None:
        """End what is under way: after this nobody reads the slabs."""
        if self._writing is not None:
            self._cancel.set()
            await asyncio.wait([self._writing])
            self._cancel.clear()

    def _start(self, applied: Offsets) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        seen = self._duplicates.dump()
        self._writing = loop.run_in_executor(self._thread, self._write, applied, seen)
        return self._writing

    def _write(self, applied: Offsets, seen: Mapping[Partition, Arrays]) -> None:
        """In the thread. What fails is told, and tried again next time."""
        for partition, offset in applied.items():
            started_s = time.monotonic()
            try:
                written = self._snapshots.write(
                    self._slabs[partition], offset, self._cancel, seen.get(partition)
                )
            except SnapshotCancelledError:
                return
            # Storage clients raise what they like, and serving does not depend on it.
            except Exception as error:  # noqa: BLE001
                self._metrics.snapshots.labels("failed").inc()
                log.error("no snapshot of partition %d at %d: %s", partition, offset, error)
                continue
            if written is not None:
                self._metrics.snapshots.labels("written").inc()
                self._metrics.snapshot_seconds.observe(time.monotonic() - started_s)
                self._metrics.snapshot_bytes.labels(partition).set(written.manifest.bytes)
                self._metrics.snapshot_time.labels(partition).set(
                    written.manifest.created_at / 1000
                )
