"""When state snapshots are begun."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from service.app import snapshotter
from service.app.snapshotter import Snapshotter, snapshots_of
from service.domain import Offset, Partition, Reached
from service.metrics import Metrics
from service.settings import Settings, StorageSettings
from service.state.duplicates import Duplicates
from service.state.histories import HistorySlab
from service.storage.store import Store
from tests.state.examples import a_slab, append

PARTITION = Partition(0)
REACHED = {PARTITION: Reached(Offset(9), Offset(9))}


@pytest.fixture
def slab() -> Iterator[HistorySlab]:
    with closing(a_slab()) as made:
        yield made


def a_snapshotter(settings: Settings, slab: HistorySlab) -> Snapshotter:
    return Snapshotter(
        snapshots_of(settings),
        settings.storage.snapshot_every_s,
        Metrics(),
        {PARTITION: slab},
        Duplicates(0),
    )


def begun(slab: HistorySlab, root: Path, within_s: float) -> list[Path]:
    """The snapshots that an hourly snapshotter has written by then."""
    settings = Settings(storage=StorageSettings(root=root, snapshot_every_s=3600.0))

    async def run() -> None:
        made = a_snapshotter(settings, slab)
        running = asyncio.create_task(made.run(asyncio.Lock(), lambda: REACHED))
        await asyncio.wait([running], timeout=within_s)
        running.cancel()
        await made.settle()

    asyncio.run(run())
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


@pytest.mark.parametrize("call", ["folders", "write"])
def test_a_storage_that_hangs_holds_nobody_up(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
) -> None:
    """What it holds up goes on without the slab once the storage answers."""
    slab = a_slab()
    called, answers = threading.Event(), threading.Event()
    original = getattr(Store, call)

    def hung(store: Store, *arguments: str) -> object:
        called.set()
        answers.wait(60)
        return original(store, *arguments)

    monkeypatch.setattr(Store, call, hung)
    monkeypatch.setattr(snapshotter, "_SETTLED_WITHIN_S", 0.2)
    append(slab, [1, 2], [5, 6])
    settings = Settings(storage=StorageSettings(root=tmp_path, snapshot_every_s=0.01))

    async def run() -> None:
        made = a_snapshotter(settings, slab)
        running = asyncio.create_task(made.run(asyncio.Lock(), lambda: REACHED))
        assert await asyncio.to_thread(called.wait, 10)
        await asyncio.wait_for(made.last(REACHED), 10)
        running.cancel()

    asyncio.run(run())
    left = [thread for thread in threading.enumerate() if thread.name == "snapshots"]
    assert left
    assert all(thread.daemon for thread in left)
    slab.close()
    answers.set()
    for thread in left:
        thread.join(10)
        assert not thread.is_alive()
    assert "does not answer" in caplog.text
    assert "no snapshot of partition" not in caplog.text
    assert list(tmp_path.glob("snapshots/*/*/*/manifest.json")) == []
