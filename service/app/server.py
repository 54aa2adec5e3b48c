"""`headwater serve`: start-up, main loop, shutdown."""

import asyncio
import contextlib
import gc
import logging
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from service.admin.server import AdminServer, Health
from service.app.catalogue_feed import CatalogueFeed
from service.app.pipeline import Pipeline
from service.app.serving import Serving, first_servable
from service.app.snapshotter import Snapshotter, snapshots_of
from service.app.taking_up import Taker
from service.app.training_curves import TrainingCurves
from service.app.training_metrics import record
from service.domain import Offsets, Partition
from service.metrics import Metrics
from service.model.memory import Memory
from service.registry.registry import Registry
from service.scorer.scorer import Scorer
from service.settings import Delivery, Settings
from service.state.duplicates import Duplicates
from service.state.histories import HistorySlab, require_room
from service.state.popularity import Popularity
from service.stream.connection import calm_client_logs
from service.stream.dead_letters import DeadLetters
from service.stream.sink import Sink
from service.stream.source import Assigned, Source
from service.stream.topics import require_topics
from service.stream.transactions import Transactions
from service.tracking.tracker import UNTRACKED, start_tracker
from service.trainer.device import choose_device, choose_threads
from service.trainer.gate import require_decisions
from service.trainer.messages import Behind, FromWorker
from service.trainer.process import Covered, NoTrainer, TrainerProcess, WorkerEnded

log = logging.getLogger(__name__)

_BEAT_S = 0.25
# Where the storage gives a version now and refuses it then, we have something else to do meanwhile.
_TAKE_UP_EVERY_S = 10.0
# Well within the half minute that process managers give before they kill.
_DRAIN_WITHIN_S = 10.0
_STOP_WITHIN_S = 5.0
# Past this we are not ready: who answers no more should be seen to.
_DELIVERED_WITHIN_S = 30.0


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises ConfigurationError where something is to be set right."""
    # What is imported stays: without this a full collection of garbage looks through all of torch,
    # and holds up scoring and event loop for 0.3 s.
    gc.freeze()
    try:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await Server(settings).run(stop)
    finally:
        gc.unfreeze()  # libraries complain of what the interpreter cannot free when it ends


@dataclass(frozen=True, slots=True)
class _Running:
    """What exists only once there is an event loop and a champion."""

    loop: asyncio.AbstractEventLoop
    scorer: Scorer
    serving: Serving
    pipeline: Pipeline
    curves: TrainingCurves


class Server:
    """Every part of the service, made in the order in which they depend on each other."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._metrics = Metrics()
        self._health = Health(settings.admin.live_within_s)
        self._admin = AdminServer(settings.admin, self._metrics, self._health)
        self._registry = Registry.of(settings)
        self._slabs: dict[Partition, HistorySlab] = {}
        self._popularity = Popularity(settings.scorer.popularity_half_life_events)
        self._memory = Memory.of(settings.memory)
        self._duplicates = Duplicates(settings.events.deduplicate)
        letters = DeadLetters(settings.topics, settings.privacy)
        self._sink = Sink(settings.kafka, settings.topics, self._metrics, letters)
        self._transactions = (
            Transactions(settings.kafka, settings.topics, self._metrics, letters)
            if settings.scores and settings.kafka.delivery is Delivery.EXACTLY_ONCE
            else None
        )
        self._source = Source(
            settings.reading,
            settings.topics,
            self._metrics,
            self._assigned,
            self._revoked,
            self._transactions,
        )
        self._trainer = (
            TrainerProcess(settings, self._from_worker) if settings.trains else NoTrainer()
        )
        self._catalogue = CatalogueFeed(settings, self._metrics, self._sink, self._trainer)
        self._scoring_thread = ThreadPoolExecutor(1, "scoring")
        self._loading_thread = ThreadPoolExecutor(1, "loading")
        self._restoring_thread = ThreadPoolExecutor(1, "restoring")
        snapshots = snapshots_of(settings)
        self._snapshotter = Snapshotter(
            snapshots,
            settings.storage.snapshot_every_s,
            self._metrics,
            self._slabs,
            self._duplicates,
        )
        self._taker = Taker(
            settings, self._metrics, snapshots, self._popularity, self._memory, self._duplicates
        )
        self._behind = asyncio.Event()  # what a version had learned that is gone was not read again
        self._tracker = UNTRACKED
        self._made: _Running | None = None

    @property
    def _running(self) -> _Running:
        if self._made is None:
            raise RuntimeError("the server was not started")
        return self._made

    async def run(self, stop: asyncio.Event) -> None:
        try:
            beating = asyncio.create_task(self._beat())
            try:
                await self._start(stop)
            finally:
                beating.cancel()
            if self._made is not None and not stop.is_set():
                await self._main_loop(stop)
        finally:
            await self._shut_down()

    async def _start(self, stop: asyncio.Event) -> None:
        """Fail here, before anything is consumed, when something is missing. Told to stop while it
        waits for a first version, it leaves the rest."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        calm_client_logs()
        torch.set_num_threads(choose_threads(settings.scorer.threads))
        choose_device(settings.trainer.device)
        if settings.trains:
            require_decisions(settings)
        self._tracker = start_tracker(settings, "serve", datetime.now(UTC))
        self._admin.start()
        await require_topics(settings.kafka, settings.topics)
        if not settings.trains and not await self._wait_for_version(stop):
            return
        champion = await loop.run_in_executor(
            self._loading_thread, first_servable, self._registry, settings
        )
        log.info("metrics and health at %s", self._admin.address)
        log.info("version %d serves (%d items)", champion.version, len(champion.vocabulary) - 1)
        scorer = Scorer.of(settings, champion, self._slabs, self._memory, self._popularity)
        serving = Serving(settings, self._metrics, self._registry, scorer, self._loading_thread)
        pipeline = Pipeline(
            settings,
            self._metrics,
            self._source,
            self._sink,
            scorer,
            self._trainer,
            self._scoring_thread,
            self._duplicates,
            self._transactions,
        )
        self._made = _Running(loop, scorer, serving, pipeline, TrainingCurves(self._tracker))
        self._catalogue.feed(scorer)
        self._health.not_ready("assignment", "no partition is assigned yet")
        self._health.ready("start")
        await self._sink.start()
        await self._catalogue.start(stop)
        if not stop.is_set():
            await self._source.start()

    async def _wait_for_version(self, stop: asyncio.Event) -> bool:
        """The first version is published by who trains; False when told to stop before."""
        told = False
        while not stop.is_set():
            if await asyncio.to_thread(self._registry.versions):
                self._health.ready("version")
                return True
            if not told:
                log.warning("no version yet: waiting for a process with the role train")
                self._health.not_ready("version", "no version was published yet")
                told = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._settings.registry.poll_s)
        return False

    async def _main_loop(self, stop: asyncio.Event) -> None:
        """The pipeline, with hot swap, lag and heart beside it; the first to fail ends all."""
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(self._running.serving.run()),
                group.create_task(self._source.watch_lag()),
                group.create_task(self._beat()),
                group.create_task(self._catalogue.run()),
                group.create_task(
                    self._snapshotter.run(self._source.lock, lambda: self._running.pipeline.reached)
                ),
                group.create_task(self._teach_again()),
            ]
            try:
                await self._run_pipeline(stop)
            finally:
                for task in beside:
                    task.cancel()

    async def _run_pipeline(self, stop: asyncio.Event) -> None:
        """It may wait for Kafka when it is told to stop; then no longer than a delivery may."""
        running = asyncio.create_task(self._running.pipeline.run(stop))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((running,), timeout=_DRAIN_WITHIN_S)
            if running.done():
                running.result()
        finally:
            for task in (running, stopping):
                task.cancel()
            await asyncio.wait((running, stopping), timeout=_STOP_WITHIN_S)

    async def _teach_again(self) -> None:
        """Whenever the newest version is gone or damaged while the service runs."""
        while True:
            await self._behind.wait()
            await self._source.take_up_again()
            self._behind.clear()
            await asyncio.sleep(_TAKE_UP_EVERY_S)

    async def _beat(self) -> None:
        while True:
            self._health.beat()
            waiting_s = self._made.pipeline.waiting_s if self._made is not None else 0.0
            if waiting_s > _DELIVERED_WITHIN_S:
                self._health.not_ready("output", f"Kafka has taken nothing for {waiting_s:.0f} s")
            else:
                self._health.ready("output")
            slept_s = time.monotonic()
            await asyncio.sleep(_BEAT_S)
            self._metrics.loop_delay.observe(max(time.monotonic() - slept_s - _BEAT_S, 0.0))

    async def _shut_down(self) -> None:
        """Deliver and commit what is under way, then let go of everything that was started."""
        if self._made is not None:
            log.info("stopping")
        self._health.not_ready("stop", "stopping")
        try:
            await self._finish()
        finally:
            try:
                await self._catalogue.stop()
                await self._sink.stop()
            finally:
                await self._let_go()

    async def _finish(self) -> None:
        """Deliver and commit, then leave the group, which does not call back on its own."""
        try:
            if self._made is not None:
                async with asyncio.timeout(_DRAIN_WITHIN_S):
                    await self._source.lock.acquire()
                try:
                    async with asyncio.timeout(_DRAIN_WITHIN_S):
                        await self._made.pipeline.drain()
                finally:
                    await self._snapshotter.last(self._made.pipeline.reached)
                    self._source.lock.release()
        except TimeoutError:
            log.warning("Kafka did not acknowledge in time: what is not committed is sent again")
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STOP_WITHIN_S):
                    await self._source.stop()

    async def _let_go(self) -> None:
        """End the worker and the threads; the shared memory goes with the slabs."""
        await asyncio.to_thread(self._trainer.stop)
        await self._snapshotter.settle()
        # Whoever was told to stop meanwhile waits for no histories, but they are still written.
        await asyncio.to_thread(self._restoring_thread.shutdown)
        await self._release(list(self._slabs))
        for thread in (self._scoring_thread, self._loading_thread):
            thread.shutdown()
        self._admin.stop()
        await asyncio.to_thread(self._tracker.close)

    async def _assigned(self, partitions: list[Assigned]) -> Offsets:
        """Called under the source's lock: histories, watermarks and a worker; gives where reading
        begins."""
        started_s = time.monotonic()
        await asyncio.to_thread(self._trainer.stop)
        await self._snapshotter.settle()
        owned = {assigned.partition for assigned in partitions}
        # Of these the histories hold what was applied, whoever owned the partition meanwhile.
        kept = owned & self._slabs.keys()
        for partition in kept:
            self._slabs[partition].applied = self._running.pipeline.applied[partition]
        await self._release([partition for partition in self._slabs if partition not in kept])
        new = owned - kept
        require_room(self._settings.history, len(new), len(self._settings.model.context))
        for partition in new:
            self._slabs[partition] = HistorySlab.of(partition, self._settings)
        taken = await asyncio.get_running_loop().run_in_executor(
            self._restoring_thread, self._taker.take_up, partitions, self._slabs, kept
        )
        self._running.scorer.remembered = taken.train_from
        self._running.pipeline.own(taken.answer_from, taken.train_from, taken.applied)
        addresses = tuple(slab.address for slab in self._slabs.values())
        self._trainer.start(addresses, taken.trained, taken.void)
        log.info("partitions assigned: %s", sorted(self._slabs))
        if partitions:
            self._metrics.restore_seconds.observe(time.monotonic() - started_s)
            self._health.ready("assignment")
        return taken.read_from

    async def _revoked(self, partitions: list[Partition]) -> None:
        """Called under the source's lock: finish what was read, before another owner reads on."""
        if not partitions:
            return
        log.info("partitions revoked: %s", sorted(partitions))
        self._health.not_ready("assignment", "no partition is assigned")
        await self._running.pipeline.drain()
        await self._snapshotter.last(self._running.pipeline.reached)
        self._running.pipeline.forget()

    async def _release(self, partitions: list[Partition]) -> None:
        """The system takes half a second to take back a gigabyte of shared memory. What is measured
        of their snapshots is another owner's to say now."""
        metrics = self._metrics
        for partition in partitions:
            await asyncio.to_thread(self._slabs.pop(partition).close)
            for gauge in (metrics.snapshots_damaged, metrics.snapshot_bytes, metrics.snapshot_time):
                gauge.remove(partition)

    def _from_worker(self, message: FromWorker | WorkerEnded | Covered) -> None:
        """In the trainer's watching thread."""
        loop = self._running.loop
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._heard, message)

    def _heard(self, message: FromWorker | WorkerEnded | Covered) -> None:
        record(message, self._metrics)
        running = self._running
        running.curves.follow(
            message, running.pipeline.prequential, running.scorer.champion.version
        )
        if isinstance(message, Covered):
            running.serving.announce(message)
        if isinstance(message, Behind):
            self._behind.set()
