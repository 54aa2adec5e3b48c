"""Real processes that publish, and die while they do.

They are forked from a server that has imported torch once: a test can afford many.
"""

import multiprocessing
import os
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path

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
