"""Items that lose their rows, and what becomes of the others."""

from contextlib import closing
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.backtest.engine import Engine
from service.domain import ItemId, Version
from service.model.memory import Memory
from service.model.recommender import Recommender, unit_rows
from service.model.vocabulary import NO_ROW, Vocabulary
from service.registry.artifact import Artifact
from service.registry.servable import build_servable, first_blend
from service.settings import ItemsSettings, Settings
from service.state.catalogue import CatalogueItem
from service.state.histories import HistorySlab
from service.trainer import learner as learner_module
from service.trainer.challenger import Challenger
from service.trainer.expiry import kept_rows
from service.trainer.gate import GateReport, Verdict
from service.trainer.holdout import empty_rows
from service.trainer.learner import Learner
from tests.backtest.examples import quick_settings, table_of
from tests.state.examples import a_slab
from tests.trainer.examples import (
    CPU,
    PARTITION,
    Stream,
    keys,
    known,
    quick_training,
    small_settings,
)
from tests.trainer.test_challenger import some_described

DESCRIBED = some_described(0, 6)
MET = np.array([0, 50, 10, 40, 30, 20])
NOW_MS = 100


def kept(items: ItemsSettings, named: tuple[int, ...] = ()) -> object:
    is_named = np.isin(np.arange(6), named)
    return kept_rows(MET, is_named, items, NOW_MS).tolist()


def test_items_that_were_not_met_for_long_go_unless_the_catalogue_names_them() -> None:
    aged = ItemsSettings(expire_after_s=0.065)
    assert kept(aged) == [0, 1, 3]
    assert kept(aged, named=(2,)) == [0, 1, 2, 3]
    assert kept(ItemsSettings()) == [0, 1, 2, 3, 4, 5]


def test_where_there_are_too_many_those_met_longest_ago_go_named_or_not() -> None:
    assert kept(ItemsSettings(max_rows=2)) == [0, 1, 3]
    assert kept(ItemsSettings(max_rows=2), named=(2,)) == [0, 1, 3]


@given(
    met=st.lists(st.integers(0, NOW_MS), min_size=1, max_size=20),
    max_rows=st.integers(1, 20),
    after_ms=st.none() | st.integers(1, NOW_MS),
)
def test_who_stays_was_met_no_earlier_than_who_goes(
    met: list[int], max_rows: int, after_ms: int | None
) -> None:
    items = ItemsSettings(max_rows=max_rows, expire_after_s=after_ms and after_ms / 1000)
    times = np.array(met)
    rows = kept_rows(times, np.zeros(len(met), np.bool_), items, NOW_MS)
    assert rows[0] == NO_ROW
    assert (np.diff(rows) > 0).all()
    assert len(rows) <= max_rows + 1
    gone = np.setdiff1d(np.arange(len(met)), rows)
    assert times[gone].max(initial=0) <= times[rows[1:]].min(initial=NOW_MS)


def bounded(max_rows: int = 1000, expire_after_s: float | None = None) -> Settings:
    items = ItemsSettings(max_rows=max_rows, expire_after_s=expire_after_s)
    trainer = quick_training(max_epochs=1)
    return small_settings(trainer).model_copy(update={"items": items})


def a_learner(
    slab: HistorySlab, settings: Settings, challenger: Challenger | None = None
) -> Learner:
    return Learner(
        settings,
        {PARTITION: slab},
        challenger or Challenger.new(settings.model, settings.trainer, CPU, DESCRIBED),
        empty_rows(settings.model.max_length),
        {},
        Memory.of(settings.memory),
        first_blend(settings),
    )


def by_item(artifact: Artifact) -> dict[ItemId, list[torch.Tensor]]:
    """All that a version knows of each item, by id."""
    rows = len(artifact.vocabulary)
    tables = [
        artifact.weights["items.weight"],
        *artifact.described.values(),
        *(artifact.trainer[f"optimizer.items.{kind}"] for kind in ("mean", "square", "steps")),
        artifact.trainer["items.met"],
    ]
    assert all(len(table) == rows for table in tables)
    assert len(set(artifact.vocabulary)) == rows  # no two items share a row, none has two
    return {
        item: [table[row] for table in tables]
        for row, item in enumerate(artifact.vocabulary)
        if row != NO_ROW
    }


def assert_same(
    one: dict[ItemId, list[torch.Tensor]], other: dict[ItemId, list[torch.Tensor]]
) -> None:
    assert one.keys() == other.keys()
    for item in one:
        assert all(map(torch.equal, one[item], other[item])), item


def everything(learner: Learner) -> dict[ItemId, list[torch.Tensor]]:
    """What the learner knows of each item, those that would expire too."""
    with patch.object(learner, "_kept", return_value=None):
        return by_item(learner.artifact())


def vectors(learner: Learner) -> dict[ItemId, torch.Tensor]:
    """The item vectors of the challenger, by id."""
    challenger = learner._challenger
    rows = len(challenger.vocabulary)
    table = unit_rows(challenger.model.table(rows))
    return dict(zip(challenger.vocabulary.ids, table, strict=True))


def served(shape: dict[str, Any], artifact: Artifact) -> dict[ItemId, torch.Tensor]:
    """The item vectors of a version that is loaded now, by id."""
    servable = build_servable(shape, artifact, Version(1), 0, {})
    return dict(zip(servable.vocabulary.ids, servable.table, strict=True))


@settings(max_examples=12, deadline=None)
@given(
    acts=st.lists(st.sampled_from(["learn", "publish", "reject"]), min_size=3, max_size=9),
    max_rows=st.sampled_from([8, 15, 1000]),
    expire_after_s=st.sampled_from([None, 50.0]),
)
def test_what_is_known_of_an_item_follows_it_from_version_to_version(
    acts: list[str], max_rows: int, expire_after_s: float | None
) -> None:
    torch.manual_seed(0)
    with closing(a_slab(users=200, events=16)) as slab:
        stream, learner = Stream(slab), a_learner(slab, bounded(max_rows, expire_after_s))
        champion = everything(learner)
        versions = [(learner.shape, learner.artifact(), vectors(learner))]
        newest = 0
        for act in acts:
            if act == "learn":  # items that nobody has met, beside some that were
                items = [newest + step for step in range(5) for _ in range(8)]
                learner.learn([stream.batch(list(range(8)) * 5, items)])
                newest += 3
            elif act == "publish":
                before, published = everything(learner), by_item(learner.artifact())
                versions.append((learner.shape, learner.artifact(), vectors(learner)))
                expired = learner.promoted()
                champion = everything(learner)
                assert_same(published, {item: before[item] for item in published})
                assert_same(champion, published)
                assert len(champion) == len(before) - expired <= max_rows
            else:
                report = GateReport(Verdict.REJECT, 10, -1.0, 0.1, 1.0, 0.0)
                with patch.object(learner_module, "judge", return_value=report):
                    learner.judge()
                now = everything(learner)
                for item in champion:  # but for when it was met
                    assert all(map(torch.equal, champion[item][:-1], now[item][:-1]))
        for shape, artifact, then in versions:  # as after a rollback
            for item, vector in served(shape, artifact).items():
                torch.testing.assert_close(vector, then[item])


def test_last_met_times_survive_a_restart(slab: HistorySlab) -> None:
    stream, chosen = Stream(slab), bounded(expire_after_s=30.0)
    learner = a_learner(slab, chosen)
    learner.learn([stream.batch([1, 1, 2, 2], [10, 11, 10, 12])])
    learner.promoted()
    artifact = learner.artifact()
    model = Recommender.from_weights(
        learner.shape, dict(artifact.weights), dict(artifact.described)
    )
    challenger = Challenger(model, Vocabulary(artifact.vocabulary), chosen.trainer, CPU)
    challenger.load_optimizer(artifact.trainer)
    successor = a_learner(slab, chosen, challenger)
    assert_same(everything(successor), by_item(artifact))
    stream.events += 31
    successor.learn([stream.batch([3, 3], [20, 21])])
    assert set(known_ids(successor)) == {f"item-{number}" for number in (20, 21)}


def known_ids(learner: Learner) -> tuple[ItemId, ...]:
    return learner.artifact().vocabulary[1:]


def test_a_version_without_such_times_expires_nothing_at_once(slab: HistorySlab) -> None:
    stream, chosen = Stream(slab), bounded(expire_after_s=30.0)
    old = a_learner(slab, chosen)
    old.learn([stream.batch([1, 1], [10, 11])])
    artifact = old.artifact()
    model = Recommender.from_weights(old.shape, dict(artifact.weights), dict(artifact.described))
    challenger = Challenger(model, Vocabulary(artifact.vocabulary), chosen.trainer, CPU)
    learner = a_learner(slab, chosen, challenger)
    stream.events += 1000
    learner.learn([stream.batch([3, 3], [20, 21])])
    learner.promoted()
    assert "item-10" in known_ids(learner)
    stream.events += 31
    learner.learn([stream.batch([3, 3], [22, 23])])
    assert "item-10" not in known_ids(learner)


def catalogued(number: int, *, available: bool = True) -> CatalogueItem:
    return CatalogueItem(*known(number), available=available)


def test_an_item_of_the_catalogue_ages_once_it_is_withdrawn(slab: HistorySlab) -> None:
    stream = Stream(slab)
    learner = a_learner(slab, bounded(expire_after_s=30.0))
    learner.name([catalogued(number) for number in range(6)])
    learner.learn([stream.batch([1, 1], [10, 11])])
    learner.promoted()
    stream.events += 31
    learner.learn([stream.batch([1, 1], [12, 13])])
    assert len(known_ids(learner)) == 6 + 2
    learner.name([catalogued(3, available=False)])
    assert "item-3" not in known_ids(learner)
    assert len(known_ids(learner)) == 5 + 2


def test_no_more_items_are_described_than_there_is_room_for(slab: HistorySlab) -> None:
    learner = a_learner(slab, bounded(max_rows=8))
    ones = np.ones((10, 1), np.int64)
    assert learner.undescribed(keys(range(10)), ones).tolist() == [6, 7]
    assert learner.undescribed(keys(range(10)), 2 * ones).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_what_is_held_out_keeps_its_row_until_it_was_taught(slab: HistorySlab) -> None:
    stream, chosen = Stream(slab), bounded(expire_after_s=30.0)
    trainer = quick_training(fraction=0.99, max_epochs=1)
    learner = a_learner(slab, chosen.model_copy(update={"trainer": trainer}))
    learner.learn([stream.batch([1, 1, 2, 2], [10, 11, 10, 12])])
    assert len(learner.held) > 1
    stream.events += 31
    learner.learn([stream.batch([3, 3], [20, 21])])
    assert set(learner.held.item.tolist()) <= set(keys_of(learner))


def keys_of(learner: Learner) -> list[int]:
    keys: list[int] = Vocabulary(learner.artifact().vocabulary).keys.tolist()
    return keys


def test_a_stream_of_ever_new_items_is_learned_within_bounds() -> None:
    trainer = quick_settings().trainer
    holdout = trainer.holdout.model_copy(update={"window_rows": 10})
    trainer = trainer.model_copy(update={"holdout": holdout})
    chosen = quick_settings().model_copy(
        update={"items": ItemsSettings(max_rows=40), "trainer": trainer}
    )
    events = [
        (f"user-{user}", f"item-{step + user % 4}") for step in range(60) for user in range(12)
    ]
    table = table_of(events)
    with closing(Engine(chosen, CPU, 2)) as engine:
        sizes, ranks = [], []
        for start in range(0, len(table), 16):
            some = table.events(start, min(start + 16, len(table)), start)
            ranks.append(engine.score(some, np.ones(len(some), np.bool_)).ranks)
            champion = engine.champion
            sizes.append(len(champion.vocabulary))
            assert len(champion.table) == len(champion.vocabulary)
        late = np.concatenate(ranks[-15:])
        assert max(sizes) == 41
        assert ((late > 0) & (late <= 10)).mean() > 0.5
        assert "item-0" not in champion.vocabulary.ids
        assert f"item-{60}" in champion.vocabulary.ids
