"""State snapshots of many users: how long, how large, and what scoring feels of them.

One partition's slab with 50 events of each user. Scoring goes on in another thread while
snapshots are written and between them, in turns, so that both see the same machine.
"""

import hashlib
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.batches import BATCH, PARTITION, common_item, random_batch, user
from benchmarks.rows import Row, make_row, percentile
from benchmarks.scale import Scale
from benchmarks.versions import publish_random
from service.app.serving import load_servable
from service.app.snapshotter import in_the_background
from service.domain import Offset, Reached, item_key, user_key
from service.model.memory import Memory
from service.registry.registry import Registry
from service.scorer.scorer import Scorer
from service.settings import BatchSettings, HistorySettings, Settings, StorageSettings
from service.state.histories import HistorySlab
from service.state.snapshot_parts import UserHistories
from service.state.snapshots import Snapshot, Snapshots
from service.storage.store import Store
from service.trainer.device import choose_threads

_EVENTS = 50  # of each user
_ITEMS = 20_000
_AT_ONCE = 20_000  # users filled in
_QUIET_S = 5.0
_TOPIC = "events"
_NEVER = threading.Event()
_WARM_UP_BATCHES = 20


@dataclass(slots=True)
class Load:
    """Batches scored one after the other until told to stop."""

    scorer: Scorer
    users: int
    offset: int
    writing: bool = False
    stopping: bool = False
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})

    def run(self) -> None:
        random = np.random.default_rng(0)
        while not self.stopping:
            events = random_batch(random, self.offset, self.users, _ITEMS)
            writing = self.writing
            started_s = time.perf_counter()
            self.scorer.score(events, np.ones(BATCH, np.bool_))
            seconds = time.perf_counter() - started_s
            self.offset += BATCH
            if writing == self.writing:
                self.seconds[writing].append(seconds)


def snapshot_rows(scale: Scale) -> list[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(choose_threads(0))
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _measure(scale, Path(folder))
    finally:
        torch.set_num_threads(threads)


def _measure(scale: Scale, root: Path) -> list[Row]:
    settings = Settings(
        storage=StorageSettings(root=root),
        batch=BatchSettings(score_max_events=BATCH),
        history=HistorySettings(users=scale.snapshot_users, events=_EVENTS),
    )
    store = Store(settings.storage.snapshots_url)
    snapshots = Snapshots(store, _TOPIC, "headwater", settings.events.kinds, (), keep=2)
    slab = HistorySlab.of(PARTITION, settings)
    try:
        end = _fill(slab, scale.snapshot_users)
        started_s = time.perf_counter()
        full = _written(snapshots.write(slab, Reached(end, end), _NEVER))
        write_s = time.perf_counter() - started_s
        rows = _restored(settings, snapshots, full, write_s)
        return rows + _under_load(settings, scale, snapshots, slab, end)
    finally:
        slab.close()


def _written(snapshot: Snapshot | None) -> Snapshot:
    assert snapshot is not None
    return snapshot


def _fill(slab: HistorySlab, users: int) -> Offset:
    """Give every user their events, spread over the log; the offset after the last."""
    random = np.random.default_rng(1)
    keys = np.array([item_key(common_item(number)) for number in range(_ITEMS)], np.int64)
    end = users * _EVENTS
    for start in range(0, users, _AT_ONCE):
        some = range(start, min(start + _AT_ONCE, users))
        events = len(some) * _EVENTS
        offset = np.sort(random.integers(end, size=(len(some), _EVENTS)), axis=1).ravel()
        slab.restore(
            UserHistories(
                user=np.array([user_key(user(number)) for number in some], np.int64),
                events=np.full(len(some), _EVENTS, np.int64),
                # A few are met often.
                item=keys[(_ITEMS * random.random(events) ** 3).astype(np.int64)],
                time=1_700_000_000_000 + 20 * offset,
                offset=offset,
                kind=random.integers(3, size=events).astype(np.uint8),
                codes=np.zeros((events, 0), np.int32),
            )
        )
    slab.begin(Offset(end))
    return Offset(end)


def _restored(
    settings: Settings, snapshots: Snapshots, full: Snapshot, write_s: float
) -> list[Row]:
    """Restoring beside reading the same files and their checksums, which it cannot do without."""
    started_s = time.perf_counter()
    files = sorted((settings.storage.root / "snapshots").rglob("*.safetensors"))
    for file in files:
        hashlib.sha256(file.read_bytes()).hexdigest()
    read_s = time.perf_counter() - started_s
    with_slab = HistorySlab.of(PARTITION, settings)
    try:
        started_s = time.perf_counter()
        snapshots.restore(with_slab, full.manifest.offset)
        restore_s = time.perf_counter() - started_s
        restored = with_slab.used
    finally:
        with_slab.close()
    megabytes = full.manifest.bytes / 1e6
    plain_mb = full.manifest.users * _EVENTS * 25 / 1e6
    return [
        make_row("snapshots/users", [restored], "users", "written", [full.manifest.users]),
        make_row("snapshots/size", [megabytes], "MB", "in memory", [plain_mb]),
        make_row("snapshots/write", [write_s], "s", "read and checksum", [read_s]),
        make_row("snapshots/restore", [restore_s], "s", "read and checksum", [read_s]),
    ]


def _under_load(
    settings: Settings, scale: Scale, snapshots: Snapshots, slab: HistorySlab, end: Offset
) -> list[Row]:
    publish_random(settings.storage.root, [common_item(number) for number in range(_ITEMS)], 1)
    registry = Registry.of(settings)
    newest = load_servable(registry, registry.versions()[-1], settings)
    scorer = Scorer.of(settings, newest, {PARTITION: slab}, Memory.of(settings.memory))
    load = Load(scorer, scale.snapshot_users, end)
    scoring = threading.Thread(target=load.run, name="scoring", daemon=True)
    scoring.start()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    delta_mb: list[float] = []
    thread = ThreadPoolExecutor(1, initializer=in_the_background)
    try:
        while len(load.seconds[False]) < _WARM_UP_BATCHES:
            time.sleep(0.01)
        load.seconds[False].clear()
        for number in range(2 * scale.snapshots):
            is_full = number % 2 == 0
            if is_full:
                snapshots.forget(PARTITION)
            load.writing = True
            started_s = time.perf_counter()
            reached = Reached(Offset(load.offset), Offset(load.offset))
            write = thread.submit(snapshots.write, slab, reached, _NEVER)
            written = _written(write.result())
            seconds[is_full].append(time.perf_counter() - started_s)
            load.writing = False
            if not is_full:
                delta_mb.append(written.manifest.bytes / 1e6)
            time.sleep(_QUIET_S)
    finally:
        load.stopping = True
        scoring.join(60.0)
        thread.shutdown()
    return [
        make_row("snapshots/full_under_load", seconds[True], "s"),
        make_row("snapshots/delta_under_load", seconds[False], "s"),
        make_row("snapshots/delta_size", delta_mb, "MB"),
        *(
            make_row(
                f"snapshots/score_64_p{share}",
                [percentile(load.seconds[True], share) * 1000],
                "ms",
                "without snapshots",
                [percentile(load.seconds[False], share) * 1000],
            )
            for share in (50, 99)
        ),
    ]
