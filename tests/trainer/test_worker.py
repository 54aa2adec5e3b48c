"""What reaches the worker and is learned, in which order."""

import errno
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.domain import Erasure, MicroBatch, Offset, Offsets, UserId, Version
from service.errors import TransientError
from service.registry.artifact import write_artifact
from service.registry.manifest import Manifest, Origin
from service.registry.registry import Registry
from service.registry.servable import Servable
from service.settings import (
    EventsSettings,
    ItemsSettings,
    Settings,
    StorageSettings,
    VectorSettings,
)
from service.state.catalogue import CatalogueItem
from service.state.histories import HistorySlab
from service.trainer import learner as learner_module
from service.trainer import worker
from service.trainer.gate import GateReport
from service.trainer.learner import Learner
from service.trainer.messages import (
    Behind,
    Catalogued,
    Heartbeat,
    Judged,
    Published,
    RoundDone,
    Settle,
    Settled,
    Stop,
)
from service.trainer.worker import Inbox, Worker, WorkerArguments, _after
from tests.trainer.examples import (
    CATALOGUE,
    NO_MEMORY,
    PARTITION,
    REJECTED,
    USERS,
    Stream,
    a_learner,
    known,
    small_settings,
)

WITHIN_S = 120.0


def erasing(batch: MicroBatch, user: int) -> MicroBatch:
    """The same with an erasure as the last thing in it."""
    end = batch.next_offsets[PARTITION]
    erasure = Erasure(PARTITION, end, UserId(f"user-{user}"))
    return replace(
        batch.without([erasure]), erasures=(erasure,), next_offsets={PARTITION: Offset(end + 1)}
    )


def test_what_waits_is_not_learned_once_its_erasure_has_come(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda _: ended.set())  # as it would when the parent is gone
    ours, theirs = multiprocessing.Pipe()
    inbox = Inbox(theirs)
    first = stream.batch([1, 2, 1], [1, 2, 3])
    ours.send(first)
    ours.send(erasing(stream.batch([2, 1], [4, 5]), 1))
    stream.events += 1  # where the erasure stands
    ours.send(stream.batch([1], [6]))
    ours.close()
    assert ended.wait(30)
    taken = inbox.take(100)
    assert [batch.offset.tolist() for batch in taken] == [[1], [3], [6]]


def test_a_worker_that_cannot_read_what_it_is_sent_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It would go on with its heartbeats, and learn nothing more."""
    codes: list[int] = []
    ended = threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(os, "_exit", end)
    ours, theirs = multiprocessing.Pipe()
    Inbox(theirs)
    ours.send_bytes(b"no message")
    assert ended.wait(30)
    assert codes == [1]
    assert "cannot be read" in caplog.text


def test_an_erasure_that_the_version_has_is_not_applied_again(
    slab: HistorySlab, stream: Stream
) -> None:
    learner = a_learner(slab)
    batch = erasing(stream.batch([1, 2], [1, 2]), 1)
    assert _after(batch, learner) is batch
    learner.trained_through[PARTITION] = Offset(2)
    assert _after(batch, learner).erasures == batch.erasures
    learner.trained_through[PARTITION] = Offset(3)
    assert _after(batch, learner).erasures == ()


def that_refuses_at_first(connection: Connection, arguments: WorkerArguments) -> None:
    """A worker's process, of whose challengers the gate turns the first one down."""
    judge, refusals = Learner.judge, iter([REJECTED])

    def refused(self: Learner) -> tuple[GateReport, int]:
        with pytest.MonkeyPatch.context() as patch:
            if (report := next(refusals, None)) is not None:
                patch.setattr(learner_module, "judge", lambda *_: report)
            return judge(self)

    Learner.judge = refused  # type: ignore[method-assign]
    worker.main(connection, arguments)


def with_a_full_disk_at_first(connection: Connection, arguments: WorkerArguments) -> None:
    """A worker's process, of whose first versions three are refused."""
    publish, refusals = Registry.publish, iter(range(3))

    def refused(*args: Any, **named: Any) -> Manifest:
        if next(refusals, None) is not None:
            raise TransientError("no space left on device")
        return publish(*args, **named)

    Registry.publish = refused  # type: ignore[method-assign]
    worker._RETRY_PUBLISH_S = 0.2
    worker.main(connection, arguments)


def publish_first(registry: Registry, learner: Learner, topic: str | None = None) -> None:
    registry.publish(
        learner.artifact(),
        parent=None,
        origin=Origin.INITIAL,
        trained_through=learner.trained_through,
        topic=topic,
        model=learner.shape,
        items=0,
        gate=None,
        now_ms=0,
    )


def until_published(
    slab: HistorySlab,
    stream: Stream,
    root: Path,
    main: Callable[[Connection, WorkerArguments], None],
) -> tuple[list[object], Manifest, Offsets]:
    """What such a worker tells of one micro-batch, asked for an end of the waiting all the time;
    the manifest of the version it comes to, and where the micro-batch ended."""
    settings = small_settings()
    lenient = settings.trainer.gate.model_copy(update={"tolerance": 1.0})
    trainer = settings.trainer.model_copy(update={"publish_every_s": 0.2, "gate": lenient})
    storage = settings.storage.model_copy(update={"root": root})
    settings = settings.model_copy(
        update={"trainer": trainer, "storage": storage, "memory": NO_MEMORY}
    )
    registry = Registry(root / "registry", settings.registry)
    learner = a_learner(slab, settings)
    publish_first(registry, learner)
    spawned = multiprocessing.get_context("spawn")
    ours, theirs = spawned.Pipe()
    process = spawned.Process(
        target=main, args=(theirs, WorkerArguments(settings, (slab.address,)))
    )
    process.start()
    try:
        batch = stream.walk(USERS, CATALOGUE, steps=4)
        ours.send(batch)
        told: list[object] = []
        while not told or not isinstance(told[-1], Published):
            assert ours.poll(WITHIN_S)
            told.append(ours.recv())
            ours.send(Settle())
        ours.send(Stop())
        process.join(WITHIN_S)
    finally:
        process.kill()
    return told, registry.manifest(told[-1].version), batch.next_offsets


def test_what_the_storage_refused_is_published_later_and_not_given_up(
    slab: HistorySlab, stream: Stream, tmp_path: Path
) -> None:
    """Also where no more events come, and the parent asks for an end of the waiting."""
    told, manifest, end = until_published(slab, stream, tmp_path, with_a_full_disk_at_first)
    assert not any(isinstance(one, Settled) for one in told)
    assert (manifest.origin, manifest.trained_through) == (Origin.TRAINED, end)


def test_what_the_gate_refused_has_its_next_chance_before_it_is_given_up(
    slab: HistorySlab, stream: Stream, tmp_path: Path
) -> None:
    told, manifest, end = until_published(slab, stream, tmp_path, that_refuses_at_first)
    assert not any(isinstance(one, Settled) for one in told)
    first, again = (one.report for one in told if isinstance(one, RoundDone))
    assert (first.sequences, again.batches) == (again.sequences, 0)
    assert first.sequences > 0
    assert (manifest.origin, manifest.trained_through) == (Origin.TRAINED, end)


def test_what_an_earlier_version_had_learned_is_not_passed_over(
    slab: HistorySlab, tmp_path: Path
) -> None:
    """The parent dropped it when that version came out, which is damaged by now."""
    settings = small_settings()
    storage = settings.storage.model_copy(update={"root": tmp_path})
    settings = settings.model_copy(update={"storage": storage})
    registry = Registry(tmp_path / "registry", settings.registry)
    learner = a_learner(slab, settings)
    for offset in (10, 20):
        learner.trained_through = {PARTITION: Offset(offset)}
        publish_first(registry, learner)
    damaged = tmp_path / "registry" / "versions" / "00000002" / "trainer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    spawned = multiprocessing.get_context("spawn")
    ours, theirs = spawned.Pipe()
    arguments = WorkerArguments(settings, (slab.address,), covered={PARTITION: Offset(20)})
    process = spawned.Process(target=worker.main, args=(theirs, arguments))
    process.start()
    told: list[object] = [Heartbeat(0, busy=True)]
    while isinstance(told[-1], Heartbeat):
        assert ours.poll(WITHIN_S)
        told.append(ours.recv())
    process.join(WITHIN_S)
    assert process.exitcode == 0
    assert told[-1] == Behind(Version(1), {PARTITION: Offset(10)})


@pytest.mark.parametrize(
    ("void", "through"), [({}, 10), ({PARTITION: 10}, 0), ({PARTITION: 9}, 10)]
)
def test_what_lies_past_the_end_of_a_topic_that_was_made_anew_is_not_taken_for_learned(
    void: Offsets, through: int, slab: HistorySlab, tmp_path: Path
) -> None:
    settings = small_settings()
    storage = settings.storage.model_copy(update={"root": tmp_path})
    settings = settings.model_copy(update={"storage": storage})
    learner = a_learner(slab, settings)
    learner.trained_through = {PARTITION: Offset(10)}
    publish_first(Registry(tmp_path / "registry", settings.registry), learner)
    ours, theirs = multiprocessing.Pipe()
    with closing(ours), closing(theirs):
        arguments = WorkerArguments(settings, (slab.address,), void=void)
        resumed, _ = Worker(theirs, arguments)._resume(())
    assert resumed.trained_through.get(PARTITION, 0) == through


def test_the_gate_knows_the_version_that_is_pinned(slab: HistorySlab, tmp_path: Path) -> None:
    settings = small_settings()
    storage = settings.storage.model_copy(update={"root": tmp_path})
    settings = settings.model_copy(update={"storage": storage})
    registry = Registry(tmp_path / "registry", settings.registry)
    learner = a_learner(slab, settings)
    for _ in "12":
        publish_first(registry, learner)
    told: list[Servable | None] = []
    learner.compare_with = told.append  # type: ignore[method-assign,assignment]
    ours, theirs = multiprocessing.Pipe()
    with closing(ours), closing(theirs):
        worker = Worker(theirs, WorkerArguments(settings, ()))
        for pin in (None, Version(1), Version(1), Version(2), None):
            registry.pin(pin)
            worker._look_at_pin(learner)
        assert [one and one.version for one in told] == [None, 1, None, 2, None]
        told.clear()
        registry.pin(Version(1))
        weights = tmp_path / "registry" / "versions" / "00000001" / "weights.safetensors"
        for file in (weights, tmp_path / "registry" / "pin.json"):
            before = file.read_bytes()
            file.write_bytes(b"x")
            worker._look_at_pin(learner)
            file.write_bytes(before)
        # Of one that cannot be read no more is known than that another is pinned no more.
        assert told == [None]
        worker._look_at_pin(learner)
    assert [one and one.version for one in told] == [None, None, 1]


def a_worker(root: Path, settings: Settings, pipe: Connection) -> tuple[Worker, Settings]:
    """One over versions in this folder."""
    storage = settings.storage.model_copy(update={"root": root})
    settings = settings.model_copy(update={"storage": storage})
    return Worker(pipe, WorkerArguments(settings, ())), settings


@pytest.fixture
def pipe() -> Iterator[Connection]:
    """To a parent that listens to nothing."""
    ours, theirs = multiprocessing.Pipe()
    with closing(ours), closing(theirs):
        yield theirs


@pytest.mark.parametrize(
    ("topic", "through"), [("another", {}), ("events", {PARTITION: 10}), (None, {PARTITION: 10})]
)
def test_offsets_of_another_topic_are_not_taken_for_learned(
    topic: str | None,
    through: Offsets,
    slab: HistorySlab,
    stream: Stream,
    tmp_path: Path,
    pipe: Connection,
) -> None:
    """None: of an earlier release, which did not say."""
    one, settings = a_worker(tmp_path, small_settings(), pipe)
    assert settings.topics.events == "events"
    learner = a_learner(slab, settings)
    learner.trained_through = {PARTITION: Offset(10)}
    registry = Registry(tmp_path / "registry", settings.registry)
    publish_first(registry, learner, topic)
    resumed, version = one._resume(())
    assert resumed.trained_through == through
    resumed.learn([stream.walk(USERS, CATALOGUE, steps=1)])
    newest = one._publish(resumed, version, Origin.TRAINED, None)
    assert newest is not None
    assert registry.manifest(newest).topic == "events"


def test_a_rollback_while_a_version_is_written_is_not_undone(
    slab: HistorySlab,
    stream: Stream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pipe: Connection,
) -> None:
    one, settings = a_worker(tmp_path, small_settings(), pipe)
    registry = Registry(tmp_path / "registry", settings.registry)
    for _ in range(2):
        publish_first(registry, a_learner(slab, settings))
    learner, version = one._resume(())
    learner.learn([stream.walk(USERS, CATALOGUE, steps=2)])

    def meanwhile(*args: Any) -> Any:
        registry.rollback(Version(1), 0)
        return write_artifact(*args)

    monkeypatch.setattr("service.registry.registry.write_artifact", meanwhile)
    assert one._publish(learner, version, Origin.TRAINED, None) is None
    newest = registry.versions()[-1]
    assert (newest, registry.manifest(newest).origin) == (3, Origin.ROLLBACK)


@pytest.mark.parametrize("fault", [OSError(errno.ESTALE, "stale"), TransientError("away")])
def test_older_versions_that_cannot_be_removed_now_end_no_worker(
    fault: Exception,
    slab: HistorySlab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pipe: Connection,
) -> None:
    one, settings = a_worker(tmp_path, small_settings(), pipe)
    publish_first(Registry(tmp_path / "registry", settings.registry), a_learner(slab, settings))
    learner, version = one._resume(())

    def fail(self: Registry) -> None:
        raise fault

    monkeypatch.setattr(Registry, "prune", fail)
    assert one._publish(learner, version, Origin.TRAINED, None) == 2


def test_what_is_held_out_keeps_its_kind_when_kinds_are_named_in_another_order(
    slab: HistorySlab, stream: Stream, tmp_path: Path, pipe: Connection
) -> None:
    before = EventsSettings(kinds=("view", "click", "impression"))
    made = small_settings().model_copy(update={"events": before})
    one, settings = a_worker(tmp_path, made, pipe)
    registry = Registry(tmp_path / "registry", settings.registry)
    publish_first(registry, a_learner(slab, settings))
    learner, version = one._resume(())
    for _ in range(3):
        learner.learn([stream.batch([*range(40)], [*range(40)], kinds=[1] * 40)])
    one._publish(learner, version, Origin.TRAINED, None)
    held = len(learner.held)
    after = EventsSettings(kinds=("view", "impression", "dislike", "click"))
    other, _ = a_worker(tmp_path, settings.model_copy(update={"events": after}), pipe)
    resumed, _ = other._resume(())
    assert held > 0
    assert resumed.held.kind.tolist() == [3] * held


def test_a_memory_that_is_turned_on_begins_with_the_share_of_the_settings(
    slab: HistorySlab, tmp_path: Path, pipe: Connection
) -> None:
    one, settings = a_worker(tmp_path, small_settings(), pipe)
    publish_first(Registry(tmp_path / "registry", settings.registry), a_learner(slab, settings))
    learner, _ = one._resume(())
    assert learner.blend.share == settings.memory.model_share < 1.0


def test_items_of_a_catalogue_are_published_together_before_any_event(
    slab: HistorySlab, stream: Stream, tmp_path: Path
) -> None:
    sources = (VectorSettings(name="image", width=3),)
    made = small_settings()
    trainer = made.trainer.model_copy(update={"publish_every_s": 1e6})
    settings = made.model_copy(
        update={
            "items": ItemsSettings(vectors=sources),
            "storage": StorageSettings(root=tmp_path),
            "trainer": trainer,
        }
    )
    registry = Registry(tmp_path / "registry", settings.registry)
    publish_first(registry, a_learner(slab, settings))
    items = [
        CatalogueItem(*known(number), vectors={"image": np.eye(3, dtype=np.float32)[number % 3]})
        for number in range(6)
    ]
    spawned = multiprocessing.get_context("spawn")
    ours, theirs = spawned.Pipe()
    arguments = WorkerArguments(settings, (slab.address,))
    process = spawned.Process(target=worker.main, args=(theirs, arguments))
    process.start()
    try:
        ours.send(Catalogued(tuple(items[:3])))
        ours.send(stream.walk(USERS, CATALOGUE, steps=1))
        ours.send(Catalogued(tuple(items[3:])))
        told: list[object] = []
        deadline_s = time.monotonic() + WITHIN_S
        while not told or not isinstance(told[-1], Published):
            assert time.monotonic() < deadline_s
            assert ours.poll(WITHIN_S)
            told.append(ours.recv())
        ours.send(Stop())
        process.join(WITHIN_S)
    finally:
        process.kill()
    manifest, artifact = registry.load(told[-1].version)
    assert not any(isinstance(one, Judged | RoundDone) for one in told)
    assert (manifest.items, manifest.gate) == (6, None)
    assert artifact.vocabulary[1:] == tuple(item.item_id for item in items)


def that_waits_a_second_for_more(connection: Connection, arguments: WorkerArguments) -> None:
    """A worker's process that publishes descriptions together for a second only."""
    worker._TOGETHER_S = 1.0
    worker.main(connection, arguments)


def test_a_catalogue_that_never_stands_still_holds_up_no_event(
    slab: HistorySlab, stream: Stream, tmp_path: Path
) -> None:
    made = small_settings()
    sources = (VectorSettings(name="image", width=3),)
    storage = StorageSettings(root=tmp_path)
    settings = made.model_copy(update={"items": ItemsSettings(vectors=sources), "storage": storage})
    publish_first(Registry(tmp_path / "registry", settings.registry), a_learner(slab, settings))
    spawned = multiprocessing.get_context("spawn")
    ours, theirs = spawned.Pipe()
    arguments = WorkerArguments(settings, (slab.address,))
    process = spawned.Process(target=that_waits_a_second_for_more, args=(theirs, arguments))
    process.start()
    random = np.random.default_rng(0)

    def tell() -> None:
        vectors = {"image": random.random(3).astype(np.float32)}
        ours.send(Catalogued((CatalogueItem(*known(0), vectors=vectors),)))

    try:
        tell()
        ours.send(stream.walk(USERS, CATALOGUE, steps=1))
        told: list[object] = []
        deadline_s = time.monotonic() + WITHIN_S
        while not any(isinstance(one, RoundDone) for one in told):
            assert time.monotonic() < deadline_s
            tell()
            while ours.poll(0.1):
                told.append(ours.recv())
    finally:
        process.kill()
    # What was described until then went out before the events.
    kinds = [type(one) for one in told if isinstance(one, Published | RoundDone)]
    assert kinds.index(Published) < kinds.index(RoundDone)


def test_a_worker_for_whom_nobody_waits_any_more_ends_without_a_word(
    slab: HistorySlab, capfd: pytest.CaptureFixture[str]
) -> None:
    """It was asked for before a stop, and begins after it."""
    gone = replace(slab.address, name="psm_gone")
    spawned = multiprocessing.get_context("spawn")
    ours, theirs = spawned.Pipe()
    process = spawned.Process(
        target=worker.main, args=(theirs, WorkerArguments(small_settings(), (gone,)))
    )
    ours.close()
    process.start()
    theirs.close()
    process.join(WITHIN_S)
    assert process.exitcode == 0
    assert capfd.readouterr().err == ""
