"""Writes state snapshots beside the pipeline, which does not wait for them."""

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from service.domain import Partition, Reached
from service.errors import SnapshotCancelledError
from service.metrics import Metrics
from service.settings import Settings
from service.state.duplicates import Arrays, Duplicates
from service.state.features import keys_of
from service.state.histories import HistorySlab
from service.state.snapshots import Snapshots
from service.storage.store import Store

log = logging.getLogger(__name__)

_NICE = 10
# Erasures of so long share a snapshot, which may have to be full.
ERASED_WITHIN_S = 5.0
# Under a run of erasures it rests for so many times as long as the last snapshot took.
ERASED_REST = 4
# When partitions are given up the next owner, or who stops us, waits for it.
_LAST_WITHIN_S = 5.0
# A snapshot that takes longer counts as one that failed, again and again.
_TOLD_AFTER_S = 300.0
# A call of the storage that takes longer, once it is to end, may never return.
_SETTLED_WITHIN_S = 30.0


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
    """One snapshot at a time, of all partitions one after the other, in a thread of its own: one
    that hangs in the storage holds up nobody."""

    def __init__(
        self,
        snapshots: Snapshots,
        every_s: float | None,
        metrics: Metrics,
        slabs: Mapping[Partition, HistorySlab],
        duplicates: Duplicates,
    ) -> None:
        """`slabs` are those at hand; they are others' only after `settle`."""
        self._snapshots = snapshots
        self._every_s = every_s
        self._metrics = metrics
        self._slabs = slabs
        self._duplicates = duplicates
        self._cancel = threading.Event()
        self._writing: asyncio.Future[None] | None = None
        self._took_s = 0.0  # the last one

    async def run(
        self, lock: asyncio.Lock, reached: Callable[[], Mapping[Partition, Reached]]
    ) -> None:
        """Every now and then, and soon after an erasure, for ever. Under `lock` no event is being
        applied."""
        while self._every_s is None:  # nobody asks what was erased
            await asyncio.sleep(ERASED_WITHIN_S)
            for slab in self._slabs.values():
                slab.erased.clear()
        while True:
            await self._until_due(self._every_s)
            async with lock:
                writing = await self._start(reached())
            started_s = time.monotonic()
            await self._written(writing)
            self._took_s = time.monotonic() - started_s

    async def _written(self, writing: asyncio.Future[None]) -> None:
        """Wait for it, and tell of one that takes too long: it holds up the next."""
        while not (await asyncio.wait([writing], timeout=_TOLD_AFTER_S))[0]:
            self._metrics.snapshots.labels("failed").inc()
            log.error("a state snapshot is not written after %d s more", _TOLD_AFTER_S)

    async def _until_due(self, every_s: float) -> None:
        due_s = time.monotonic() + every_s
        rest_s = max(ERASED_WITHIN_S, ERASED_REST * self._took_s)
        while (left_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, rest_s))
            if any(slab.erased for slab in self._slabs.values()):
                return

    async def last(self, reached: Mapping[Partition, Reached]) -> None:
        """Once more, before the slabs go; given up where it takes too long. Under the lock."""
        if await self.settle() and self._every_s is not None:
            await asyncio.wait([await self._start(reached)], timeout=_LAST_WITHIN_S)
            await self.settle()

    async def settle(self) -> bool:
        """End what is under way: after this nobody reads the slabs. False where the storage does
        not answer: its thread is left behind, and ends once it returns."""
        writing, self._writing = self._writing, None
        if writing is None:
            return True
        self._cancel.set()
        done, _ = await asyncio.wait([writing], timeout=_SETTLED_WITHIN_S)
        if not done:
            log.error("storage of snapshots does not answer: going on without the last one")
            writing.set_result(None)
        return bool(done)

    async def _start(self, reached: Mapping[Partition, Reached]) -> asyncio.Future[None]:
        """Under the lock, so that nothing changes while it is copied."""
        loop = asyncio.get_running_loop()
        cancel, writing = threading.Event(), loop.create_future()
        due = [(self._slabs[partition], at) for partition, at in reached.items()]
        # A millisecond a partition at the default window.
        seen = await asyncio.to_thread(self._duplicates.dump)

        def end() -> None:
            if not writing.done():
                writing.set_result(None)

        def write() -> None:
            in_the_background()
            try:
                self._write(due, seen, cancel)
            finally:
                with contextlib.suppress(RuntimeError):  # the loop may have ended without it
                    loop.call_soon_threadsafe(end)

        # The end of the process does not wait for a daemon.
        threading.Thread(target=write, name="snapshots", daemon=True).start()
        self._cancel, self._writing = cancel, writing
        return writing

    def _write(
        self,
        due: Sequence[tuple[HistorySlab, Reached]],
        seen: Mapping[Partition, Arrays],
        cancel: threading.Event,
    ) -> None:
        """In the thread. What fails is told, and tried again next time."""
        for slab, at in due:
            partition, started_s = slab.address.partition, time.monotonic()
            try:
                written = self._snapshots.write(slab, at, cancel, seen.get(partition))
            except SnapshotCancelledError:
                return
            # Storage clients raise what they like, and serving does not depend on it.
            except Exception as error:  # noqa: BLE001
                self._metrics.snapshots.labels("failed").inc()
                log.error("no snapshot of partition %d at %d: %s", partition, at.applied, error)
                continue
            damaged = self._snapshots.damaged(partition)  # what is older is removed
            self._metrics.snapshots_damaged.labels(partition).set(damaged)
            if written is not None:
                self._metrics.snapshots.labels("written").inc()
                self._metrics.snapshot_seconds.observe(time.monotonic() - started_s)
                self._metrics.snapshot_bytes.labels(partition).set(written.manifest.bytes)
                self._metrics.snapshot_time.labels(partition).set(
                    written.manifest.created_at / 1000
                )
