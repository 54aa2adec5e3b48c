"""Hot swaps as fast as versions load, while another thread scores without a pause.

In process, with the service's scorer, registry and swap. Phases with and without swaps take
turns, so that both see the same machine. The two versions share the items that users have
touched, and each has as many of its own: a ranking that named an item of the other version
would show that a batch was not scored wholly by one.
"""

import asyncio
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.batches import BATCH, PARTITION, common_item, random_batch
from benchmarks.rows import Row, make_row, percentile
from benchmarks.scale import Scale
from benchmarks.shoppers import ITEMS, USERS
from benchmarks.versions import publish_random
from service.app.serving import Serving, load_servable
from service.domain import ItemId, Version
from service.metrics import Metrics
from service.model.memory import Memory
from service.registry.registry import Registry
from service.registry.servable import Servable
from service.scorer.scorer import Scored, Scorer
from service.settings import BatchSettings, Settings, StorageSettings
from service.state.histories import HistorySlab
from service.trainer.device import choose_threads

# Of a phase's seconds: a batch is scored in a fraction of a load, so there are enough of them.
_QUIET_SHARE = 0.3
_COMMON = ITEMS // 2
_WARM_UPBATCHES = 50
_PHASE_WITHIN_S = 300.0


@dataclass(slots=True)
class Load:
    """Batches scored one after the other until told to stop, and what became of them."""

    scorer: Scorer
    own_items: dict[Version, frozenset[ItemId]]
    swapping: bool = False
    stopping: bool = False
    failed: int = 0
    mixed: int = 0
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    errors: list[str] = field(default_factory=list)

    def run(self) -> None:
        random = np.random.default_rng(0)
        offset = 0
        while not self.stopping:
            events = random_batch(random, offset, USERS, _COMMON)
            offset += BATCH
            swapping = self.swapping
            started_s = time.perf_counter()
            try:
                scored = self.scorer.score(events, np.ones(BATCH, np.bool_))
            except Exception as error:  # noqa: BLE001  # whatever it was, a batch failed
                self.failed += 1
                self.errors.append(repr(error))
                continue
            seconds = time.perf_counter() - started_s
            if swapping == self.swapping:
                self.seconds[swapping].append(seconds)
            self.mixed += not self._is_whole(scored)

    def _is_whole(self, scored: Scored) -> bool:
        """Every ranking is there and names items of the batch's one version only."""
        foreign = frozenset[ItemId]().union(
            *(items for version, items in self.own_items.items() if version != _of(scored))
        )
        own = self.own_items[_of(scored)]
        named = [{item for item, _ in ranking or ()} for ranking in scored.rankings]
        return (
            all(named)
            and not any(foreign & items for items in named)
            and any(own & items for items in named)
        )


def _of(scored: Scored) -> Version:
    return scored.servable.version


@dataclass(slots=True)
class Swaps:
    pause_s: list[float] = field(default_factory=list)
    load_s: list[float] = field(default_factory=list)


async def _swap(
    count: int,
    versions: Sequence[Version],
    swaps: Swaps,
    serving: Serving,
    metrics: Metrics,
    load: "Loader",
) -> None:
    """Load in the loading thread and swap in the event loop, as the service does."""
    loop = asyncio.get_running_loop()
    for number in range(count):
        started_s = time.perf_counter()
        servable = await loop.run_in_executor(load.thread, load, versions[number % len(versions)])
        swaps.load_s.append(time.perf_counter() - started_s)
        before = _pause_so_far(metrics)
        serving.swap(servable)
        swaps.pause_s.append(_pause_so_far(metrics) - before)


@dataclass(frozen=True, slots=True)
class Loader:
    registry: Registry
    settings: Settings
    thread: ThreadPoolExecutor

    def __call__(self, version: Version) -> Servable:
        return load_servable(self.registry, version, self.settings)


def _pause_so_far(metrics: Metrics) -> float:
    (family,) = metrics.swap_pause_seconds.collect()
    return next(one.value for one in family.samples if one.name.endswith("_sum"))


def hot_swap_rows(scale: Scale) -> list[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(choose_threads(0))
    try:
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as thread:
            return _measure(scale, Path(folder), thread)
    finally:
        torch.set_num_threads(threads)


def _measure(scale: Scale, root: Path, thread: ThreadPoolExecutor) -> list[Row]:
    settings = Settings(
        storage=StorageSettings(root=root), batch=BatchSettings(score_max_events=BATCH)
    )
    common = [common_item(item) for item in range(_COMMON)]
    own_items = {}
    for seed in (1, 2):
        own = [ItemId(f"own-{seed}-{item}") for item in range(ITEMS - _COMMON)]
        own_items[publish_random(root, common + own, seed)] = frozenset(own)
    load = Loader(Registry(root / "registry", settings.registry), settings, thread)
    slab = HistorySlab.of(PARTITION, settings)
    metrics = Metrics()
    first = load(next(iter(own_items)))
    scorer = Scorer.of(settings, first, {PARTITION: slab}, Memory.of(settings.memory))
    serving = Serving(settings, metrics, load.registry, scorer, thread)
    work = Load(scorer, own_items)
    swaps = Swaps()
    scoring = threading.Thread(target=work.run, name="scoring", daemon=True)
    scoring.start()
    try:
        while len(work.seconds[False]) < _WARM_UPBATCHES and not work.failed:
            time.sleep(0.01)
        work.seconds[False].clear()
        for _ in range(scale.swap_phases):
            started_s = time.perf_counter()
            work.swapping = True
            phase = _swap(
                scale.swaps // scale.swap_phases, list(own_items), swaps, serving, metrics, load
            )
            asyncio.run(asyncio.wait_for(phase, _PHASE_WITHIN_S))
            work.swapping = False
            time.sleep(_QUIET_SHARE * (time.perf_counter() - started_s))
    finally:
        work.stopping = True
        scoring.join(60.0)
        slab.close()
    for error in work.errors[:3]:
        print(f"failed batch: {error}")
    return _rows(work, swaps)


def _rows(work: Load, swaps: Swaps) -> list[Row]:
    during, between = work.seconds[True], work.seconds[False]
    batches = [len(during) + len(between)]
    microseconds = [pause_s * 1e6 for pause_s in swaps.pause_s]
    rows = [
        make_row("hot_swap/swaps", [len(swaps.pause_s)], "swaps"),
        make_row("hot_swap/failed_batches", [work.failed], "batches", "scored", batches),
        make_row("hot_swap/mixed_batches", [work.mixed], "batches", "scored", batches),
        make_row("hot_swap/pause_p50", [percentile(microseconds, 50)], "us"),
        make_row("hot_swap/pause_p99", [percentile(microseconds, 99)], "us"),
    ]
    for share in (50, 99):
        milliseconds = percentile(swaps.load_s, share) * 1000
        rows.append(make_row(f"hot_swap/load_and_warm_p{share}", [milliseconds], "ms"))
    for share in (50, 99):
        rows.append(
            make_row(
                f"hot_swap/score_64_p{share}",
                [percentile(during, share) * 1000],
                "ms",
                "without swaps",
                [percentile(between, share) * 1000],
            )
        )
    return rows
