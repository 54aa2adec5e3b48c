"""Publishers that are killed, race each other or find the disk full, all for real."""

import contextlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.domain import Version
from service.errors import TransientError
from service.registry.registry import Registry
from tests.registry.examples import a_registry, mark_of, publish
from tests.registry.processes import (
    processes,
    publish_and_die_at,
    publish_for_ever,
    publish_times,
)

DEADLINE_S = 60.0  # starting the first process imports torch


def all_intact(registry: Registry) -> bool:
    """Loads every version; raises for a damaged one."""
    return all(registry.load(version, with_trainer=True) for version in registry.versions())


def litter(root: Path) -> list[str]:
    return [entry.name for entry in (root / "versions").iterdir() if entry.name.startswith(".")]


def wait_for_a_version_after(version: Version, root: Path) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while max(a_registry(root).versions(), default=0) <= version:
        assert time.monotonic() < deadline_s, "the publisher does not publish"
        time.sleep(0.001)


def test_kill_9_at_any_moment_leaves_only_intact_versions(tmp_path: Path) -> None:
    chance = random.Random(3)
    before = Version(0)
    for _ in range(6):
        child = processes.Process(target=publish_for_ever, args=(tmp_path,))
        child.start()
        wait_for_a_version_after(before, tmp_path)
        time.sleep(chance.uniform(0.0, 0.05))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        registry = a_registry(tmp_path)
        assert all_intact(registry)
        newest = registry.versions()[-1]
        before = publish(registry)
        assert before > newest
        assert registry.load_newest() is not None


def test_kill_9_before_each_sync_publishes_all_or_nothing(tmp_path: Path) -> None:
    registry = a_registry(tmp_path)
    publish(registry, 1.0)
    outcomes = []
    for sync in range(20):
        child = processes.Process(target=publish_and_die_at, args=(tmp_path, sync))
        child.start()
        child.join(DEADLINE_S)
        outcomes.append(registry.versions() != [1])
        assert all_intact(registry)
        if child.exitcode == 0:
            break
    else:
        pytest.fail("the child was killed every time")
    # Three files, their folder, the folder of versions, the manifest; its folder's sync comes
    # after the rename that publishes it.
    assert outcomes == [False] * 6 + [True] * 2
    assert mark_of(registry.load_newest()) == 2.0


def test_a_reader_beside_a_publisher_that_prunes_always_gets_a_version(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    child = processes.Process(target=publish_for_ever, args=(tmp_path, 2))
    child.start()
    try:
        wait_for_a_version_after(Version(0), tmp_path)
        reader = a_registry(tmp_path)
        seen: set[Version] = set()
        deadline_s = time.monotonic() + DEADLINE_S
        while len(seen) < 20 and time.monotonic() < deadline_s:
            loaded = reader.load_newest()
            assert loaded is not None
            seen.add(loaded[0].version)
    finally:
        child.kill()
        child.join()
    assert len(seen) == 20
    assert caplog.records == []


def test_two_processes_publish_at_once_under_numbers_of_their_own(tmp_path: Path) -> None:
    children = [
        processes.Process(target=publish_times, args=(tmp_path, 15, mark)) for mark in (1.0, 2.0)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(DEADLINE_S)
    assert [child.exitcode for child in children] == [0, 0]
    registry = a_registry(tmp_path)
    assert registry.versions() == list(range(1, 31))
    marks = [mark_of(registry.load(version)) for version in registry.versions()]
    assert sorted(marks) == [1.0] * 15 + [2.0] * 15
    assert litter(tmp_path) == []


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4096))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB: a version of the tests takes 16."""
    if shutil.which("mount") is None:
        pytest.skip("a full disk needs mount(8), which this machine does not have")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a full disk needs the right to mount one: {done.stderr.splitlines()[:1]}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_transient_and_leaves_nothing(small_disk: Path) -> None:
    registry = a_registry(small_disk, keep_versions=2)
    with pytest.raises(TransientError, match="disk is full"):
        publish_times(small_disk, 100, 1.0)
    versions = registry.versions()
    assert len(versions) > 2
    assert all_intact(registry)
    assert len(list((small_disk / "versions").iterdir())) == len(versions)
    with pytest.raises(TransientError, match="disk is full"):
        publish(registry)
    registry.prune()
    assert publish(registry) == versions[-1] + 1


def test_a_full_disk_does_not_lose_the_pin(small_disk: Path) -> None:
    registry = a_registry(small_disk)
    publish(registry)
    publish(registry)
    registry.pin(Version(1))
    fill(small_disk / "ballast")
    with pytest.raises(TransientError, match="disk is full"):
        registry.pin(Version(2))
    assert registry.pinned() == 1
    assert [entry.name for entry in small_disk.glob(".*")] == []
