"""The service in one process: state, scorer, trainer and gate as `serve` has them.

What runs side by side there takes turns here: each micro-batch is learned when it closes, and
the gate is asked after every few of them. So a run is repeatable, and its figures are those of
a service whose training keeps up.
"""

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from service.domain import Bools, Events, Float32s, MicroBatch, Partition, Version
from service.model.clicks import foretold
from service.model.item_tower import Described
from service.model.memory import Memory
from service.registry.servable import Servable
from service.scorer.scorer import Scored, Scorer
from service.settings import Settings
from service.state.histories import HistorySlab
from service.tracking.curves import gate_values, round_values, version_values
from service.tracking.tracker import UNTRACKED, Tracker
from service.trainer.batcher import Batcher
from service.trainer.gate import GateReport, Verdict
from service.trainer.learner import Learner

PARTITION = Partition(0)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate said, after how many events."""

    events: int
    report: GateReport


class Engine:
    """Histories, scorer and learner. Made with weights that have learned nothing."""

    def __init__(
        self,
        settings: Settings,
        device: torch.device,
        gate_every: int,
        described: Described | None = None,
        tracker: Tracker = UNTRACKED,
    ) -> None:
        """`gate_every` micro-batches the gate is asked. What is `described` is known from the
        start."""
        # Dropout and negatives are drawn from torch's own generator: a seed gives the same again.
        torch.manual_seed(settings.model.seed)
        self.settings = settings
        self.train_seconds = 0.0
        self.decisions: list[Decision] = []
        # What the champion's click head expected of each event, NaN where it was not asked.
        self.expected: list[Float32s] = []
        self._gate_every = gate_every
        self._tracker = tracker
        self._batcher = Batcher(settings.batch)
        self._events = 0
        self._micro_batches = 0
        with ExitStack() as undo:  # a search of settings goes on after a model that cannot be made
            self._slab = HistorySlab.of(PARTITION, settings)
            undo.callback(self._slab.close)
            slabs = {PARTITION: self._slab}
            self._learner = Learner.new(settings, slabs, device, described)
            first = self._learner.servable(Version(1))
            self._scorer = Scorer.of(settings, first, slabs, Memory.of(settings.memory))
            undo.pop_all()

    def close(self) -> None:
        self._slab.close()

    @property
    def champion(self) -> Servable:
        return self._scorer.champion

    @property
    def memory(self) -> Memory | None:
        """The scorer's, which has learned every event that was given."""
        return self._scorer.memory

    def score(self, events: Events, answer: Bools) -> Scored:
        """Apply events, of which those marked are ranked before anything learns from them; then
        train where a micro-batch is full. At most as many events as a micro-batch has."""
        scored = self.rank(events, answer)
        self.learn_if_due()
        return scored

    def rank(self, events: Events, answer: Bools) -> Scored:
        """The first half of `score`: the weights learn nothing yet."""
        scored = self._scorer.score(events, answer)
        self._events += len(events)
        if self.settings.click.enabled:
            self.expected.append(self._expect(scored))
        self._batcher.add(scored.events, scored.places.slot, scored.places.ordinal, 0.0)
        return scored

    def _expect(self, scored: Scored) -> Float32s:
        """What the click head expects of the scored events from the histories before them."""
        events, champion = scored.events, scored.servable
        expected = np.full(len(events), np.nan, np.float32)
        kinds = self.settings.events.codes(self.settings.click.kinds)
        rows = np.flatnonzero(np.isin(events.kind, kinds))
        if champion.model.click and len(rows):
            slot, ordinal = scored.places.slot[rows], scored.places.ordinal[rows]
            before = self._slab.windows(slot, ordinal, self.settings.model.max_length)
            expected[rows] = foretold(
                champion.model,
                champion.model.click,
                champion.vocabulary,
                before.item,
                events.item[rows],
                before.codes,
            )
        return expected

    def learn_if_due(self) -> None:
        """The second half: train where a micro-batch is full."""
        self._learn(self._batcher.close_if_due(0.0))

    def catch_up(self) -> None:
        """Learn what waits, also what the gate turned down, and ask the gate, as a service does
        when the stream pauses."""
        self._learn(self._batcher.close_if_due(math.inf))
        started_s = time.perf_counter()
        self.ask_gate()
        while self._learner.owes:
            self._tracker.add(self._events, round_values(self._learner.learn([])))
            self.ask_gate()
        self.train_seconds += time.perf_counter() - started_s

    def _learn(self, batch: MicroBatch | None) -> None:
        if batch is None:
            return
        started_s = time.perf_counter()
        self._tracker.add(self._events, round_values(self._learner.learn([batch])))
        self._micro_batches += 1
        if self._micro_batches % self._gate_every == 0:
            self.ask_gate()
        self.train_seconds += time.perf_counter() - started_s

    def ask_gate(self) -> None:
        """Let the gate decide on what was learned, and swap in what passes."""
        if not self._learner.has_news:
            return
        report, _ = self._learner.judge()
        self.decisions.append(Decision(self._events, report))
        if report.verdict is Verdict.PROMOTE:
            self._scorer.champion = self._learner.servable(Version(self.champion.version + 1))
            self._learner.promoted()
        values = gate_values(report, self._learner.shift, self._learner.click_report)
        self._tracker.add(self._events, values | version_values(self.champion.version))
