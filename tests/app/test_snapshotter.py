"""When state snapshots are begun."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from service.app import snapshotter
from service.app.snapshotter import Snapshotter, snapshots_of
from service.domain import Offset, Partition
from service.metrics import Metrics
from service.settings import Settings, StorageSettings
from service.state.duplicates import Duplicates
from service.state.histories import HistorySlab
from tests.state.examples import a_slab, append

PARTITION = Partition(0)
APPLIED = {PARTITION: Offset(9)}


@pytest.fixture
def slab() -> Iterator[HistorySlab]:
    with closing(a_slab()) as made:
        yield made


def begun(slab: HistorySlab, root: Path, within_s: float) -> list[Path]:
    """The snapshots that an hourly snapshotter has written by then."""
    settings = Settings(storage=StorageSettings(root=root, snapshot_every_s=3600.0))

    async def run(thread: ThreadPoolExecutor) -> None:
        made = Snapshotter(
            snapshots_of(settings),
            settings.storage.snapshot_every_s,
            Metrics(),
            {PARTITION: slab},
            Duplicates(0),
            thread,
        )
        running = asyncio.create_task(made.run(asyncio.Lock(), lambda: APPLIED))
        await asyncio.wait([running], timeout=within_s)
        running.cancel()
        await made.settle()

    with ThreadPoolExecutor(1) as thread:
        asyncio.run(run(thread))
    return list(root.glob("snapshots/*/*/*/manifest.json"))


def test_an_erasure_does_not_wait_for_the_next_in_its_time(
    slab: HistorySlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshotter, "ERASED_WITHIN_S", 0.01)
    append(slab, [1, 2], [5, 6])
    assert begun(slab, tmp_path, within_s=0.1) == []
    slab.erase(1, Offset(8))
    assert len(begun(slab, tmp_path, within_s=2.0)) == 1
    assert slab.erased == {}
