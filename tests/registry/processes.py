"""Real processes that publish or hold the lock, and die while they do.

They are forked from a server that has imported torch once: a test can afford many.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from service.registry.lock import only_service
from tests.registry.examples import a_registry, publish

processes: ForkServerContext = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.registry.processes"])


def publish_for_ever(root: Path, keep_versions: int = 10) -> None:
    registry = a_registry(root, keep_versions)
    while True:
        publish(registry)
        registry.prune()


def publish_times(root: Path, times: int, mark: float) -> None:
    registry = a_registry(root, keep_versions=1_000)
    for _ in range(times):
        publish(registry, mark)


def publish_and_die_at(root: Path, sync: int) -> None:
    """Publishes once and is killed instead of the `sync`th fsync, counted from 0."""
    real_fsync = os.fsync
    done = 0

    def fsync(fd: object) -> None:
        nonlocal done
        if done == sync:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        assert isinstance(fd, int)
        real_fsync(fd)

    os.fsync = fsync  # this process runs nothing else
    publish(a_registry(root), 2.0)


def hold_for_ever(root: Path, held: Connection) -> None:
    """Holds the lock, with a process of its own that lives on; says that one's id."""
    with only_service(root):
        # It is given every descriptor that is not closed on exec.
        child = subprocess.Popen(["sleep", "600"], close_fds=False)
        held.send(child.pid)
        time.sleep(600)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds the lock, and its child, which outlives it."""

    process: BaseProcess
    child_pid: int

    def kill(self) -> None:
        """kill -9, of the holder only."""
        self.process.kill()
        self.process.join()


@contextlib.contextmanager
def another_service(root: Path) -> Iterator[Holder]:
    """The lock in the hands of another process."""
    here, there = processes.Pipe()
    process = processes.Process(target=hold_for_ever, args=(root, there))
    process.start()
    there.close()
    with here:
        assert here.poll(60)  # starting the first process imports torch
        holder = Holder(process, here.recv())
    try:
        yield holder
    finally:
        holder.kill()
        os.kill(holder.child_pid, signal.SIGKILL)
