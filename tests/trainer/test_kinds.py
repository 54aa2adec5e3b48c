"""What is learned of an event by its kind and its age."""

from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import pytest
import torch

from service.model.inference import states_after
from service.model.memory import Memory
from service.model.recommender import unit_rows
from service.registry.servable import first_blend
from service.settings import (
    EventsSettings,
    HistorySettings,
    HoldoutSettings,
    MemorySettings,
    ReplaySettings,
    Settings,
)
from service.state.histories import HistorySlab
from service.trainer.challenger import Challenger
from service.trainer.holdout import empty_rows
from service.trainer.learner import Learner
from service.trainer.packing import Packed
from tests.trainer.examples import (
    PARTITION,
    Stream,
    a_challenger,
    keys,
    quick_training,
    small_settings,
)

VIEW, BUY, DISLIKE = range(3)
KINDS = EventsSettings(kinds=("view", "buy", "dislike"), shown=(), negative=("dislike",))


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> Iterator[None]:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.trainer.step.has_fast_bf16", lambda _: False)
        yield


class Lineage:
    """A learner, and the stream that it learns."""

    def __init__(
        self, slab: HistorySlab, settings: Settings, memory: MemorySettings | None = None
    ) -> None:
        self.stream = Stream(slab)
        self.memory = Memory.of(memory or MemorySettings(enabled=False))
        self.challenger: Challenger = a_challenger(settings, items=6)
        self.learner = Learner(
            settings,
            {PARTITION: slab},
            self.challenger,
            empty_rows(settings.model.max_length),
            {},
            self.memory,
            first_blend(settings),
        )

    def learn(self, *groups: tuple[range, Sequence[tuple[int, int]]]) -> None:
        """One round, in which each user of a group makes its visits, (item, kind) in order."""
        events = [(user, *visit) for users, visits in groups for user in users for visit in visits]
        users, items, kinds = zip(*events, strict=True)
        self.learner.learn([self.stream.batch(users, items, kinds=kinds)])

    def chances(self, history: Sequence[int]) -> list[float]:
        """Of the items 0 to 5 after a history of items."""
        model, vocabulary = self.challenger.model, self.challenger.vocabulary
        model.eval()
        with torch.inference_mode():
            state, _ = states_after(model, vocabulary.rows(keys(history))[None])
            table = unit_rows(model.table(len(vocabulary)))[1:7]
            chances = (state @ table.T / 0.1).softmax(dim=1).squeeze(0)
        model.train()
        return [float(chance) for chance in chances]


def settings_with(
    events: EventsSettings, *, fraction: float = 0.0, half_life_s: float | None = None
) -> Settings:
    trainer = quick_training(fraction=fraction).model_copy(
        update={"replay": ReplaySettings(ratio=1.0, min_sequences=8, half_life_s=half_life_s)}
    )
    return small_settings(trainer).model_copy(
        update={"events": events, "history": HistorySettings(users=800, events=16)}
    )


def taught(visits: Sequence[tuple[int, int]], events: EventsSettings = KINDS) -> list[float]:
    """Mean chances after item 0 in the later rounds. In each as many users go on to 1 as to 2, and
    twice as many make these visits."""
    settings = settings_with(events)
    with closing(HistorySlab.of(PARTITION, settings)) as slab:
        lineage, chances = Lineage(slab, settings), []
        for start in range(0, 640, 40):
            lineage.learn(
                (range(start, start + 10), [(0, VIEW), (1, VIEW)]),
                (range(start + 10, start + 20), [(0, VIEW), (2, VIEW)]),
                (range(start + 20, start + 40), [(0, VIEW), *visits]),
            )
            chances.append(lineage.chances([0]))
    mean: list[float] = np.mean(chances[4:], axis=0).tolist()
    return mean


def test_what_users_turn_down_is_foretold_less() -> None:
    never = taught([(3, VIEW)])
    disliked = taught([(1, DISLIKE), (3, VIEW)])
    assert disliked[1] < 0.85 * never[1]
    more = KINDS.model_copy(update={"weights": {"dislike": 5.0}})
    hated = taught([(1, DISLIKE), (3, VIEW)], more)
    assert hated[1] < 0.5 * never[1]
    assert hated[2] > 0.7 * never[2]  # others are not pushed away with it
    assert hated[3] > 0.7 * never[3]  # nor is what comes after


def test_a_kind_counts_for_as_much_as_its_weight() -> None:
    visits = [(3, BUY)]
    even = taught(visits)
    more, less = (
        taught(visits, KINDS.model_copy(update={"weights": {"buy": weight}}))
        for weight in (10.0, 0.1)
    )
    assert less[3] < 0.7 * even[3]
    assert more[3] > 1.3 * even[3]


def test_a_kind_without_weight_is_history_and_no_target() -> None:
    events = KINDS.model_copy(update={"weights": {"buy": 0.0}})
    assert taught([(3, BUY)], events)[3] < 0.05
    # What follows a buy is learned with it before.
    settings = settings_with(events)
    with closing(HistorySlab.of(PARTITION, settings)) as slab:
        lineage = Lineage(slab, settings)
        for start in range(0, 200, 20):
            lineage.learn((range(start, start + 20), [(3, BUY), (4, VIEW)]))
        assert lineage.chances([3])[4] > 0.5


def test_nor_is_it_held_out() -> None:
    settings = settings_with(KINDS.model_copy(update={"weights": {"view": 0.0}}), fraction=0.6)
    with closing(HistorySlab.of(PARTITION, settings)) as slab:
        lineage = Lineage(slab, settings)
        for start in range(0, 60, 20):
            lineage.learn((range(start, start + 20), [(0, VIEW), (1, BUY)]))
    assert len(lineage.learner.held)
    assert set(lineage.learner.held.kind.tolist()) == {BUY}


def test_what_was_turned_down_is_neither_held_nor_remembered() -> None:
    settings = settings_with(KINDS, fraction=0.6)
    with closing(HistorySlab.of(PARTITION, settings)) as slab:
        lineage = Lineage(slab, settings, MemorySettings())
        for start in range(0, 60, 20):
            lineage.learn((range(start, start + 20), [(0, VIEW), (5, DISLIKE), (1, BUY)]))
    held, memory = lineage.learner.held, lineage.memory
    assert memory is not None
    assert set(held.item.tolist()) <= set(keys([0, 1]).tolist())
    assert (held.kind == np.where(held.item == keys([1])[0], BUY, VIEW)).all()
    assert not np.isin(held.context, keys([5])).any()
    assert memory.item_id(int(keys([5])[0])) is None
    assert memory.item_id(int(keys([1])[0])) is not None


def test_what_leaves_the_holdout_counts_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    events = KINDS.model_copy(update={"weights": {"buy": 5.0}})
    settings = settings_with(events, fraction=0.99)
    holdout = HoldoutSettings(fraction=0.99, window_rows=1)
    trainer = settings.trainer.model_copy(update={"holdout": holdout})
    packed: list[Packed] = []
    keep = Learner._packed

    def record(self: Learner, *given: object, **named: int) -> Packed:
        packed.append(keep(self, *given, **named))  # type: ignore[arg-type]
        return packed[-1]

    monkeypatch.setattr(Learner, "_packed", record)
    settings = settings.model_copy(update={"trainer": trainer})
    with closing(HistorySlab.of(PARTITION, settings)) as slab:
        lineage = Lineage(slab, settings)
        lineage.learn((range(10), [(0, VIEW), (1, BUY)]))
    counted = {
        (int(label), float(weight))
        for batch in packed
        if batch.weight is not None
        for label, weight in zip(batch.label.ravel(), batch.weight.ravel(), strict=True)
        if label
    }
    bought = int(lineage.challenger.vocabulary.rows(keys([1]))[0])
    assert counted == {(bought, 5.0)}


def test_with_a_half_life_what_is_long_past_is_forgotten_sooner() -> None:
    chances = {}
    for half_life_s in (None, 60.0):
        settings = settings_with(KINDS, half_life_s=half_life_s)
        torch.manual_seed(0)
        with closing(HistorySlab.of(PARTITION, settings)) as slab:
            lineage = Lineage(slab, settings)
            for start in range(0, 100, 20):
                lineage.learn((range(start, start + 20), [(0, VIEW), (1, VIEW)]))
            lineage.stream.events += 10_000  # seconds
            for start in range(200, 400, 10):
                lineage.learn((range(start, start + 10), [(0, VIEW), (2, VIEW)]))
        chances[half_life_s] = lineage.chances([0])
    assert chances[60.0][1] < chances[None][1] / 2
