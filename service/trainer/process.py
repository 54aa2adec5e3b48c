"""The parent's side of the trainer worker: starting, feeding, watching, restarting.

Micro-batches stay here until a published version covers them; a new worker is sent again
whatever its predecessor had not published. Each worker has a pipe of its own, since a killed
process may leave half a message in it. Two threads serve it: one sends, because a frozen
worker stops reading, one listens and watches.
"""

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from service.domain import (
    Erasure,
    ItemKey,
    MicroBatch,
    Offset,
    Offsets,
    Partition,
    advance,
    is_covered,
)
from service.settings import Settings
from service.state.catalogue import CatalogueItem
from service.state.histories import SlabAddress
from service.trainer import template, worker
from service.trainer.messages import (
    Catalogued,
    DescriptionDone,
    FromWorker,
    Heartbeat,
    Published,
    RoundDone,
    Settle,
    Started,
    Stop,
)
from service.trainer.restart import Health, Signs, diagnose, restart_delay_s

log = logging.getLogger(__name__)

_POLL_S = 0.1
_ITEMS_AT_ONCE = 256  # of the catalogue in one message: some seconds of encoding
# Such messages that a worker has at hand: vectors of a million items in its queue are gigabytes.
_TOLD_AHEAD = 16
# A step on a busy CPU takes well under this; a worker that is not done by then is killed,
# which loses nothing.
_STOP_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class WorkerEnded:
    """A worker is gone; told to the listener like its messages."""

    reason: str
    restarts: bool  # another follows: nobody asked it to stop


@dataclass(frozen=True, slots=True)
class Covered:
    """A version came out that holds these micro-batches' events."""

    published: Published
    opened_s: tuple[float, ...]  # of the micro-batches, monotonic


Listener = Callable[[FromWorker | WorkerEnded | Covered], None]


class UntrainedBatches:
    """Micro-batches that no published version covers, and which of them were sent. Not
    thread-safe: the owner holds its own lock."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._batches: deque[MicroBatch] = deque()
        self._sent = 0
        self._taken = 0
        self.events = 0

    @property
    def at_worker(self) -> int:
        """Batches that were sent and not yet learned."""
        return self._sent - self._taken

    @property
    def is_learned(self) -> bool:
        return self._taken == len(self._batches)

    @property
    def events_at_worker(self) -> int:
        return sum(_size(self._batches[i]) for i in range(self._taken, self._sent))

    def add(self, batch: MicroBatch) -> None:
        self._batches.append(batch)
        self.events += _size(batch)

    def next_to_send(self, max_events: int) -> MicroBatch | None:
        """The next unsent batch, unless the worker has `max_events` in hand already."""
        if self._sent == len(self._batches) or self.events_at_worker >= max_events:
            return None
        self._sent += 1
        return self._batches[self._sent - 1]

    def erase(self, erasures: Sequence[Erasure]) -> None:
        """Leave out the events that these erase, also of what is sent again."""
        self._batches = deque(batch.without(erasures) for batch in self._batches)
        self.events = sum(map(_size, self._batches))

    def learned(self, batches: int) -> None:
        self._taken = min(self._taken + batches, self._sent)

    def covered(self, through: Offsets) -> list[MicroBatch]:
        """Take out the batches whose events are all in a version trained through there."""
        done = []
        while self._batches and is_covered(self._batches[0].next_offsets, through):
            batch = self._batches.popleft()
            self.events -= _size(batch)
            self._sent = max(self._sent - 1, 0)
            self._taken = max(self._taken - 1, 0)
            done.append(batch)
        return done

    def send_again(self) -> None:
        """The worker is gone: nothing counts as sent."""
        self._sent = self._taken = 0


def _size(batch: MicroBatch) -> int:
    """Its events and erasures."""
    return len(batch) + len(batch.erasures)


class NoTrainer:
    """In the place of a `TrainerProcess` where another process trains."""

    untrained_events = 0
    batches_at_worker = 0
    is_idle = True

    def start(self, slabs: tuple[SlabAddress, ...], trained: Offsets, void: Offsets) -> None: ...
    def stop(self) -> None: ...
    def offer(self, batch: MicroBatch) -> None: ...
    def settle(self) -> None: ...
    def erase(self, erasures: Sequence[Erasure]) -> None: ...
    def describe(self, items: Iterable[CatalogueItem]) -> None: ...


class TrainerProcess:
    """Keeps one worker alive. `start` and `stop` may be called repeatedly, from one thread."""

    def __init__(self, settings: Settings, listener: Listener) -> None:
        """`listener` is called from the watching thread."""
        self._settings = settings
        self._listener = listener
        self._untrained = UntrainedBatches()
        self._covered: dict[Partition, Offset] = {}  # what is before it is here no more
        self._void: Offsets = {}
        self._catalogue: dict[ItemKey, CatalogueItem] = {}
        self._untold: dict[ItemKey, CatalogueItem] = {}  # of it, to the worker that lives
        self._told = 0  # messages of it that this one has not done with
        self._settling: Settle | None = None
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: BaseProcess | None = None

    @property
    def untrained_events(self) -> int:
        return self._untrained.events

    @property
    def is_idle(self) -> bool:
        """Whether every micro-batch was sent and learned."""
        return self._untrained.is_learned

    @property
    def batches_at_worker(self) -> int:
        return self._untrained.at_worker

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self, slabs: tuple[SlabAddress, ...], trained: Offsets, void: Offsets) -> None:
        """Begin keeping a worker that reads these slabs, on top of a version that was `trained`
        through there, but for what of that is `void`: all that follows will be offered."""
        self._stopping.clear()
        self._covered, self._void = dict(trained), void
        self._thread = threading.Thread(
            target=self._keep_alive, args=(slabs,), name="trainer", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the worker and forget what it had not published; Kafka still has it. Blocks
        for a few seconds at most."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread:
            self._thread.join()
            self._thread = None
        self._untrained.clear()
        self._settling = None

    def offer(self, batch: MicroBatch) -> None:
        """Add a micro-batch. Never blocks; the caller looks at `untrained_events`."""
        with self._changed:
            self._untrained.add(batch)
            self._changed.notify_all()

    def settle(self) -> None:
        """There is no room for more events, and the worker has learned those that there are: a
        version has to come out whatever the gate says."""
        with self._changed:
            self._settling = Settle()
            self._changed.notify_all()

    def erase(self, erasures: Sequence[Erasure]) -> None:
        """Of what waits leave out the events that these erase; the worker learns of them with the
        next micro-batch. Never blocks."""
        with self._changed:
            self._untrained.erase(erasures)

    def describe(self, items: Iterable[CatalogueItem]) -> None:
        """What the catalogue says of items. Each worker is told all of it, as fast as it encodes
        that and micro-batches beside it, but for what was withdrawn before it began. Never
        blocks."""
        with self._changed:
            for item in items:
                self._untold[item.key] = item
                if item.available:
                    self._catalogue[item.key] = item
                else:
                    self._catalogue.pop(item.key, None)
            self._changed.notify_all()

    def _next_catalogued(self) -> Catalogued | None:
        """Some of what this worker has not been told, while it has not too much at hand. The caller
        holds the lock."""
        if not self._untold or self._told >= _TOLD_AHEAD:
            return None
        self._told += 1
        keys = list(islice(self._untold, _ITEMS_AT_ONCE))
        return Catalogued(tuple(self._untold.pop(key) for key in keys))

    def _keep_alive(self, slabs: tuple[SlabAddress, ...]) -> None:
        settings = self._settings.trainer.restart
        failures = 0
        while not self._stopping.is_set():
            started_s = time.monotonic()
            reason = self._one_life(slabs)
            if self._stopping.is_set():
                self._listener(WorkerEnded(reason, restarts=False))
                return
            healthy = time.monotonic() - started_s > settings.healthy_after_s
            failures = 1 if healthy else failures + 1
            delay_s = restart_delay_s(failures, settings)
            log.warning("trainer worker ended (%s); the next starts in %.1f s", reason, delay_s)
            self._listener(WorkerEnded(reason, restarts=True))
            self._stopping.wait(delay_s)

    def _one_life(self, slabs: tuple[SlabAddress, ...]) -> str:
        """Start a worker and serve it until it ends; say why it did."""
        with self._changed:
            self._untrained.send_again()
            self._settling = None  # this one has yet to learn what its predecessor had
            self._untold, self._told = dict(self._catalogue), 0
            arguments = worker.WorkerArguments(
                self._settings, slabs, frozenset(self._catalogue), dict(self._covered), self._void
            )
        try:
            forked = self._fork(arguments)
        except (OSError, EOFError, RuntimeError) as error:
            template.end()
            return f"it could not be started: {error}"
        if forked is None:
            return "stopped"
        process, ours = forked
        self._process = process
        ended = threading.Event()
        sender = threading.Thread(
            target=self._send, args=(ours, ended), name="trainer-sender", daemon=True
        )
        try:
            try:
                sender.start()
            except RuntimeError as error:
                return f"it could not be served: {error}"
            return self._listen(ours, process)
        finally:
            ended.set()
            _end(process)
            with self._changed:
                self._changed.notify_all()
            if sender.ident is not None:
                sender.join()
            ours.close()
            self._process = None

    def _fork(self, arguments: worker.WorkerArguments) -> tuple[BaseProcess, Connection] | None:
        """A worker and our end of its pipe; None when asked to stop before it has begun, as the
        first one waits for the template. What comes of it finds nobody at the pipe, and ends.

        Raises OSError where there are no more processes, open files or memory to be had, or the
        template does not answer, EOFError where that dies meanwhile, and RuntimeError where there
        are no more threads."""
        context = template.ensure_running()
        ours, theirs = context.Pipe()
        process = context.Process(
            target=worker.main, args=(theirs, arguments), name="headwater-trainer", daemon=True
        )
        started: Future[None] = Future()

        def start() -> None:
            try:
                process.start()
            except BaseException as error:  # noqa: BLE001  # raised where it is waited for
                started.set_exception(error)
            else:
                started.set_result(None)
            finally:
                theirs.close()  # so that its death is the end of our file

        late_s = time.monotonic() + self._settings.trainer.restart.start_timeout_s
        with ExitStack() as undo:
            undo.callback(ours.close)
            threading.Thread(target=start, name="trainer-start", daemon=True).start()
            while not wait([started], _POLL_S).done:
                if self._stopping.is_set():
                    return None
                if time.monotonic() > late_s:
                    raise TimeoutError("its template does not answer")
            started.result()
            undo.pop_all()
        return process, ours

    def _send(self, connection: Connection, ended: threading.Event) -> None:
        while not ended.is_set():
            with self._changed:
                message = self._next_message()
                if message is None:
                    self._changed.wait(_POLL_S)
                    continue
            try:
                connection.send(message)
            except (OSError, ValueError):
                return  # the listener sees the end of the file too
            if isinstance(message, Stop):
                return

    def _next_message(self) -> Catalogued | MicroBatch | Settle | Stop | None:
        """What the worker is to be told next. A micro-batch may have no event, only erasures. The
        caller holds the lock."""
        told = self._next_catalogued()
        if told is not None:
            return told
        batch = self._untrained.next_to_send(2 * self._settings.trainer.max_round_events)
        if batch is not None:
            return batch
        settle, self._settling = self._settling, None
        if settle is not None:
            return settle
        return Stop() if self._stopping.is_set() else None

    def _listen(self, connection: Connection, process: BaseProcess) -> str:
        """Pass on what the worker says until it ends, is lost, or shall stop."""
        settings = self._settings.trainer.restart
        now_s = time.monotonic()
        signs = Signs(now_s, ready=False, heard_s=now_s, moved_s=now_s)
        progress = -1
        stop_by_s: float | None = None
        while True:
            try:
                message = connection.recv() if connection.poll(_POLL_S) else None
            except (EOFError, OSError):
                process.join(_STOP_WITHIN_S)
                code = process.exitcode
                return "its pipe closed" if code is None else f"exit code {code}"
            now_s = time.monotonic()
            if message is not None:
                moved = not isinstance(message, Heartbeat) or not message.busy
                if isinstance(message, Heartbeat):
                    moved |= message.progress != progress
                    progress = message.progress
                signs = Signs(
                    signs.spawned_s,
                    ready=signs.ready or isinstance(message, Started),
                    heard_s=now_s,
                    moved_s=now_s if moved else signs.moved_s,
                )
                self._heard(message)
            if self._stopping.is_set():
                stop_by_s = stop_by_s or now_s + _STOP_WITHIN_S
                # One that is still starting has nothing to finish.
                if now_s > stop_by_s or not signs.ready:
                    _kill(process)
                    return "stopped"
            health = diagnose(signs, now_s, settings)
            if health is not Health.WELL:
                _kill(process)
                return health.value

    def _heard(self, message: FromWorker) -> None:
        self._listener(message)
        if isinstance(message, RoundDone):
            with self._changed:
                self._untrained.learned(message.report.batches)
                self._changed.notify_all()
        if isinstance(message, DescriptionDone):
            with self._changed:
                self._told -= 1
                self._changed.notify_all()
        if isinstance(message, Started | Published):
            with self._changed:
                covered = self._untrained.covered(message.trained_through)
                advance(self._covered, message.trained_through)
            published = Published(message.version, message.trained_through)
            self._listener(Covered(published, tuple(batch.opened_s for batch in covered)))


def _kill(process: BaseProcess) -> None:
    """One that was just heard of, or is not reaped. `process.kill` takes it for dead once its
    template is."""
    if process.pid is not None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)  # works on a stopped process too


def _end(process: BaseProcess) -> None:
    """However it stands. Only the template can see to one that is dead."""
    if process.exitcode is None:
        _kill(process)
        process.join(_STOP_WITHIN_S)
    if process.exitcode is None:
        log.error("the template of the workers stands still: the next has a new one")
        template.end()
