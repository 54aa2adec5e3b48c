"""Small settings, a round, and micro-batches whose events stand in a slab."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from service.domain import (
    Int32s,
    Int64s,
    ItemId,
    ItemKey,
    MicroBatch,
    Offset,
    Partition,
    UserId,
    item_key,
    user_key,
)
from service.model.item_tower import Described, Source
from service.model.memory import Memory
from service.registry.servable import first_blend
from service.settings import (
    EventsSettings,
    GateSettings,
    HistorySettings,
    HoldoutSettings,
    MemorySettings,
    ModelSettings,
    ReplaySettings,
    Settings,
    SmallBackbone,
    TrainerSettings,
)
from service.state.histories import HistorySlab
from service.trainer.challenger import Challenger
from service.trainer.gate import GateReport, Verdict
from service.trainer.holdout import empty_rows
from service.trainer.learner import Learner, RoundReport
from service.trainer.packing import Packed, pack

CPU = torch.device("cpu")
PARTITION = Partition(0)
CLICK, IMPRESSION = map(EventsSettings().kinds.index, ("click", "impression"))
USERS, CATALOGUE = 40, 20
HELD = GateReport(Verdict.HOLD, 10, 0.0, 0.1, 1.0, 1.0)
PROMOTED = GateReport(Verdict.PROMOTE, 10, 1.0, 0.1, 0.0, 1.0)
REJECTED = GateReport(Verdict.REJECT, 10, -1.0, 0.1, 1.0, 0.0)
NO_MEMORY = MemorySettings(enabled=False)  # so that what is measured is the weights'
ROUND = RoundReport(
    batches=2,
    events=100,
    held_out=5,
    sequences=40,
    labels=7,
    step_s=(0.01, 0.01, 0.01, 0.5),
    loss=1.5,
    diverged=False,
    skipped=1,
)


def small_settings(
    trainer: TrainerSettings | None = None, *, length: int = 8, events: int = 16
) -> Settings:
    return Settings(
        history=HistorySettings(users=200, events=events),
        model=ModelSettings(
            backbone=SmallBackbone(dim=16, layers=1, heads=2),
            dim=16,
            max_length=length,
            dropout=0,
            temperature=0.1 / 3,  # of many items; of the few in a test it is 0.1
        ),
        trainer=trainer or quick_training(),
    )


def quick_training(
    learning_rate: float = 1e-2, fraction: float = 0.1, min_rows: int = 10, max_epochs: int = 2
) -> TrainerSettings:
    return TrainerSettings(
        learning_rate=learning_rate,
        item_learning_rate=learning_rate,
        max_epochs=max_epochs,
        batch_sequences=32,
        full_round_events=1,  # rounds of a test are small
        replay=ReplaySettings(ratio=0.5, min_sequences=8),
        holdout=HoldoutSettings(fraction=fraction, window_rows=100),
        gate=GateSettings(min_rows=min_rows),
    )


def a_challenger(
    settings: Settings, items: int = 0, described: Described | None = None
) -> Challenger:
    challenger = Challenger.new(settings.model, settings.trainer, CPU, described)
    challenger.learn_items([known(number) for number in range(items)])
    return challenger


def a_learner(
    slab: HistorySlab,
    settings: Settings | None = None,
    challenger: Challenger | None = None,
    memory: MemorySettings = NO_MEMORY,
) -> Learner:
    settings = (settings or small_settings()).model_copy(update={"memory": memory})
    return Learner(
        settings,
        {PARTITION: slab},
        challenger or a_challenger(settings),
        empty_rows(settings.model.max_length),
        {},
        Memory.of(memory),
        first_blend(settings),
    )


def break_weights(challenger: Challenger, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The first so many steps of the optimizer leave a weight that is not a number."""
    real, left = challenger.optimizer.step, iter(range(times))

    def step() -> None:
        real()
        if next(left, None) is not None:
            with torch.no_grad():
                challenger.model.items.weight[1, 0] = torch.nan

    monkeypatch.setattr(challenger.optimizer, "step", step)


def described_items(count: int) -> Described:
    """The first items, each with three numbers of an image."""
    frozen = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    items = tuple(known(number) for number in range(count))
    return Described((Source("image", 3),), items, frozen, np.arange(1, count + 1)[:, None])


def known(number: int) -> tuple[ItemKey, ItemId]:
    item = ItemId(f"item-{number}")
    return item_key(item), item


def keys(numbers: Sequence[int]) -> Int64s:
    return np.array([known(number)[0] for number in numbers], np.int64)


def packed(*sequences: Sequence[int], together: bool = True) -> Packed:
    """Sequences of item rows, of which each place but the first is a target."""
    rows = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
    for row, items in zip(rows, sequences, strict=True):
        row[: len(items)] = items
    return pack(rows, rows != 0, width=8, device=CPU, together=together)


class Stream:
    """Appends events to a slab, as the scorer does, and gives them as micro-batches."""

    def __init__(self, slab: HistorySlab) -> None:
        self.slab = slab
        self.events = 0  # also the time, in seconds

    def batch(
        self,
        users: Sequence[int],
        items: Sequence[int],
        late_s: int = 0,
        *,
        kinds: Sequence[int] = (),
        values: Sequence[float] = (),
        codes: Int32s | None = None,
    ) -> MicroBatch:
        """The next events, dated `late_s` too early; views unless `kinds` says otherwise."""
        count = len(users)
        user = np.array([user_key(UserId(f"user-{number}")) for number in users], np.int64)
        item, kind = keys(items), np.array(kinds or [0] * count, np.uint8)
        offset = np.arange(self.events, self.events + count, dtype=np.int64)
        self.events += count
        time = (offset - late_s) * 1000
        if codes is None:
            codes = np.zeros((count, len(self.slab.address.features)), np.int32)
        slot, ordinal = self.slab.append(user, item, kind, time, offset, kind != IMPRESSION, codes)
        return MicroBatch(
            partition=np.full(count, PARTITION, np.int32),
            offset=offset,
            user=user,
            slot=slot,
            ordinal=ordinal,
            item=item,
            kind=kind,
            timestamp=time,
            value=np.array(values or [np.nan] * count, np.float32),
            codes=codes,
            item_ids=tuple(dict.fromkeys(known(number) for number in items)),
            next_offsets={PARTITION: Offset(self.events)},
            opened_s=0.0,
        )

    def walk(self, users: int, catalogue: int, steps: int, stride: int = 1) -> MicroBatch:
        """Every user goes `steps` times to the item `stride` further round the catalogue."""
        start = self.events // users
        visits = [
            (user, user + stride * (start + i)) for i in range(steps) for user in range(users)
        ]
        return self.batch([user for user, _ in visits], [place % catalogue for _, place in visits])
