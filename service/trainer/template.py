"""The process that workers are forked from.

It has imported what a worker needs, which takes seconds, and does nothing else: it has one thread
and has not touched a GPU, so that it is safe to fork.
"""

import logging
import os
import signal
import time
from contextlib import suppress
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext, SpawnContext

log = logging.getLogger(__name__)

_WORKER = "service.trainer.worker"  # named, so that starting it needs none of that here

_GONE_WITHIN_S = 5.0


def ensure_running() -> ForkServerContext | SpawnContext:
    """What to start workers with. Starts the template unless it runs, without waiting for it.
    Where there can be none, as no socket can be made in a temporary folder, workers are spawned,
    and each imports all by itself."""
    # Another `service` may lie where we were started.
    os.environ["PYTHONSAFEPATH"] = "1"
    context = get_context("forkserver")
    context.set_forkserver_preload([_WORKER])
    try:
        forkserver.ensure_running()
    except OSError as error:
        log.warning("workers will take seconds to begin, there is no template: %s", error)
        return get_context("spawn")
    return context


def end() -> None:
    """Kill it, in whatever state it is: the next worker has a new one."""
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if pid is None:
        return
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        end_s = time.monotonic() + _GONE_WITHIN_S
        # `ensure_running` reaps it.
        while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            if time.monotonic() > end_s:
                return
            time.sleep(0.01)
