"""The places in the service at which a fault can strike, and how they are put there.

The product has no hooks for it. `tests.faults.serve` replaces these functions in the processes
that it starts; a name that is gone fails at once, so that no scenario passes by striking nothing.
"""

import functools
import importlib
import inspect
import multiprocessing
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.orders import Blow, Order, Orders

_FAR_S = 1e6
_ROOM_BYTES = 64 * 1024 * 1024  # that a process which is to run out of memory is left with


@dataclass(frozen=True, slots=True)
class Point:
    """Before or after a function of a module, or of a class in it."""

    module: str
    name: str
    after: bool = False


# In the order in which a batch comes by.
MAIN: Mapping[str, Point] = {
    "score": Point("service.app.pipeline", "Pipeline._score"),
    "scored": Point("service.app.pipeline", "Pipeline._score", after=True),
    "sent": Point("service.stream.sink", "Sink.recommend", after=True),
    "commit": Point("service.stream.source", "Source.commit"),
    "committed": Point("service.stream.source", "Source.commit", after=True),
    # Of exactly-once output, in place of the three before.
    "acknowledged": Point(
        "service.stream.transactions", "AIOKafkaProducer.send_offsets_to_transaction"
    ),
    "moved": Point("service.stream.transactions", "AIOKafkaProducer.commit_transaction"),
    "transacted": Point(
        "service.stream.transactions", "AIOKafkaProducer.commit_transaction", after=True
    ),
    "loaded": Point("service.app.serving", "load_servable", after=True),
    "snapshot": Point("service.storage.store", "Store.write", after=True),
}

# In the order in which a round and a version come by.
WORKER: Mapping[str, Point] = {
    "step": Point("service.trainer.learner", "train_step"),
    "promoted": Point("service.trainer.worker", "Worker._write"),
    "writing": Point("service.registry.artifact", "write_synced", after=True),
    "written": Point("service.registry.registry", "write_artifact", after=True),
    "claimed": Point("service.registry.folders", "VersionFolders._claim", after=True),
    "manifest": Point("service.registry.folders", "replace_synced", after=True),
    "published": Point("service.trainer.worker", "Worker._write", after=True),
}


def install(points: Mapping[str, Point], folder: Path) -> None:
    """Put the points in, in this process; orders come from `folder`."""
    orders = Orders(folder)
    strike = _Striker(orders).reached
    for label, point in points.items():
        owner, _, name = point.name.rpartition(".")
        target: Any = importlib.import_module(point.module)
        target = getattr(target, owner) if owner else target
        setattr(target, name, _struck(getattr(target, name), label, point.after, strike))
    _shift_clock(orders)


class _Striker:
    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._passes: Counter[Order] = Counter()

    def reached(self, label: str) -> None:
        order = self._orders.read()
        if order is None or order.point != label:
            return
        self._passes[order] += 1
        if self._passes[order] <= order.passes or not self._orders.claim(label):
            return
        self._passes.clear()
        _deal(order.blow)


def _deal(blow: Blow) -> None:
    match blow:
        case Blow.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Blow.KILL_SERVICE:
            service = multiprocessing.parent_process()
            assert service is not None
            assert service.pid is not None
            os.kill(service.pid, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        case Blow.FREEZE:
            os.kill(os.getpid(), signal.SIGSTOP)
        case Blow.HANG:
            time.sleep(_FAR_S)
        case Blow.EXHAUST:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + _ROOM_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            bytearray(2 * _ROOM_BYTES)  # raises MemoryError, as any allocation would from now on


def _struck(
    function: Callable[..., Any], label: str, after: bool, strike: Callable[[str], None]
) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(*arguments: Any, **named: Any) -> Any:
            if not after:
                strike(label)
            result = await function(*arguments, **named)
            if after:
                strike(label)
            return result

        return awaited

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        if not after:
            strike(label)
        result = function(*arguments, **named)
        if after:
            strike(label)
        return result

    return called


def _shift_clock(orders: Orders) -> None:
    """The wall clock of this process, as far ahead as ordered; read anew at most every 50 ms."""
    true_ns, true_s = time.time_ns, time.time
    read_s, ahead_s = -1.0, 0.0

    def ahead() -> float:
        nonlocal read_s, ahead_s
        if time.monotonic() > read_s + 0.05:
            read_s, ahead_s = time.monotonic(), orders.clock_ahead_s()
        return ahead_s

    time.time_ns = lambda: true_ns() + round(ahead() * 1e9)
    time.time = lambda: true_s() + ahead()
