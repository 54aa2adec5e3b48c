"""When state snapshots are begun."""

import asyncio
import threading
import time
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


def test_under_a_run_of_erasures_it_rests_longer_than_it_writes(
    slab: HistorySlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshotter, "ERASED_WITHIN_S", 0.01)
    settings = Settings(storage=StorageSettings(root=tmp_path, snapshot_every_s=3600.0))
    append(slab, [1, 2], [5, 6])
    writes: list[float] = []
    twice = threading.Event()

    def slow(*_: object) -> None:
        """Fails, so that what was erased is still to be removed."""
        writes.append(time.monotonic())
        if len(writes) > 1:
            twice.set()
        time.sleep(0.2)
        raise OSError("no space")

    async def run() -> None:
        made = a_snapshotter(settings, slab)
        monkeypatch.setattr(made._snapshots, "write", slow)
        slab.erase(1, Offset(8))
        running = asyncio.create_task(made.run(asyncio.Lock(), lambda: REACHED))
        assert await asyncio.to_thread(twice.wait, 60)
        running.cancel()
        await made.settle()

    asyncio.run(run())
    assert writes[1] - writes[0] > 0.9


def test_without_snapshots_it_is_not_kept_who_was_erased(
    slab: HistorySlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshotter, "ERASED_WITHIN_S", 0.01)
    settings = Settings(storage=StorageSettings(root=tmp_path, snapshot_every_s=None))
    append(slab, [1], [5])
    slab.erase(1, Offset(8))

    async def run() -> None:
        made = a_snapshotter(settings, slab)
        running = asyncio.create_task(made.run(asyncio.Lock(), lambda: REACHED))
        await asyncio.wait([running], timeout=0.5)
        running.cancel()

    asyncio.run(run())
    assert slab.erased == {}
    assert list(tmp_path.glob("snapshots/*/*/*/manifest.json")) == []


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
