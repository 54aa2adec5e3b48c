"""The worker process: takes micro-batches, learns, asks the gate, publishes.

Plain synchronous code. It starts from the newest intact version, so it may be killed at any
moment: what was not published is sent to its successor again. Two helper threads only move
messages: one reads the pipe, so that the parent never waits for a step, one sends heartbeats.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection

import numpy as np
import torch

from service import logs
from service.domain import ItemKey, MicroBatch, Offsets, Version, is_covered
from service.errors import (
    ConfigurationError,
    DamagedVersionError,
    OvertakenError,
    TransientError,
)
from service.model.item_tower import Source
from service.model.memory import Memory
from service.model.mixture import Blend
from service.model.recommender import Recommender
from service.model.vocabulary import Vocabulary
from service.registry.artifact import Artifact
from service.registry.manifest import GateSummary, Manifest, Origin
from service.registry.registry import Registry
from service.registry.servable import Servable, first_blend, make_servable, model_identity
from service.settings import Settings
from service.state.catalogue import CatalogueItem
from service.state.features import keys_of
from service.state.histories import HistorySlab, SlabAddress
from service.trainer.challenger import Challenger
from service.trainer.clicks import Clicks
from service.trainer.describing import Describer
from service.trainer.device import choose_device, choose_threads
from service.trainer.gate import GateReport, Verdict
from service.trainer.holdout import rows_from_tensors
from service.trainer.learner import Learner
from service.trainer.messages import (
    Behind,
    Catalogued,
    DescriptionDone,
    FromWorker,
    Heartbeat,
    Judged,
    Published,
    RoundDone,
    Settle,
    Settled,
    Started,
    Stop,
)
from service.trainer.patience import Patience

log = logging.getLogger(__name__)

_RETRY_PUBLISH_S = 5.0
_MORE_S = 0.5  # between two messages of a catalogue that is read from its beginning
_TOGETHER_S = 60.0  # for so long descriptions that go on coming are not published one by one
_ENCODED_AT_ONCE = 64  # items between two signs of progress; large encoders take seconds for them


@dataclass(frozen=True, slots=True)
class WorkerArguments:
    """All that a worker is started with; must be picklable."""

    settings: Settings
    slabs: tuple[SlabAddress, ...]
    named: frozenset[ItemKey] = frozenset()  # items that the catalogue names at the start
    # What the parent holds no more, since a version was trained through it.
    covered: Offsets = field(default_factory=dict)
    # Where a version says that it was trained through exactly there, that is of another topic.
    void: Offsets = field(default_factory=dict)


def main(connection: Connection, arguments: WorkerArguments) -> None:
    """Entry point of the process."""
    # Ctrl-C reaches the whole process group; the parent says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logs.set_up(arguments.settings.log, "worker")
    torch.set_num_threads(choose_threads(arguments.settings.trainer.threads))
    try:
        Worker(connection, arguments).run()
    except TransientError as error:
        log.error("the worker ends: %s", error)
        sys.exit(1)


class Inbox:
    """Micro-batches that have arrived, read from the pipe by a thread of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: deque[MicroBatch] = deque()
        self._changed = threading.Condition()
        self._told: deque[Catalogued] = deque()
        self.stopping = False
        self._settle = False
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def _read(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                with self._changed:
                    if isinstance(message, Stop):
                        self.stopping = True
                    elif isinstance(message, Catalogued):
                        self._told.append(message)
                    elif isinstance(message, Settle):
                        self._settle = True
                    else:
                        self._add(message)
                    self._changed.notify()
        except (EOFError, OSError):
            # The parent is gone, and with it whoever would read what we say.
            os._exit(0)
        except Exception:
            # The loop would go on saying that all is well, and be told of nothing.
            log.exception("what the service sends cannot be read")
            os._exit(1)

    def _add(self, batch: MicroBatch) -> None:
        """What it erases is not learned any more. The caller holds the lock."""
        if batch.erasures:
            self._waiting = deque(one.without(batch.erasures) for one in self._waiting)
        self._waiting.append(batch)

    @property
    def is_behind(self) -> bool:
        """Whether micro-batches wait while others are being learned."""
        return bool(self._waiting)

    def wait(self, timeout_s: float) -> None:
        """Until there is something to do; no longer than this."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._waiting or self._told or self._settle or self.stopping, timeout_s
            )

    def take(self, max_events: int) -> list[MicroBatch]:
        """Waiting micro-batches up to `max_events`, one at least where any waits."""
        with self._changed:
            taken: list[MicroBatch] = []
            events = 0
            while self._waiting and (not taken or events + len(self._waiting[0]) <= max_events):
                taken.append(self._waiting.popleft())
                events += len(taken[-1])
            return taken

    def is_told(self, within_s: float = 0.0) -> bool:
        """Whether something waits, or comes within so long, that was told of items."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._told), within_s)

    def asks_to_settle(self) -> bool:
        """Whether that was asked, once for each time, and nothing else is to be done first."""
        with self._changed:
            asked, self._settle = self._settle and not self._waiting, False
            return asked

    def catalogued(self) -> Catalogued | None:
        """What was told of items, the oldest message first; None when nothing waits."""
        with self._changed:
            return self._told.popleft() if self._told else None


class Worker:
    """One life of the trainer, from the newest version on."""

    def __init__(self, connection: Connection, arguments: WorkerArguments) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._progress = 0
        self._busy = True
        # One that was asked for before a stop and begins after it ends here: its slabs are gone.
        self._say(Heartbeat(self._progress, self._busy))
        self._settings = arguments.settings
        self._registry = Registry.of(arguments.settings)
        self._slabs = {
            address.partition: HistorySlab.attach(address) for address in arguments.slabs
        }
        self._named = arguments.named
        self._covered, self._void = arguments.covered, arguments.void
        self._device = choose_device(self._settings.trainer.device)
        self._newest = Version(0)  # known to exist, intact or not; another is someone else's
        self._same_frozen = False  # as the newest version: what is never trained is stored there
        self._pin: Version | None = None

    def run(self) -> None:
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        describer = Describer(self._settings.items, self._device)
        learner, version = self._resume(describer.sources)
        if not is_covered(self._covered, learner.trained_through):
            self._say(Behind(version, dict(learner.trained_through)))
            return
        inbox = Inbox(self._connection)
        self._say(Started(version, dict(learner.trained_through), str(self._device)))
        settings = self._settings.trainer
        ask_at = time.monotonic() + settings.publish_every_s
        patience, is_patient = Patience(_TOGETHER_S), True
        learner.on_step = self._advance
        while not inbox.stopping:
            self._busy = False
            inbox.wait(0.2)
            self._busy = True
            # Where nothing is known, what the catalogue says at first goes out together, and before
            # events: of items that are described no event is needed to recommend them.
            describes = is_patient and learner.is_blank and inbox.is_told(_MORE_S)
            batches = [] if describes else inbox.take(settings.max_round_events)
            if batches or learner.owes:
                fresh = [_after(batch, learner) for batch in batches]
                self._say(RoundDone(learner.learn(fresh, hurry=inbox.is_behind)))
            if (told := inbox.catalogued()) is None:
                patience.renew()
            else:
                patience.came(time.monotonic())
                self._describe(told.items, describer, learner)
                self._say(DescriptionDone())
            is_patient = patience.lasts(time.monotonic())
            waits = is_patient and learner.only_describes and told is not None
            more = waits and inbox.is_told(_MORE_S)
            is_due = time.monotonic() >= ask_at or learner.is_blank
            if learner.has_news and is_due and not more:
                published = self._ask_gate(learner, version)
                if published is None:
                    return
                if published != version:
                    patience.renew()
                version = published
                ask_at = time.monotonic() + settings.publish_every_s
            # What the gate let through and the storage refused is asked for again, not given up;
            # what it turned down has its next chance first.
            if inbox.asks_to_settle() and not learner.has_news and not learner.owes:
                settled = self._settle(learner, version)
                if settled is None:
                    return
                version = settled
            self._advance()

    def _advance(self) -> None:
        self._progress += 1

    def _describe(
        self, items: Sequence[CatalogueItem], describer: Describer, learner: Learner
    ) -> None:
        """Encode what the lineage does not know of these items yet."""
        learner.name(items)
        items = [item for item in items if item.available]  # of the others what was learned stays
        keys = np.array([item.key for item in items], np.int64)
        places = learner.undescribed(keys, describer.digests(items)).tolist()
        for start in range(0, len(places), _ENCODED_AT_ONCE):
            part = places[start : start + _ENCODED_AT_ONCE]
            learner.describe(describer.describe([items[place] for place in part]))
            self._advance()
        describer.remember(items)

    def _resume(self, sources: Sequence[Source]) -> tuple[Learner, Version]:
        """A learner on top of the newest intact version, which the parent made sure exists."""
        settings = self._settings
        self._newest = self._registry.versions()[-1]
        loaded = self._registry.load_newest(with_trainer=True)
        if loaded is None:
            raise RuntimeError("no intact version to start from")
        manifest, artifact = loaded
        vocabulary = Vocabulary(artifact.vocabulary)
        shape = Recommender.with_dropout(manifest.model, settings.model)
        stored = Recommender.from_weights(shape, dict(artifact.weights), dict(artifact.described))
        model = stored.with_tower(sources)
        anew = model.fit_context(settings.model.context)
        if model is not stored:
            anew.append("tower.projection.weight")
        kept = dict(artifact.trainer)
        if not model.fit_click_head(settings.click):
            anew += ["click.weight"]
            kept = {name: one for name, one in kept.items() if not name.startswith("click.")}
        challenger = Challenger(model, vocabulary, settings.trainer, self._device)
        moments = {name: one for name, one in kept.items() if not name.endswith(tuple(anew))}
        challenger.load_optimizer(moments)
        self._same_frozen = artifact.frozen == challenger.model.frozen
        features = keys_of(settings.model.context)
        held = rows_from_tensors(dict(artifact.trainer), settings.model.max_length, features)
        kinds = settings.events.kinds
        held = held.in_kinds(manifest.model.get("kinds", kinds), kinds)
        memory = Memory.of(settings.memory)
        if memory is not None:
            memory.load(artifact.trainer, vocabulary)
        learner = Learner(
            settings,
            self._slabs,
            challenger,
            held,
            {
                partition: offset
                for partition, offset in manifest.through(settings.topics.events).items()
                if self._void.get(partition) != offset
            },
            memory,
            _resumed_blend(manifest, artifact, settings),
            Clicks.of(settings, kept),
            self._named,
        )
        learner.resume_fit(kept)
        return learner, manifest.version

    def _ask_gate(self, learner: Learner, parent: Version) -> Version | None:
        """The newest version after the gate has spoken; None when this worker has to end
        because the lineage that it stands on was rolled back. Of descriptions alone there is
        nothing to ask."""
        if learner.only_describes:
            return self._publish(learner, parent, Origin.TRAINED, None)
        self._look_at_pin(learner)
        report, skipped = learner.judge()
        self._say(Judged(report, skipped, learner.shift, learner.click_report))
        if report.verdict is not Verdict.PROMOTE:
            return parent
        return self._publish(learner, parent, Origin.TRAINED, report)

    def _look_at_pin(self, learner: Learner) -> None:
        """Let the gate know the version that is pinned now."""
        try:
            pin = self._registry.pinned()
            if pin != self._pin:
                learner.compare_with(None)  # nor with what was pinned, if this cannot be read
                if pin is not None:
                    learner.compare_with(self._load(pin))
                self._pin = pin
        except (ConfigurationError, DamagedVersionError, TransientError, OSError) as error:
            log.error("the gate cannot read which version is pinned, or that version: %s", error)

    def _load(self, version: Version) -> Servable:
        """With the context features of today."""
        length = self._settings.model.max_length
        servable = make_servable(*self._registry.load(version), batch=1, length=length)
        servable.model.fit_context(self._settings.model.context)
        servable.model.to(self._device)
        return servable

    def _settle(self, learner: Learner, parent: Version) -> Version | None:
        """As `_ask_gate`, for the champion's weights once more."""
        skipped = learner.settle()
        log.warning(
            "gave up on %d sequences that did not pass the gate: no more events may wait for it",
            skipped,
        )
        self._say(Settled(skipped))
        return self._publish(learner, parent, Origin.SETTLED, None)

    def _publish(
        self, learner: Learner, parent: Version, origin: Origin, report: GateReport | None
    ) -> Version | None:
        """What the learner has at hand as a version; the newest one as in `_ask_gate`."""
        try:
            manifest = self._write(learner, parent, origin, report)
        except OvertakenError as error:
            log.warning("%s: starting again from the one that is", error)
            return None
        if manifest is None:
            learner.news = origin is Origin.TRAINED  # also where no more events come
            return parent
        self._newest = manifest.version
        self._same_frozen = True
        expired = learner.promoted()
        self._say(Published(manifest.version, dict(manifest.trained_through), expired))
        try:
            self._registry.prune()
        except (ConfigurationError, TransientError, OSError) as error:
            log.error("older versions are removed after the next one: %s", error)
        return manifest.version

    def _write(
        self, learner: Learner, parent: Version, origin: Origin, report: GateReport | None
    ) -> Manifest | None:
        """None when the storage refused for now: the challenger goes on and asks again."""
        artifact = learner.artifact()
        try:
            return self._registry.publish(
                artifact,
                parent=parent,
                origin=origin,
                trained_through=learner.trained_through,
                topic=self._settings.topics.events,
                model={
                    **learner.shape,
                    "settings": model_identity(self._settings.model),
                    "kinds": self._settings.events.kinds,
                },
                items=len(artifact.vocabulary) - 1,
                gate=_summary(report) if report else None,
                now_ms=time.time_ns() // 1_000_000,
                same_frozen=self._same_frozen,
                taught=learner.taught,
                given_up=learner.given_up,
                after=self._newest,
            )
        except TransientError as error:
            log.error("could not publish, trying again later: %s", error)
            time.sleep(_RETRY_PUBLISH_S)
            return None

    def _beat(self) -> None:
        while True:
            self._say(Heartbeat(self._progress, self._busy))
            time.sleep(self._settings.trainer.restart.heartbeat_s)

    def _say(self, message: FromWorker) -> None:
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            os._exit(0)  # the parent is gone


def _summary(report: GateReport) -> GateSummary:
    return GateSummary(
        verdict=report.verdict.value,
        rows=report.rows,
        mean_gain=report.mean_gain,
        margin=report.margin,
        champion_ndcg=report.champion,
        challenger_ndcg=report.challenger,
    )


def _after(batch: MicroBatch, learner: Learner) -> MicroBatch:
    """The events and erasures of a batch that are not yet in the learner's lineage.

    A predecessor may have published and died before the parent heard of it.
    """
    through = learner.trained_through
    known = np.array([through.get(p, 0) for p in batch.partition.tolist()], np.int64)
    rows = np.flatnonzero(batch.offset >= known)
    erasures = tuple(one for one in batch.erasures if one.offset >= through.get(one.partition, 0))
    batch = batch if len(rows) == len(batch) else batch.take(rows)
    return batch if erasures == batch.erasures else replace(batch, erasures=erasures)


def _resumed_blend(manifest: Manifest, artifact: Artifact, settings: Settings) -> Blend:
    """What was fitted, where the settings of today still have use for it."""
    blend, fitted = first_blend(settings), Blend(**manifest.model["blend"])
    if settings.memory.enabled and "memory.key" in artifact.trainer:  # else it was mixed with none
        blend = replace(blend, share=fitted.share)
    if settings.click.enabled:
        blend = replace(blend, rerank=fitted.rerank, candidates=fitted.candidates)
    return blend
