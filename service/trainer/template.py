"""The process that workers are forked from.

It has imported what a worker needs, which takes seconds, and does nothing else: it has one thread
and has not touched a GPU, so that it is safe to fork.
"""

import os
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext

_WORKER = "service.trainer.worker"  # named, so that starting it needs none of that here


def ensure_running() -> ForkServerContext:
    """What to start workers with. Starts the template unless it runs, without waiting for it.

    Raises OSError where there are no more processes or open files to be had."""
    # Another `service` may lie where we were started.
    os.environ["PYTHONSAFEPATH"] = "1"
    context = get_context("forkserver")
    context.set_forkserver_preload([_WORKER])
    forkserver.ensure_running()
    return context
