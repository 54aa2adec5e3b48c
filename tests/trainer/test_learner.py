import math
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.domain import (
    Bools,
    Erasure,
    Float32s,
    Int64s,
    ItemId,
    ItemKey,
    MicroBatch,
    Offset,
    Offsets,
    UserId,
    Version,
    item_key,
    no_codes,
    user_key,
)
from service.errors import LossSpikeError
from service.model.item_tower import Described
from service.model.memory import Memory, Recollection
from service.model.mixture import Blend
from service.model.recommender import Recommender
from service.model.temperature import temperature_for
from service.model.vocabulary import NO_ROW, Vocabulary
from service.registry.servable import first_blend
from service.settings import (
    GateSettings,
    HerdingReplay,
    HoldoutSettings,
    KeepSettings,
    MemorySettings,
    RecencyReplay,
    ReplayChoice,
    ReplaySettings,
    TrainerSettings,
    UniformReplay,
)
from service.state.histories import HistorySlab
from service.trainer import evaluation
from service.trainer import learner as learner_module
from service.trainer.challenger import Challenger
from service.trainer.early_stopping import Scores
from service.trainer.evaluation import evaluate
from service.trainer.gate import GateReport, Verdict
from service.trainer.holdout import is_member, rows_from_tensors
from service.trainer.learner import Learner
from service.trainer.packing import Packed, pack
from service.trainer.replay import Replay
from service.trainer.sequences import Sequences, empty_sequences, from_lists, stretch
from service.trainer.step import train_step
from tests.state.examples import a_slab
from tests.trainer.examples import (
    CATALOGUE,
    CPU,
    HELD,
    IMPRESSION,
    NO_MEMORY,
    PARTITION,
    PROMOTED,
    REJECTED,
    USERS,
    Stream,
    a_challenger,
    a_learner,
    break_weights,
    described_items,
    keys,
    known,
    quick_training,
    small_settings,
)

WILD = 1000 * 1e-2  # a learning rate at which training falls apart


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> None:
    torch.manual_seed(0)  # rows of new items are drawn from torch's own generator


def a_champion(slab: HistorySlab, stream: Stream) -> Challenger:
    """One that has learned the walk round the catalogue."""
    challenger = a_challenger(small_settings())
    learner = a_learner(slab, challenger=challenger)
    for _ in range(4):
        learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
    return challenger


def test_learns_a_stream_whose_next_item_is_certain(slab: HistorySlab, stream: Stream) -> None:
    settings = small_settings()
    challenger = a_challenger(settings)
    learner = a_learner(slab, settings, challenger)
    reports = [learner.learn([stream.walk(USERS, CATALOGUE, steps=4)]) for _ in range(5)]
    assert reports[-1].loss < reports[0].loss / 2
    assert not any(report.diverged or report.skipped for report in reports)
    report, _ = learner.judge()
    assert report.verdict is Verdict.PROMOTE
    assert report.challenger > report.champion + 0.3
    (found,) = evaluate(
        challenger.model,
        challenger.vocabulary,
        learner.held,
        [],
        temperature=settings.model.temperature,
        shares=(1.0,),
        exclude_seen=True,
    )
    assert found.mean() == pytest.approx(report.challenger)

    learner.promoted()
    assert not learner.has_news
    again, _ = learner.judge()
    assert again.mean_gain == 0.0
    assert again.champion == pytest.approx(report.challenger)


def test_the_gate_measures_a_version_on_no_row_twice(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(quick_training(fraction=0.3))
    challenger = a_challenger(settings)
    learner = a_learner(slab, settings, challenger)
    learner.learn([stream.walk(USERS, CATALOGUE, steps=2)])
    learner.judge()
    learner.promoted()
    held = len(learner.held)
    learner.learn([stream.walk(USERS, CATALOGUE, steps=2)])
    asked: list[int] = []

    def counted(model: Recommender, *rest: Any, **how: Any) -> Float32s:
        if model is not challenger.model:
            asked.append(len(rest[1]))
        return evaluate(model, *rest, **how)

    monkeypatch.setattr(learner_module, "evaluate", counted)
    report, _ = learner.judge()
    new = len(learner.held) - held
    assert asked == [new, new]  # the champion, and the version of before
    learner.promoted()
    again, _ = learner.judge()
    assert again.champion == pytest.approx(report.challenger)
    assert asked[2:] == [0, 0]


@pytest.mark.parametrize(
    ("replay", "keep"),
    [
        (HerdingReplay(of=2), KeepSettings()),
        (RecencyReplay(of=2), KeepSettings()),
        (UniformReplay(), KeepSettings(distil=0.1)),
        (UniformReplay(), KeepSettings(l2=1e-4)),
    ],
)
def test_every_way_of_keeping_what_was_learned_learns_what_is_new(
    slab: HistorySlab, stream: Stream, replay: ReplayChoice, keep: KeepSettings
) -> None:
    trainer = quick_training()
    chosen = trainer.replay.model_copy(update={"choice": replay})
    trainer = trainer.model_copy(update={"replay": chosen, "keep": keep})
    learner = a_learner(slab, small_settings(trainer))
    for _ in range(4):
        learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
        report, _ = learner.judge()
        if report.verdict is Verdict.PROMOTE:
            learner.promoted()
    assert report.challenger > 0.3
    assert learner.judge()[0].champion > 0.3  # what holds the challenger lets it be promoted


def test_the_artifact_is_what_was_learned(slab: HistorySlab, stream: Stream) -> None:
    challenger = a_challenger(small_settings())
    learner = a_learner(slab, challenger=challenger)
    learner.learn([stream.walk(USERS, CATALOGUE, steps=3)])
    artifact = learner.artifact()
    assert learner.items == CATALOGUE
    assert len(artifact.vocabulary) == len(artifact.weights["items.weight"]) == CATALOGUE + 1
    assert torch.equal(
        artifact.weights["items.weight"], challenger.model.items.weight[: CATALOGUE + 1]
    )
    assert len(artifact.trainer["holdout.item"]) == len(learner.held) > 0
    assert len(artifact.trainer["optimizer.items.mean"]) == CATALOGUE + 1


def test_trained_through_moves_past_every_micro_batch(slab: HistorySlab, stream: Stream) -> None:
    learner = a_learner(slab)
    batches = [stream.batch([1, 2, 1], [1, 2, 3]), stream.batch([2], [1]), stream.batch([], [])]
    report = learner.learn(batches)
    assert learner.trained_through == {PARTITION: 4}
    assert (report.batches, report.events) == (3, 4)


def test_a_batch_that_is_sent_again_takes_nothing_back(slab: HistorySlab, stream: Stream) -> None:
    learner = a_learner(slab)
    first, second = stream.batch([1, 2], [1, 2]), stream.batch([1], [3])
    learner.learn([first, second])
    learner.learn([first.take(np.zeros(0, np.int64))])  # its events are in the lineage already
    assert learner.trained_through == {PARTITION: 3}


def test_tells_what_it_was_taught_since_the_champion(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = a_learner(slab)

    def told() -> list[tuple[int, int, int]]:
        return [(one.first, one.next, one.events) for one in learner.taught]

    first, second = stream.batch([1, 2], [1, 2]), stream.batch([1], [3])
    learner.learn([first])
    learner.learn([second])
    assert told() == [(0, 3, 3)]
    learner.learn([first])  # a fault of whoever sends it shows
    assert told() == [(0, 3, 3), (0, 2, 2)]
    learner.promoted()
    assert told() == []
    learner.learn([stream.batch([2], [5])])
    monkeypatch.setattr(learner_module, "judge", lambda *_: REJECTED)
    learner.judge()  # what it had learned is taught again, and is told once
    learner.learn([stream.batch([1], [6])])
    assert told() == [(3, 5, 2)]


def test_a_step_is_timed_by_itself(slab: HistorySlab, stream: Stream) -> None:
    learner = a_learner(slab, small_settings(quick_training(fraction=0)))
    report = learner.learn([stream.walk(USERS, CATALOGUE, steps=2)])
    assert len(report.step_s) == 4  # 40 sequences in two steps, twice
    assert min(report.step_s) > 0


def test_a_users_events_in_two_partitions_are_two_sequences(
    slab: HistorySlab, stream: Stream
) -> None:
    learner = a_learner(slab, small_settings(quick_training(fraction=0)))
    batch = stream.batch([1, 1, 1, 1], [1, 2, 3, 4])
    here_and_there = replace(batch, partition=np.array([0, 0, 1, 1], np.int32))
    assert learner.learn([here_and_there]).sequences == 2


def test_an_event_is_not_replayed_before_its_round_nor_in_it_nor_while_it_is_held(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = a_learner(slab, small_settings(quick_training(fraction=0.3)))
    drawn: set[int] = set()
    draw = Replay.draw

    def record(replay: Replay, rows: int, held: Int64s, through: Offsets, now_ms: int) -> Sequences:
        sequences = draw(replay, rows, held, through, now_ms)
        drawn.update(sequences.item.ravel().tolist())
        return sequences

    monkeypatch.setattr(Replay, "draw", record)
    learner.learn([stream.walk(USERS, CATALOGUE, steps=3)])
    assert drawn <= {0}
    early = stream.walk(USERS, CATALOGUE, steps=3)
    # Dated long before what is learned first, and in the histories already.
    late = stream.batch(range(USERS), range(100, 100 + USERS), late_s=10_000)
    learner.learn([early])
    assert drawn & set(early.item.tolist())  # the walk before went through the same items
    learner.learn([late])
    assert not drawn & set(late.item.tolist())

    held = set(learner.held.item.tolist()) & set(late.item.tolist())
    assert held
    for _ in range(5):
        learner.learn([stream.walk(USERS, CATALOGUE, steps=1)])
        held &= set(learner.held.item.tolist())
    assert drawn & set(late.item.tolist())
    assert not drawn & held


def test_what_was_shown_is_neither_taught_nor_held(slab: HistorySlab, stream: Stream) -> None:
    everything_held = a_learner(slab, small_settings(quick_training(fraction=0.99)))
    kinds = [0, IMPRESSION, IMPRESSION, 0, 0]
    report = everything_held.learn([stream.batch([1] * 5, [0, 1, 2, 3, 4], kinds=kinds)])
    assert (report.events, report.sequences) == (5, 0)
    held = set(everything_held.held.item.tolist())
    assert held == set(keys([0, 3, 4]).tolist())
    report = a_learner(slab, small_settings(quick_training(fraction=0.0))).learn(
        [stream.batch([2] * 3, [5, 6, 7], kinds=[0, IMPRESSION, IMPRESSION])]
    )
    assert report.sequences == 0  # one event alone


def test_a_round_without_events_takes_no_step(slab: HistorySlab, stream: Stream) -> None:
    report = a_learner(slab).learn([stream.batch([], [])])
    assert (report.step_s, report.sequences, report.diverged) == ((), 0, False)
    assert math.isnan(report.loss)


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_rejected_challenger_returns_to_the_champion(
    rounds: int, slab: HistorySlab, stream: Stream
) -> None:
    challenger = a_champion(slab, stream)
    before = challenger.checkpoint()
    settings = small_settings(quick_training(learning_rate=WILD, max_epochs=1, fraction=0.3))
    learner = a_learner(slab, settings, challenger)
    sequences = 0
    for _ in range(rounds):
        walk = stream.walk(USERS, CATALOGUE, steps=4)
        # So that the table has grown since the champion; the next walk goes on one step later.
        new_items = stream.batch([USERS] * USERS, range(100, 100 + USERS))
        sequences += learner.learn([walk, new_items]).sequences
    had_news = learner.has_news

    report, skipped = learner.judge()
    assert (report.verdict, skipped) == (Verdict.REJECT, 0)
    for name, weight in challenger.checkpoint().weights.items():
        kept = before.weights[name]
        assert torch.equal(weight[: len(kept)] if weight.ndim else weight, kept)
    assert (had_news, learner.has_news) == (True, False)

    again = learner.learn([stream.batch([], [])])  # taught again, at half the rate
    assert again.sequences == sequences
    assert challenger.optimizer.param_groups[0]["lr"] == WILD / 2


def test_a_challenger_that_was_taught_shuffled_labels_is_rejected(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    challenger = a_champion(slab, stream)
    settings = small_settings(quick_training(max_epochs=1, fraction=0.3))
    learner = a_learner(slab, settings, challenger)
    chance = np.random.default_rng(0)

    def shuffled(rows: Int64s, *arguments: Any, **named: Any) -> Packed:
        rows = rows.copy()
        rows[rows > 0] = chance.permutation(rows[rows > 0])
        return pack(rows, *arguments, **named)

    monkeypatch.setattr(learner_module, "pack", shuffled)
    for _ in range(10):
        learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
    report, _ = learner.judge()
    assert report.verdict is Verdict.REJECT


def test_what_may_not_wait_is_given_up_and_the_champion_goes_on(
    slab: HistorySlab, stream: Stream
) -> None:
    challenger = a_champion(slab, stream)
    before = challenger.checkpoint()
    settings = small_settings(quick_training(learning_rate=WILD, max_epochs=1, min_rows=1000))
    learner = a_learner(slab, settings, challenger)
    taught = learner.learn([stream.walk(USERS, CATALOGUE, steps=4)]).sequences
    through = dict(learner.trained_through)
    report, _ = learner.judge()
    assert report.verdict is Verdict.HOLD

    assert learner.settle() == taught > 0

    assert learner.given_up == taught
    for name, weight in challenger.checkpoint().weights.items():
        assert torch.equal(weight, before.weights[name])
    assert learner.trained_through == through
    assert not learner.has_news
    assert learner.learn([stream.batch([], [])]).sequences == 0  # nothing is taught again


def test_the_mixture_of_what_was_turned_down_goes_with_it(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    challenger = a_champion(slab, stream)
    settings = small_settings(quick_training(learning_rate=WILD, max_epochs=1, fraction=0.3))
    learner = a_learner(slab, settings, challenger, memory=MemorySettings())
    champion = learner.blend
    for ended in (learner.judge, learner.settle):
        learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
        with monkeypatch.context() as patch:
            patch.setattr(learner_module, "judge", lambda *_: HELD)
            learner.judge()
        assert learner.blend != champion  # the memory does better than weights gone wild
        monkeypatch.setattr(learner_module, "judge", lambda *_: REJECTED)
        ended()
        assert learner.blend == champion
        assert not learner._share_fit.trials


def test_a_champion_keeps_its_vectors_where_texts_change_before_a_rejection(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_module, "judge", lambda *_: REJECTED)
    settings = small_settings()
    texts = described_items(CATALOGUE)
    challenger = a_challenger(settings, described=texts)
    learner = a_learner(slab, settings, challenger)
    learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
    learner.promoted()
    table = challenger.model.table(CATALOGUE + 1).clone()

    learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
    learner.describe(replace(texts, frozen=-texts.frozen, digests=texts.digests + 100))
    learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
    learner.judge()
    torch.testing.assert_close(challenger.model.table(CATALOGUE + 1), table, atol=1e-4, rtol=0)


def test_a_champion_that_has_got_worse_little_by_little_is_no_measure(
    slab: HistorySlab, stream: Stream
) -> None:
    challenger = a_champion(slab, stream)
    calm = small_settings(quick_training(max_epochs=1, fraction=0.3))
    wild = small_settings(quick_training(learning_rate=WILD, max_epochs=1, fraction=0.3))
    learner = a_learner(slab, wild, challenger)
    learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
    learner.promoted()  # as if what was lost had been within the tolerance, again and again
    challenger.set_learning_rates(0.0, 0.0)
    still = {"learning_rate": 1e-9, "item_learning_rate": 1e-9}
    learner._settings = calm.trainer.model_copy(update=still)

    learner.learn([stream.walk(USERS, CATALOGUE, steps=1)])
    report, _ = learner.judge()
    assert report.mean_gain > -calm.trainer.gate.tolerance
    assert report.older is not None
    assert report.older > report.champion
    assert report.verdict is Verdict.REJECT

    for _ in range(calm.trainer.max_rejections):  # then it is given up as out of reach
        learner.learn([stream.batch([], [])])
        report, _ = learner.judge()
    assert report.older is None
    assert report.verdict is Verdict.PROMOTE


@pytest.mark.parametrize("champion_is_behind", [False, True])
def test_a_challenger_must_not_fall_behind_the_pinned_version_if_the_champion_has_not(
    slab: HistorySlab,
    stream: Stream,
    monkeypatch: pytest.MonkeyPatch,
    champion_is_behind: bool,
) -> None:
    settings = small_settings(quick_training(fraction=0.3))
    learner = a_learner(slab, settings, a_champion(slab, stream))
    pinned = learner.servable(Version(1))
    learner.compare_with(pinned)
    learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
    said = [PROMOTED, REJECTED if champion_is_behind else PROMOTED, REJECTED]
    asked: list[tuple[Float32s, Float32s]] = []

    def judge(older: Float32s, newer: Float32s, _: GateSettings) -> GateReport:
        asked.append((older, newer))
        return said[len(asked) - 1]

    monkeypatch.setattr(learner_module, "judge", judge)
    report, _ = learner.judge()
    (champion, challenger), (of_pinned, again), *third = asked
    assert np.array_equal(of_pinned, champion)  # it was the champion
    assert again is champion
    assert report.verdict is (Verdict.PROMOTE if champion_is_behind else Verdict.REJECT)
    if third:
        assert third[0][1] is challenger
    assert len(third) == (not champion_is_behind)


def test_a_pinned_version_holds_up_no_more_when_what_it_knew_is_given_up(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = a_learner(slab, challenger=a_champion(slab, stream))
    learner.compare_with(learner.servable(Version(1)))
    learner.learn([stream.walk(USERS, CATALOGUE, steps=1)])
    monkeypatch.setattr(learner_module, "judge", lambda *_: REJECTED)
    for _ in range(quick_training().max_rejections):
        learner.judge()
        learner.learn([stream.batch([], [])])
    monkeypatch.setattr(learner_module, "judge", lambda *_: PROMOTED)
    assert learner.judge()[0].older is None


def test_nor_does_one_when_the_champion_is_settled(slab: HistorySlab, stream: Stream) -> None:
    learner = a_learner(slab, challenger=a_champion(slab, stream))
    learner.compare_with(learner.servable(Version(1)))
    learner.learn([stream.walk(USERS, CATALOGUE, steps=1)])
    learner.settle()
    assert learner.judge()[0].older is None


def test_the_gate_is_not_asked_twice_about_the_same(slab: HistorySlab, stream: Stream) -> None:
    learner = a_learner(slab, small_settings(quick_training(min_rows=1000)))
    learner.learn([stream.walk(USERS, CATALOGUE, steps=2)])
    report, _ = learner.judge()
    assert report.verdict is Verdict.HOLD
    assert not learner.has_news


def test_what_waits_for_its_second_chance_is_taught_in_portions(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round of all would take longer than a worker may be without a sign of progress."""
    training = quick_training(max_epochs=1).model_copy(update={"max_round_events": 30})
    learner = a_learner(slab, small_settings(training))
    taught = [learner.learn([stream.walk(USERS, CATALOGUE, steps=2)]).sequences for _ in range(3)]
    monkeypatch.setattr(learner_module, "judge", lambda *_: REJECTED)
    learner.judge()
    steps: list[int] = []
    learner.on_step = lambda: steps.append(1)
    again = []
    while learner.owes:
        assert not learner.has_news
        again.append(learner.learn([]).sequences)
    assert sum(again) == sum(taught)
    assert max(again) == 30
    assert len(steps) == len(again)
    assert learner.has_news


def test_gives_up_after_too_many_rejections(slab: HistorySlab, stream: Stream) -> None:
    challenger = a_champion(slab, stream)
    settings = small_settings(quick_training(learning_rate=WILD, max_epochs=1, fraction=0.3))
    learner = a_learner(slab, settings, challenger)
    taught = learner.learn([stream.walk(USERS, CATALOGUE, steps=6)]).sequences
    given_up = []
    for _ in range(settings.trainer.max_rejections):
        report, skipped = learner.judge()
        assert report.verdict is Verdict.REJECT
        given_up.append(skipped)
        learner.learn([stream.batch([], [])])
    assert given_up == [0, 0, taught]
    assert learner.given_up == taught
    learner.promoted()
    assert learner.given_up == 0
    assert challenger.is_finite()


def test_what_too_many_rounds_crowd_out_is_counted_when_the_challenger_is_rejected(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_module, "_ROUNDS_KEPT", 2)
    monkeypatch.setattr(learner_module, "judge", lambda *_: REJECTED)
    learner = a_learner(slab)

    def rounds() -> list[int]:
        return [learner.learn([stream.walk(USERS, CATALOGUE, steps=1)]).sequences for _ in "123"]

    rounds()
    learner.promoted()  # none of these is owed any more
    first, second, third = rounds()
    assert first > 0
    assert learner.judge()[1] == first
    assert learner.learn([stream.batch([], [])]).sequences == second + third
    assert learner.judge()[1] == 0


def test_a_diverged_round_is_undone_and_taught_again(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    challenger = a_champion(slab, stream)
    learner = a_learner(slab, challenger=challenger)
    before = challenger.checkpoint()
    break_weights(challenger, monkeypatch, times=1)

    broken = learner.learn([stream.walk(USERS, CATALOGUE, steps=2)])
    assert broken.diverged
    assert math.isnan(broken.loss)
    assert not learner.has_news
    for name, weight in challenger.checkpoint().weights.items():
        assert torch.equal(weight, before.weights[name])

    again = learner.learn([stream.batch([], [])])
    assert not again.diverged
    assert again.sequences == broken.sequences
    assert challenger.is_finite()
    assert learner.has_news


def test_a_round_that_diverges_in_its_second_pass_is_undone_whole(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(quick_training().model_copy(update={"negatives": 8}))
    challenger = a_challenger(settings, items=500)
    learner = a_learner(slab, settings, challenger)
    learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
    before, passes = challenger.checkpoint(), iter([True, False])
    monkeypatch.setattr(challenger, "is_finite", lambda _: next(passes))
    assert learner.learn([stream.walk(USERS, CATALOGUE, steps=4)]).diverged
    assert next(passes, None) is None
    after = challenger.checkpoint()
    for mine, kept in ((after.weights, before.weights), (after.items, before.items)):
        assert all(torch.equal(mine[name], tensor) for name, tensor in kept.items())
    assert after.steps == before.steps


def test_is_not_published_while_events_wait_to_be_taught_again(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    challenger = a_champion(slab, stream)
    learner = a_learner(slab, challenger=challenger)
    first = learner.learn([stream.walk(USERS, CATALOGUE, steps=2)])
    had_news = learner.has_news
    break_weights(challenger, monkeypatch, times=1)
    second = learner.learn([stream.walk(USERS, CATALOGUE, steps=2)])
    assert second.diverged
    # `trained_through` is past the second round's events, whatever the catalogue says meanwhile.
    assert (had_news, learner.has_news) == (True, False)
    new = ItemId("new")
    learner.describe(
        Described(
            (), ((item_key(new), new),), np.zeros((1, 0), np.float32), np.zeros((1, 0), np.int64)
        )
    )
    assert not learner.has_news

    # Asked all the same, and rejected: both rounds are owed.
    monkeypatch.setattr(learner_module, "judge", lambda *_: REJECTED)
    learner.judge()
    owed = learner.learn([stream.batch([], [])]).sequences
    assert owed == first.sequences + second.sequences


def test_a_learner_that_always_diverges_gives_up_and_stays_finite(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    challenger = a_champion(slab, stream)
    learner = a_learner(slab, challenger=challenger)
    break_weights(challenger, monkeypatch, times=1000)
    reports = [learner.learn([stream.walk(USERS, CATALOGUE, steps=1)]) for _ in range(3)]
    assert all(report.diverged for report in reports)
    assert [report.skipped for report in reports] == [0, 0, reports[2].sequences]
    assert learner.given_up == reports[2].sequences
    assert reports[2].sequences > reports[0].sequences
    assert not learner.has_news
    assert challenger.is_finite()
    learner.artifact()


def test_what_was_learned_before_a_round_that_is_given_up_is_still_news(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    challenger = a_champion(slab, stream)
    learner = a_learner(slab, challenger=challenger)
    learner.learn([stream.walk(USERS, CATALOGUE, steps=1)])
    break_weights(challenger, monkeypatch, times=3)
    assert learner.learn([stream.walk(USERS, CATALOGUE, steps=1)]).diverged
    assert not learner.has_news
    skipped = [learner.learn([]).skipped for _ in range(2)]
    assert skipped[0] == 0 < skipped[1]
    assert learner.has_news


def test_rounds_that_diverge_now_and_then_are_not_in_a_row(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    challenger = a_champion(slab, stream)
    learner = a_learner(slab, challenger=challenger)
    for _ in range(2 * small_settings().trainer.max_rejections):
        break_weights(challenger, monkeypatch, times=1)
        assert learner.learn([stream.walk(USERS, CATALOGUE, steps=1)]).diverged
        assert not learner.learn([]).diverged
    assert learner.given_up == 0


def test_a_round_that_is_undone_undoes_where_new_items_began(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    challenger = a_champion(slab, stream)
    learner = a_learner(slab, challenger=challenger)
    batch = stream.batch([1, 1, 1], [1, 77, 2])
    challenger.learn_items(list(batch.item_ids))
    before = challenger.model.items.weight.detach().clone()
    break_weights(challenger, monkeypatch, times=1)
    assert learner.learn([batch]).diverged
    assert torch.equal(challenger.model.items.weight, before)
    row = int(challenger.vocabulary.rows(keys([77]))[0])
    challenger.settle(np.array([[*keys([1, 77, 2])]]))
    assert not torch.equal(challenger.model.items.weight[row], before[row])


def test_what_is_shown_does_not_fill_a_users_part_of_the_holdout(
    slab: HistorySlab, stream: Stream
) -> None:
    settings = small_settings()
    held = HoldoutSettings(fraction=0.99, max_user_rows=2)
    trainer = settings.trainer.model_copy(update={"holdout": held})
    learner = a_learner(slab, settings.model_copy(update={"trainer": trainer}))
    shown = [IMPRESSION] * 6
    learner.learn([stream.batch([0] * 10, range(10), kinds=[*shown, 0, 0, 0, 0])])
    assert len(learner.held) == 2


@pytest.mark.parametrize(
    ("second", "is_kept"),
    [
        ([0.1] * 12, False),  # plainly worse
        ([0.5] * 12, True),  # as good, which ends the round
        ([0.0, 0.9] * 6, True),  # worse by less than chance
    ],
)
def test_keeps_the_last_pass_unless_it_is_plainly_worse(
    slab: HistorySlab,
    stream: Stream,
    monkeypatch: pytest.MonkeyPatch,
    second: list[float],
    is_kept: bool,
) -> None:
    challenger = a_challenger(small_settings())
    learner = a_learner(
        slab, small_settings(quick_training(max_epochs=4, fraction=0.3)), challenger
    )
    scores = iter([[0.5] * 12, second])
    after_pass: list[Tensor] = []

    def score() -> Scores:
        after_pass.append(challenger.model.items.weight.detach().clone())
        return (np.array(next(scores), np.float32),)

    monkeypatch.setattr(learner, "_stopping_scores", score)
    learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
    assert len(after_pass) == 2  # one pass without an improvement is enough
    assert torch.equal(challenger.model.items.weight, after_pass[is_kept])


def test_a_hurried_round_makes_one_pass_and_does_not_look_at_the_holdout(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = a_learner(slab, small_settings(quick_training(max_epochs=4, fraction=0)))
    monkeypatch.setattr(learner, "_stopping_scores", lambda: pytest.fail("early stopping"))
    report = learner.learn([stream.walk(USERS, CATALOGUE, steps=2)], hurry=True)
    assert len(report.step_s) == 2


@pytest.mark.parametrize(("hurry", "drawn"), [(False, 60), (True, 20)])
def test_a_hurried_round_replays_less(
    hurry: bool, drawn: int, slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = ReplaySettings(ratio=3.0, hurried_ratio=1.0, min_sequences=0)
    training = quick_training(max_epochs=1, fraction=0).model_copy(update={"replay": replay})
    learner = a_learner(slab, small_settings(training))
    asked: list[int] = []

    def record(_: Replay, rows: int, held: Int64s, through: Offsets, now_ms: int) -> Sequences:
        asked.append(rows)
        return empty_sequences(9)  # one more than the model attends to

    monkeypatch.setattr(Replay, "draw", record)
    learner.learn([stream.walk(20, CATALOGUE, steps=2)], hurry=hurry)
    assert asked == [drawn]


def test_a_step_replays_no_more_events_than_the_settings_say(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = ReplaySettings(ratio=10.0, max_events=30)
    training = quick_training(max_epochs=1, fraction=0).model_copy(update={"replay": replay})
    learner = a_learner(slab, small_settings(training))
    learner.learn([stream.walk(USERS, CATALOGUE, steps=5)])
    replayed: list[int] = []

    def record(challenger: Challenger, batch: Packed, *rest: Any, **how: Any) -> float:
        replayed.append(int((batch.replayed & (batch.item > 0)).sum()))
        return train_step(challenger, batch, *rest, **how)

    monkeypatch.setattr(learner_module, "train_step", record)
    learner.learn([stream.walk(USERS, CATALOGUE, steps=2)])
    assert len(replayed) == 2
    assert all(20 <= events <= 30 for events in replayed)


@pytest.mark.parametrize(("events", "part"), [(8, 0.25), (32, 1.0), (100, 1.0)])
def test_a_round_of_few_events_takes_short_steps(
    events: int, part: float, slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = quick_training(max_epochs=1).model_copy(update={"full_round_events": 32})
    settings = small_settings(trainer)
    challenger = a_challenger(settings)
    learner = a_learner(slab, settings, challenger)
    rates: list[tuple[float, ...]] = []
    monkeypatch.setattr(challenger, "set_learning_rates", lambda *given: rates.append(given))
    learner.learn([stream.batch([*range(events)], [1] * events)])
    assert rates == [pytest.approx((part * 1e-2, part * 1e-2))]


def test_what_is_taught_again_fills_a_round_too(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = quick_training(max_epochs=1, fraction=0).model_copy(update={"full_round_events": 40})
    settings = small_settings(trainer)
    challenger = a_challenger(settings)
    learner = a_learner(slab, settings, challenger)
    learner.learn([stream.walk(USERS, CATALOGUE, steps=2)])
    monkeypatch.setattr(learner_module, "judge", lambda *_: REJECTED)
    learner.judge()
    rates: list[tuple[float, ...]] = []
    monkeypatch.setattr(challenger, "set_learning_rates", lambda *given: rates.append(given))
    learner.learn([])
    assert rates == [pytest.approx((0.5 * 1e-2, 0.5 * 1e-2))]  # a second chance has half of it


def test_one_long_history_does_not_end_a_steps_replay(slab: HistorySlab) -> None:
    replay = ReplaySettings(max_events=5)
    settings = small_settings(quick_training().model_copy(update={"replay": replay}))
    learner = a_learner(slab, settings)
    long, short = keys(range(8)), keys(range(2))
    histories = [(stretch(one, no_codes(len(one)), 1), 1) for one in (long, short, short, long)]
    drawn = from_lists(histories, 9)
    assert (learner._bounded(drawn).item != 0).sum(axis=1).tolist() == [2, 2]
    assert len(learner._bounded(drawn.take(np.array([0, 3])))) == 1


def test_what_no_candidate_tells_apart_is_no_spike_however_large_the_catalogue(
    slab: HistorySlab,
) -> None:
    settings = small_settings(quick_training().model_copy(update={"negatives": 8}))
    challenger = a_challenger(settings, items=500)
    challenger.about_to_teach(torch.arange(1, 501))
    learner = a_learner(slab, settings, challenger)
    learner._expect(0.5 * math.log(501))
    learner._expect(1.1 * math.log(501))
    with pytest.raises(LossSpikeError):
        learner._expect(1.5 * math.log(501))


def test_a_growing_catalogue_is_no_spike(slab: HistorySlab) -> None:
    """Beside a large one, of which little was met, temperatures are low and first losses high."""
    settings = small_settings()
    challenger = a_challenger(settings, items=500)
    learner = a_learner(slab, settings, challenger)
    for count in (1, 3, 30, 400):
        challenger.about_to_teach(torch.arange(1, count + 1))
        learner._expect(math.log(count) + 0.8 if count > 1 else 0.0)


def test_the_gate_pairs_events_that_are_alike_by_what_came_before_them(
    slab: HistorySlab, stream: Stream
) -> None:
    """The same item again at the same time: the champion is the challenger, so nothing differs."""
    settings = small_settings(quick_training(fraction=0.99, max_epochs=1))
    learner = a_learner(slab, settings)
    learner.learn([stream.walk(USERS, CATALOGUE, steps=3)])
    learner.promoted()
    held = learner.held
    learner.held = replace(held, user=held.user * 0 + 1, item=held.item * 0 + held.item[0],
                           time=held.time * 0)  # fmt: skip
    report, _ = learner.judge()
    assert len(set(learner.held.row_marks().tolist())) > 1
    assert report.champion == pytest.approx(report.challenger)
    assert report.margin == 0.0


def test_of_what_was_chosen_by_herding_the_first_are_replayed(slab: HistorySlab) -> None:
    """They are chosen one by one: a part by chance would stand for nothing."""
    replay = ReplaySettings(choice=HerdingReplay(), max_events=5)
    learner = a_learner(
        slab, small_settings(quick_training().model_copy(update={"replay": replay}))
    )
    drawn = from_lists([(stretch(keys([n, n + 1]), no_codes(2), n + 1), 1) for n in range(9)], 9)
    kept = learner._bounded(drawn)
    assert kept.item.tolist() == drawn.item[:2].tolist()


FRACTION = 0.3
ONE_PASS = TrainerSettings(
    max_epochs=1,
    replay=ReplaySettings(ratio=0.0, min_sequences=0),
    holdout=HoldoutSettings(fraction=FRACTION, window_rows=4),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), max_size=12), max_size=6))
def test_every_event_is_trained_once_or_held(batches: list[list[int]]) -> None:
    stack = ExitStack()
    slab = stack.enter_context(closing(a_slab(users=8, events=80)))
    taught: Counter[int] = Counter()
    tree = small_settings(ONE_PASS, length=72, events=80)
    challenger = a_challenger(tree)
    stream, learner = Stream(slab), a_learner(slab, tree, challenger)

    def record(_: object, batch: Packed, clicks: object, **__: object) -> float:
        rows = batch.label[batch.label != NO_ROW]
        taught.update(challenger.vocabulary.keys[rows.numpy()].tolist())
        return 0.0

    expected: Counter[int] = Counter()
    has_history: set[int] = set()
    has_taught_history: set[int] = set()
    with stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner_module, "train_step", record)
        for users in batches:
            first = stream.events  # every event is of an item of its own
            batch = stream.batch(users, range(first, first + len(users)))
            learner.learn([batch])
            member: Bools = is_member(batch.user, batch.item, batch.timestamp, FRACTION)
            for user, item, held in zip(users, batch.item.tolist(), member, strict=True):
                # Nothing can be learned of an event that nothing stands before.
                expected[item] = int(user in (has_history if held else has_taught_history))
                has_history.add(user)
                if not held:
                    has_taught_history.add(user)
    for item in learner.held.item.tolist():
        expected[item] = 0
    assert taught == +expected


def memory_of(learner: Learner, settings: MemorySettings) -> Memory:
    """As the next worker would start with it."""
    artifact, memory = learner.artifact(), Memory(settings)
    memory.load(artifact.trainer, Vocabulary(artifact.vocabulary))
    return memory


def recalled(memory: Memory, items: int) -> list[dict[int, float]]:
    """What each of the first so many items brings to mind, by item key."""
    told: list[dict[int, float]] = []
    for key in keys(range(items)).tolist():
        ends: dict[int, float] = {}
        found = memory.recall(np.array([key]))
        for end, value in zip(found.key.tolist(), found.value.tolist(), strict=True):
            ends[end] = ends.get(end, 0.0) + value
        told.append(ends)
    return told


def assert_recall_alike(one: Memory, other: Memory, items: int) -> None:
    for ends, others in zip(recalled(one, items), recalled(other, items), strict=True):
        assert ends == pytest.approx(others, rel=1e-4)


class Shadow:
    """A memory of its own, taught what has to be in the learner's, event by event."""

    def __init__(self, settings: MemorySettings, window_rows: int) -> None:
        self.memory = Memory(settings)
        self._window_rows = window_rows
        self._pasts: dict[int, list[tuple[int, bool]]] = {}  # by user: item keys, held or not
        self._held: list[tuple[ItemKey, ItemId, list[int]]] = []

    def saw(self, users: list[int], items: list[int], member: Bools) -> None:
        for user, item, held in zip(users, items, member.tolist(), strict=True):
            past = self._pasts.setdefault(user, [])
            key, name = known(item)
            if held:
                self._held.append((key, name, [before for before, _ in past]))
            else:
                self._learn(key, name, [before for before, was_held in past if not was_held])
            past.append((key, held))
        released = max(len(self._held) - self._window_rows, 0)
        for one in self._held[:released]:
            self._learn(*one)
        del self._held[:released]

    def _learn(self, key: ItemKey, name: ItemId, before: list[int]) -> None:
        self.memory.learn(key, name, np.array(before, np.int64))


class TestMemory:
    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(
            st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), max_size=12), max_size=6
        ),
        st.booleans(),
    )
    def test_what_is_held_out_is_learned_when_it_is_released_and_all_else_at_once(
        self, batches: list[list[tuple[int, int]]], rejected: bool
    ) -> None:
        memory = MemorySettings()
        shadow = Shadow(memory, ONE_PASS.holdout.window_rows)
        stack = ExitStack()
        slab = stack.enter_context(closing(a_slab(users=8, events=80)))
        tree = small_settings(ONE_PASS, length=72, events=80)
        stream, learner = Stream(slab), a_learner(slab, tree, memory=memory)
        with stack, pytest.MonkeyPatch.context() as patch:
            patch.setattr(learner, "_fit", lambda *_: [])
            if rejected:  # what is taught again is in the memory already
                patch.setattr(learner_module, "judge", lambda *_: REJECTED)
            for events in batches:
                users, items = [user for user, _ in events], [item for _, item in events]
                batch = stream.batch(users, items)
                learner.learn([batch])
                learner.judge()
                member = is_member(batch.user, batch.item, batch.timestamp, FRACTION)
                shadow.saw(users, items, member)
        assert len(memory_of(learner, memory)) == len(shadow.memory)
        assert_recall_alike(memory_of(learner, memory), shadow.memory, items=8)

    def test_an_item_that_is_only_held_is_not_known(
        self, slab: HistorySlab, stream: Stream
    ) -> None:
        memory = MemorySettings()
        everything = small_settings(quick_training(fraction=0.999999))
        learner = a_learner(slab, everything, memory=memory)
        learner.learn([stream.batch([1, 1, 1], [1, 2, 3])])
        assert len(learner.held) == 3
        assert len(memory_of(learner, memory)) == 0

    def test_a_restarted_learner_recalls_and_goes_on_the_same(
        self, slab: HistorySlab, stream: Stream
    ) -> None:
        memory = MemorySettings()
        tree = small_settings(quick_training(fraction=FRACTION)).model_copy(
            update={"memory": memory}
        )
        learner = a_learner(slab, tree, memory=memory)
        learner.learn([stream.walk(USERS, CATALOGUE, steps=3)])
        artifact, vocabulary = learner.artifact(), Vocabulary(learner.artifact().vocabulary)
        restarted = Learner(
            tree,
            {PARTITION: slab},
            Challenger(
                Recommender.from_weights(learner.shape, dict(artifact.weights)),
                vocabulary,
                tree.trainer,
                CPU,
            ),
            rows_from_tensors(dict(artifact.trainer), 8),
            dict(learner.trained_through),
            memory_of(learner, memory),
            learner.blend,
        )
        assert_recall_alike(
            memory_of(restarted, memory), memory_of(learner, memory), items=CATALOGUE
        )
        more = stream.walk(USERS, CATALOGUE, steps=3, stride=2)  # pushes some out of the holdout
        for each in (learner, restarted):
            each.learn([more])
        told = recalled(memory_of(learner, memory), CATALOGUE)
        assert all(told)
        assert_recall_alike(
            memory_of(restarted, memory), memory_of(learner, memory), items=CATALOGUE
        )

    def test_the_share_is_fitted_when_the_gate_is_asked_and_published(
        self, slab: HistorySlab, stream: Stream
    ) -> None:
        memory = MemorySettings()
        # Weights that stand almost still, and a walk that the memory foresees.
        tree = small_settings(quick_training(learning_rate=1e-9, fraction=0.3))
        # A champion that knows the items: it would be left out of the mixture if it did not.
        learner = a_learner(slab, tree, a_challenger(tree, CATALOGUE), memory)
        learner.learn([stream.walk(USERS, CATALOGUE, steps=6)])
        first = asdict(first_blend(tree))
        assert learner.shape["blend"] == first
        assert first["share"] == memory.model_share

        before, _ = learner.judge()
        fitted = learner.shape["blend"]
        assert fitted["temperature"] == temperature_for(learner.items, tree.model.temperature)
        assert fitted["share"] < 0.5
        assert fitted == asdict(learner.blend)
        assert before.verdict is Verdict.PROMOTE
        assert before.mean_gain > 0.0

        again, _ = learner.judge()  # the champion is still mixed as it was published
        assert again.champion == pytest.approx(before.champion)
        learner.promoted()
        after, _ = learner.judge()
        assert after.champion == pytest.approx(again.challenger)
        assert after.mean_gain == pytest.approx(0.0)

    def test_the_challenger_is_judged_as_it_would_be_served(
        self, slab: HistorySlab, stream: Stream
    ) -> None:
        memory = MemorySettings()
        tree = small_settings(quick_training(fraction=0.3))
        challenger = a_challenger(tree)
        learner = a_learner(slab, tree, challenger, memory)
        learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
        report, _ = learner.judge()
        assert report.verdict is Verdict.PROMOTE
        served = Blend(**learner.shape["blend"])
        assert served.share != memory.model_share
        (found,) = evaluate(
            challenger.model,
            challenger.vocabulary,
            learner.held,
            learner.recalled(),
            temperature=served.temperature,
            shares=(served.share,),
            exclude_seen=tree.scorer.exclude_seen,
        )
        assert report.challenger == pytest.approx(found.mean())

    def test_what_is_held_out_is_recalled_as_it_was_before_what_came_after(
        self, slab: HistorySlab, stream: Stream
    ) -> None:
        memory = MemorySettings()
        tree = small_settings(quick_training(fraction=0.3))
        learner = a_learner(slab, tree, memory=memory)
        learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
        rows, first = learner.held.marks().tolist(), told(learner.recalled())
        learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
        later = dict(zip(learner.held.marks().tolist(), told(learner.recalled()), strict=True))
        assert len(later) == len(learner.held) > len(rows)
        assert [later[row] for row in rows] == first
        now = told(list(evaluation.recalled(memory_of(learner, memory), learner.held)))
        assert now[: len(rows)] != first

    def test_without_it_the_model_ranks_alone(self, slab: HistorySlab, stream: Stream) -> None:
        learner = a_learner(slab, small_settings(quick_training(fraction=0.3)), memory=NO_MEMORY)
        learner.learn([stream.walk(USERS, CATALOGUE, steps=3)])
        report, _ = learner.judge()
        assert report.verdict is not Verdict.HOLD  # there were rows enough to fit it
        assert learner.shape["blend"]["share"] == 1.0
        assert not [name for name in learner.artifact().trainer if name.startswith("memory.")]


def told(recollections: list[Recollection]) -> list[dict[int, float]]:
    """Item keys and values, in the order of the keys."""
    return [
        dict(sorted(zip(one.key.tolist(), one.value.tolist(), strict=True)))
        for one in recollections
    ]


def a_memory(settings: MemorySettings, stride: int) -> Memory:
    """It foresees a walk of so many items at once, and nothing else."""
    memory = Memory(settings)
    for number in range(2 * CATALOGUE):
        before = keys([number % CATALOGUE])
        memory.learn(*known((number + stride) % CATALOGUE), before)
    return memory


def scores(learner: Learner, challenger: Challenger, share: float) -> Float32s:
    found: Float32s = evaluate(
        challenger.model,
        challenger.vocabulary,
        learner.held,
        learner.recalled(),
        temperature=learner.blend.temperature,
        shares=(share,),
        exclude_seen=True,
    )[0]
    return found


class Trials:
    """In place of the holdout: NDCG falls off on both sides of the share that is best."""

    best: float

    def __call__(self, *_: object, shares: tuple[float, ...], **__: object) -> Float32s:
        per_share = 0.5 - 0.5 * np.abs(np.array(shares) - self.best)
        return np.tile(per_share.astype(np.float32)[:, None], 12)  # [shares, rows]


class TestFitBlend:
    @pytest.mark.parametrize(
        ("learned", "stride", "prior", "low", "high"),
        [
            pytest.param(False, 1, 0.9, 0.0, 0.5, id="memory-plainly-better"),
            # Of shares that rank alike the one nearest to the prior is taken.
            pytest.param(True, 7, 0.1, 0.3, 1.0, id="memory-plainly-worse"),
        ],
    )
    def test_the_share_goes_to_whoever_ranks_better(
        self,
        learned: bool,
        stride: int,
        prior: float,
        low: float,
        high: float,
        slab: HistorySlab,
        stream: Stream,
    ) -> None:
        memory_settings = MemorySettings(model_share=prior, lag=1, backward=0.0, repeat=0.0)
        rate = 1e-2 if learned else 1e-9
        tree = small_settings(quick_training(learning_rate=rate, fraction=0.3))
        challenger = a_challenger(tree)
        teacher = a_learner(slab, tree, challenger)
        for _ in range(4):
            teacher.learn([stream.walk(USERS, CATALOGUE, steps=4)])
        memory = a_memory(memory_settings, stride)
        learner = Learner(
            tree.model_copy(update={"memory": memory_settings}),
            {PARTITION: slab},
            challenger,
            teacher.held,
            teacher.trained_through,
            memory,
            Blend(tree.model.temperature, prior),
        )

        found = learner.fit_blend()
        assert low <= learner.blend.share <= high
        by_share = {tenth: scores(learner, challenger, tenth / 10).mean() for tenth in range(11)}
        chosen = round(10 * learner.blend.share)
        assert by_share[chosen] > by_share[round(10 * prior)] + 0.1
        assert by_share[chosen] == pytest.approx(max(by_share.values()), abs=0.01)
        expected = scores(learner, challenger, learner.blend.share)
        assert found == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("missing", [0, 1])
    def test_too_few_rows_decide_nothing(
        self, missing: int, slab: HistorySlab, stream: Stream
    ) -> None:
        def taught(min_rows: int) -> tuple[Learner, Challenger]:
            training = quick_training(learning_rate=1e-9, fraction=0.3, min_rows=min_rows)
            challenger = a_challenger(small_settings(training))
            learner = a_learner(slab, small_settings(training), challenger, MemorySettings())
            learner.learn([walk])
            return learner, challenger

        walk = stream.walk(USERS, CATALOGUE, steps=6)
        rows = len(taught(1)[0].held)
        learner, challenger = taught(rows + missing)
        prior = learner.blend.share
        found = learner.fit_blend()
        assert (learner.blend.share == prior) == bool(missing)
        expected = scores(learner, challenger, learner.blend.share)
        assert found == pytest.approx(expected, abs=1e-6)

    def test_one_noisy_holdout_does_not_swing_the_share_but_several_do(
        self, slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tree = small_settings(quick_training(fraction=0.3))
        learner = a_learner(slab, tree, memory=MemorySettings())
        learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
        trials = Trials()
        monkeypatch.setattr(learner_module, "evaluate", trials)

        def share_after(best: float) -> float:
            trials.best = best
            learner.fit_blend()
            return learner.blend.share

        assert [share_after(0.2) for _ in range(3)] == [0.2, 0.2, 0.2]
        assert share_after(0.9) == 0.2
        kept = learner.artifact().trainer
        learner = a_learner(slab, tree, memory=MemorySettings())
        learner.resume_fit(kept)
        learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
        assert share_after(0.9) == 0.2  # nor after a restart
        assert [share_after(0.2) for _ in range(3)] == [0.2, 0.2, 0.2]
        assert [share_after(0.9) for _ in range(12)][-1] == 0.9

    def test_rows_count_as_new_until_a_trial_that_stands_has_seen_them(
        self, slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of a challenger that was rejected the trial goes too; a restart has those of before."""
        tree = small_settings(quick_training(fraction=0.3))
        learner = a_learner(slab, tree, memory=MemorySettings())
        learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
        with monkeypatch.context() as refusing:
            refusing.setattr(learner_module, "judge", lambda *_: REJECTED)
            learner.judge()
        assert (learner._share_fit.trials, learner._tried) == (0, set())
        learner.learn([])
        learner.fit_blend()
        learner.promoted()
        trials = learner._share_fit.trials
        resumed = a_learner(slab, tree, memory=MemorySettings())
        resumed.held = learner.held
        resumed.resume_fit(learner.artifact().trainer)
        resumed.fit_blend()
        assert trials <= resumed._share_fit.trials <= trials + 1 / 50

    def test_what_makes_no_difference_leaves_the_share_at_the_setting(
        self, slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tree = small_settings(quick_training(fraction=0.3))
        learner = a_learner(slab, tree, memory=MemorySettings(model_share=0.4))
        learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
        learner.blend = Blend(learner.blend.temperature, 0.9)
        monkeypatch.setattr(
            learner_module,
            "evaluate",
            lambda *_, shares, **__: np.full((len(shares), 12), 0.3, np.float32),
        )
        learner.fit_blend()
        assert learner.blend.share == 0.4

    @pytest.mark.parametrize("memory", [NO_MEMORY, MemorySettings()], ids=["alone", "mixed"])
    def test_a_model_that_is_not_a_number_is_rejected_and_moves_no_share(
        self, memory: MemorySettings, slab: HistorySlab, stream: Stream
    ) -> None:
        tree = small_settings(quick_training(fraction=0.3))
        challenger = a_challenger(tree)
        learner = a_learner(slab, tree, challenger, memory)
        learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
        share = learner.blend.share
        with torch.no_grad():
            challenger.model.items.weight[1, 0] = torch.nan
        report, _ = learner.judge()
        assert report.verdict is Verdict.REJECT
        assert math.isnan(report.challenger)
        assert learner.blend.share == share
        assert challenger.is_finite()  # the champion's again
        learner.fit_blend()  # nothing of it is left in the mean
        assert np.isfinite(learner.fit_blend()).all()


def erase(stream: Stream, user: int) -> MicroBatch:
    """As the scorer does it; the micro-batch that tells."""
    erasure = Erasure(PARTITION, Offset(stream.events), UserId(f"user-{user}"))
    stream.slab.erase(erasure.user, erasure.offset)
    stream.events += 1
    return replace(
        stream.batch([], []),
        erasures=(erasure,),
        next_offsets={PARTITION: Offset(stream.events)},
    )


class TestErase:
    USER = user_key(UserId("user-1"))

    def test_held_out_rows_go_and_with_them_what_the_next_version_holds(
        self, slab: HistorySlab, stream: Stream
    ) -> None:
        settings = small_settings(quick_training(fraction=0.5))
        learner = a_learner(slab, settings, memory=MemorySettings())
        learner.learn([stream.walk(USERS, CATALOGUE, steps=3)])
        before = Counter(learner.held.user.tolist())
        assert before[self.USER]
        learner.learn([erase(stream, 1)])
        learner.judge()

        del before[self.USER]
        assert Counter(learner.held.user.tolist()) == before
        assert learner.trained_through == {PARTITION: stream.events}
        key = self.USER.to_bytes(8, "little", signed=True)
        assert not any(key in one.numpy().tobytes() for one in learner.artifact().trainer.values())

    def test_what_is_learned_in_the_same_round_is_not_of_the_user(
        self, slab: HistorySlab, stream: Stream
    ) -> None:
        learner = a_learner(slab, small_settings(quick_training(fraction=0.5)))
        walk = stream.walk(2, CATALOGUE, steps=8)
        report = learner.learn([walk, erase(stream, 1), stream.batch([1, 1, 1], [1, 2, 3])])
        assert report.held_out
        later = {known(number)[0] for number in (1, 2, 3)}
        assert set(learner.held.item[learner.held.user == self.USER].tolist()) <= later

    @pytest.mark.parametrize("rejected", [True, False], ids=["rejected", "diverged"])
    def test_what_was_to_be_taught_again_is_not(
        self, rejected: bool, slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        challenger = a_champion(slab, stream)
        learner = a_learner(slab, challenger=challenger)
        if not rejected:
            break_weights(challenger, monkeypatch, times=1)
        taught = learner.learn([stream.walk(USERS, CATALOGUE, steps=2)])
        assert taught.diverged is not rejected
        if rejected:
            monkeypatch.setattr(learner_module, "judge", lambda *_: REJECTED)
            learner.judge()
        again = learner.learn([erase(stream, 1)])
        assert again.sequences == taught.sequences - 1

    def test_what_waits_for_a_verdict_is_not_taught_again_either(
        self, slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        learner = a_learner(slab, challenger=a_champion(slab, stream))
        taught = learner.learn([stream.walk(USERS, CATALOGUE, steps=2)])
        learner.learn([erase(stream, 1)])
        monkeypatch.setattr(learner_module, "judge", lambda *_: REJECTED)
        learner.judge()
        assert learner.learn([stream.batch([], [])]).sequences == taught.sequences - 1


class TestGuards:
    def test_a_round_with_a_loss_far_above_the_usual_is_undone(
        self, slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        challenger = a_champion(slab, stream)
        learner = a_learner(slab, challenger=challenger)
        learner.learn([stream.walk(USERS, CATALOGUE, steps=2)])
        before = challenger.checkpoint()
        monkeypatch.setattr(
            learner_module, "train_step", lambda *given, **named: 30.0 + train_step(*given, **named)
        )
        spiked = [learner.learn([stream.walk(USERS, CATALOGUE, steps=1)]) for _ in range(3)]
        assert all(report.diverged for report in spiked)
        for name, weight in challenger.checkpoint().weights.items():
            assert torch.equal(weight, before.weights[name])
        assert [bool(report.skipped) for report in spiked] == [False, False, True]
        # What it gave up may have been the stream's new way: it is the usual from now on.
        assert not learner.learn([stream.walk(USERS, CATALOGUE, steps=1)]).diverged

    def test_the_first_loss_is_taken_for_usual(self, slab: HistorySlab, stream: Stream) -> None:
        learner = a_learner(slab)
        for _ in range(3):  # while the catalogue grows
            assert not learner.learn([stream.walk(USERS, CATALOGUE, steps=4)]).diverged

    def test_of_a_busy_user_the_newest_events_are_taught_with_what_came_before(
        self, slab: HistorySlab, stream: Stream
    ) -> None:
        settings = small_settings()
        trainer = settings.trainer.model_copy(
            update={"max_user_events": 3, "holdout": HoldoutSettings(fraction=0.0)}
        )
        learner = a_learner(slab, settings.model_copy(update={"trainer": trainer}))
        taught = learner._prepare(stream.batch([0] * 8 + [1] * 2, [*range(8), 3, 4]))
        targets = [
            row[is_target].tolist()
            for row, is_target in zip(taught.item, taught.target, strict=True)
        ]
        assert sorted(targets) == sorted([keys([5, 6, 7]).tolist(), keys([4]).tolist()])
        assert np.isin(keys([2, 3, 4]), taught.item).all()  # before them, as their context

    def test_a_busy_user_does_not_fill_the_holdout(self, slab: HistorySlab, stream: Stream) -> None:
        settings = small_settings()
        trainer = settings.trainer.model_copy(
            update={"holdout": HoldoutSettings(fraction=0.9, max_user_rows=2)}
        )
        learner = a_learner(slab, settings.model_copy(update={"trainer": trainer}))
        learner.learn([stream.batch([0] * 12 + [1] * 2, [*range(12), 3, 4])])
        _, counts = np.unique(learner.held.user, return_counts=True)
        assert counts.max() == 2

    def test_tells_how_the_champion_has_shifted_since_it_was_published(
        self, slab: HistorySlab, stream: Stream
    ) -> None:
        learner = a_learner(slab)
        learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
        first, _ = learner.judge()
        assert learner.shift is None
        learner.promoted()
        learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
        second, _ = learner.judge()
        assert learner.shift == pytest.approx(second.champion - first.challenger)
