"""The full retrain, which the live model is compared with: a new model, taught all events so far.

The learner and the scorer of the service, given everything as one round and as many passes as
the holdout goes on improving. It is mixed with the memory in the live model's share: weights that
have learned what came after the held-out rows look too good there beside a memory that has not.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from service.backtest.engine import PARTITION
from service.backtest.table import Table
from service.domain import MicroBatch, Version
from service.errors import ConfigurationError
from service.model.item_tower import Described
from service.model.memory import Memory
from service.registry.servable import Servable
from service.scorer.scorer import Scorer
from service.settings import HistorySettings, Settings
from service.state.histories import SLACK, HistorySlab, slab_bytes
from service.trainer.batcher import Batcher
from service.trainer.learner import Learner

# Events of shared memory (25 bytes each) for histories in which a user's events are all kept.
_ROOM = 40_000_000


@dataclass(frozen=True, slots=True)
class Retrained:
    """A model and the memory of all that it was taught."""

    servable: Servable
    memory: Memory | None
    seconds: float  # of training


def retrain(
    events: Table,
    settings: Settings,
    device: torch.device,
    epochs: int,
    patience: int,
    share: float,
    described: Described | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Retrained:
    """Teach a new model `events`, for `share` of its mixture with a memory; what is `described` it
    knows from the start. Blocks for minutes where they are many; `on_step` is called meanwhile."""
    settings = _for_all_at_once(settings, events, epochs, patience)
    slab = HistorySlab.of(PARTITION, settings)
    # Numbers of its own: the live model learns the same with and without a retrain beside it.
    with torch.random.fork_rng(), contextlib.closing(slab):
        torch.manual_seed(settings.model.seed)
        slabs = {PARTITION: slab}
        learner = Learner.new(settings, slabs, device, described)
        learner.on_step = on_step
        first = learner.servable(Version(0))
        scorer = Scorer.of(settings, first, slabs, Memory.of(settings.memory))
        batches = _micro_batches(events, scorer, settings)
        started_s = time.perf_counter()
        if batches:
            if learner.learn(batches).diverged:
                raise ConfigurationError(
                    "a full retrain diverged, so that nothing can be compared with it: lower "
                    "trainer.learning_rate, or do without a retrain"
                )
            learner.judge()  # with this tolerance it rejects nothing
        seconds = time.perf_counter() - started_s
        taught = learner.servable(Version(1))
        taught = replace(taught, blend=replace(taught.blend, share=share))
        return Retrained(taught, scorer.memory, seconds)


def room(events: Table, settings: Settings) -> int:
    """Bytes of shared memory that a retrain on these events takes."""
    history = _for_all_at_once(settings, events, 1, 1).history
    return slab_bytes(history, len(settings.model.context))


def _for_all_at_once(settings: Settings, events: Table, epochs: int, patience: int) -> Settings:
    """No replay, since nothing is old; no rejection, since nothing serves; whole histories."""
    _, counts = np.unique(events.user, return_counts=True)
    users, most = max(len(counts), 1), int(counts.max(initial=0))
    room = max(_ROOM // users - SLACK, settings.history.events)
    trainer = settings.trainer
    trainer = trainer.model_copy(
        update={
            "max_epochs": epochs,
            "patience": patience,
            "replay": trainer.replay.model_copy(update={"ratio": 0.0, "min_sequences": 0}),
            "gate": trainer.gate.model_copy(update={"tolerance": 1.0}),
        }
    )
    history = HistorySettings(users=users, events=max(min(most, room), settings.model.max_length))
    return settings.model_copy(update={"trainer": trainer, "history": history})


def _micro_batches(events: Table, scorer: Scorer, settings: Settings) -> list[MicroBatch]:
    """Scored without an answer: that fills the histories and the memory."""
    batcher = Batcher(settings.batch)
    batches = []
    size = settings.batch.score_max_events
    for start in range(0, len(events), size):
        part = events.events(start, start + size, start)
        scored = scorer.score(part, np.zeros(len(part), np.bool_))
        batcher.add(scored.events, scored.places.slot, scored.places.ordinal, 0.0)
        batches.append(batcher.close_if_due(0.0))
    batches.append(batcher.close_if_due(np.inf))
    return [batch for batch in batches if batch is not None]
