"""From events to labels, to a head that has learned them, to rankings that it reorders."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from service.domain import Float32s, MicroBatch, UserId, user_key
from service.model.click_head import ClickHead
from service.model.clicks import foretold
from service.model.memory import Memory
from service.model.vocabulary import Vocabulary
from service.registry.artifact import Artifact
from service.registry.servable import build_servable, first_blend
from service.settings import ClickLoss, ClickSettings, EventsSettings, GateSettings, Settings
from service.state.histories import HistorySlab
from service.trainer import learner as learner_module
from service.trainer.challenger import Challenger
from service.trainer.clicks import Clicks
from service.trainer.holdout import HoldoutRows, empty_rows, is_member
from service.trainer.learner import Learner
from service.trainer.reranking import WEIGHTS, best_weight
from service.trainer.sequences import Sequences, contexts
from tests.trainer.examples import (
    CLICK,
    CPU,
    IMPRESSION,
    PARTITION,
    REJECTED,
    Stream,
    break_weights,
    keys,
    known,
    quick_training,
    small_settings,
)

BY_VALUE = ClickSettings(enabled=True, batch_rows=64)
RATINGS = BY_VALUE.model_copy(update={"loss": ClickLoss.SQUARED, "positive_from": 4.0})
BY_CLICK = BY_VALUE.model_copy(update={"followed_by": ("click",), "within_s": 10.0})


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> None:
    torch.manual_seed(0)


def settings_with(click: ClickSettings, fraction: float = 0.0) -> Settings:
    made = small_settings(quick_training(fraction=fraction))
    return made.model_copy(update={"click": click})


def a_learner(slab: HistorySlab, settings: Settings) -> tuple[Learner, Challenger, Clicks]:
    clicks = Clicks(settings, {})
    challenger = Challenger.new(settings.model, settings.trainer, CPU, click=settings.click)
    learner = Learner(
        settings,
        {PARTITION: slab},
        challenger,
        empty_rows(settings.model.max_length),
        {},
        Memory.of(settings.memory),
        first_blend(settings),
        clicks,
    )
    return learner, challenger, clicks


def admit(
    clicks: Clicks,
    stream: Stream,
    *events: tuple[int, int, int, float],
    capped: bool = False,
    freed: HoldoutRows | None = None,
) -> None:
    """Give it events of (user, item, kind, value), a second apart. What belongs into the holdout of
    targets is held there, unless that is `capped`; `freed` is what it lets go."""
    users, items, kinds, values = (list(column) for column in zip(*events, strict=True))
    batch = stream.batch(users, items, kinds=kinds, values=values)
    vocabulary = Vocabulary().extended(batch.item_ids)
    head = ClickHead(len(vocabulary), clicks._settings.loss)
    admit_with(head, vocabulary, clicks, stream, batch, capped=capped, freed=freed)


def admit_with(
    head: ClickHead,
    vocabulary: Vocabulary,
    clicks: Clicks,
    stream: Stream,
    batch: MicroBatch,
    *,
    capped: bool = False,
    freed: HoldoutRows | None = None,
) -> None:
    before, _, codes = contexts(batch, {PARTITION: stream.slab}, batch.ordinal, 8)
    clicks.admit(batch, before, before, codes, head, vocabulary, None)
    held = clicks.is_member(batch.user, batch.item) & (not capped)
    taught = batch.take(np.flatnonzero(~held))
    clicks.sort(taught, freed or empty_rows(8), int(batch.timestamp.max()), head, vocabulary)


def targets(*events: tuple[int, int, int]) -> HoldoutRows:
    """Clicks of (user, item, second) as rows of the holdout of targets."""
    users, items, seconds = zip(*events, strict=True)
    return HoldoutRows(
        np.zeros((len(events), 8), np.int64),
        np.zeros((len(events), 8, 0), np.int32),
        np.array([user_key(UserId(f"user-{user}")) for user in users]),
        keys(items),
        1000 * np.array(seconds, np.int64),
        np.full(len(events), CLICK, np.uint8),
    )


def fresh_labels(clicks: Clicks) -> list[float]:
    labels: list[float] = clicks._fresh.label.tolist()
    assert clicks.begin_round() == len(labels)
    clicks.end_round()
    return labels


NAN = float("nan")


class TestLabels:
    def test_a_value_is_a_label_and_none_is_none(self, stream: Stream) -> None:
        clicks = Clicks(settings_with(BY_VALUE), {})
        admit(clicks, stream, (1, 1, IMPRESSION, 1), (1, 2, IMPRESSION, 0), (1, 3, 0, 1),
              (1, 4, IMPRESSION, NAN))  # fmt: skip
        assert fresh_labels(clicks) == [1.0, 0.0]

    def test_a_label_of_an_item_without_a_row_is_not_taught(self, stream: Stream) -> None:
        clicks = Clicks(settings_with(BY_VALUE), {})
        admit(clicks, stream, (1, 1, IMPRESSION, 1), (1, 2, IMPRESSION, 0))
        clicks.begin_round()
        (one,) = clicks.portions(1, Vocabulary().extended([known(2)]), CPU)
        assert one is not None
        assert one.item.tolist() == [1, 1]  # as new, and as an old one beside it
        assert clicks.portions(1, Vocabulary(), CPU) == [None]

    def test_a_number_is_kept_as_it_is(self, stream: Stream) -> None:
        clicks = Clicks(settings_with(RATINGS), {})
        admit(clicks, stream, *[(1, 1, IMPRESSION, 3.5 + (n % 3)) for n in range(30)])
        assert fresh_labels(clicks) == [3.5 + (n % 3) for n in range(30)]

    @pytest.mark.parametrize("restarts", [False, True])
    def test_numbers_wait_until_they_tell_how_far_they_are_apart(
        self, stream: Stream, *, restarts: bool
    ) -> None:
        """Else the first few, or the first one, would bound all to come."""
        clicks = Clicks(settings_with(RATINGS), {})
        head, vocabulary = ClickHead(3, ClickLoss.SQUARED), Vocabulary().extended([known(1)])
        for value in range(29):
            batch = stream.batch([1], [1], kinds=[IMPRESSION], values=[600.0 * (value % 3)])
            admit_with(head, vocabulary, clicks, stream, batch)
            assert fresh_labels(clicks) == []
        if restarts:
            clicks = Clicks(settings_with(RATINGS), clicks.tensors())
        batch = stream.batch([1], [1], kinds=[IMPRESSION], values=[1800.0])
        admit_with(head, vocabulary, clicks, stream, batch)
        assert fresh_labels(clicks) == [*[600.0 * (value % 3) for value in range(29)], 1800.0]
        assert head.scale > 100

    def test_nor_is_one_held_that_an_act_tells_while_it_waits_for_others(
        self, stream: Stream
    ) -> None:
        clicks = Clicks(settings_with(RATINGS, fraction=0.999999), {})
        head = ClickHead(40, ClickLoss.SQUARED)
        vocabulary = Vocabulary().extended([known(item) for item in range(32)])
        rated = stream.batch([1] * 29, [*range(29)], kinds=[IMPRESSION] * 29, values=[*range(29)])
        admit_with(head, vocabulary, clicks, stream, rated)
        bought = stream.batch([1], [7])
        admit_with(head, vocabulary, clicks, stream, bought, capped=True)
        more = stream.batch([2] * 2, [30, 31], kinds=[IMPRESSION] * 2, values=[3.0, 4.0])
        admit_with(head, vocabulary, clicks, stream, more)
        assert known(7)[0] not in clicks.held.item
        assert len(clicks.held) > 0

    def test_clicks_and_silence_are_told_in_the_order_of_what_was_shown(
        self, stream: Stream
    ) -> None:
        clicks = Clicks(settings_with(BY_CLICK), {})
        admit(
            clicks,
            stream,
            (1, 1, IMPRESSION, NAN),
            (1, 2, IMPRESSION, NAN),
            (1, 3, IMPRESSION, NAN),
        )
        admit(clicks, stream, (1, 2, CLICK, NAN))
        assert fresh_labels(clicks) == []  # else there would be nothing but clicks at first
        admit(clicks, stream, *[(2, 9, 0, NAN)] * 8)
        assert fresh_labels(clicks) == [0.0]
        admit(clicks, stream, *[(2, 9, 0, NAN)] * 9)
        assert fresh_labels(clicks) == [1.0, 0.0]

    def test_nothing_of_an_erased_user_waits_is_held_or_taught(self, stream: Stream) -> None:
        user = user_key(UserId("user-1"))
        patient = BY_CLICK.model_copy(update={"within_s": 50.0})
        clicks = Clicks(settings_with(patient, fraction=0.5), {})
        for number in range(3):
            admit(
                clicks,
                stream,
                *[(who, item, IMPRESSION, NAN) for who in (1, 2) for item in range(20)],
            )
            admit(
                clicks, stream, *[(who, item, CLICK, NAN) for who in (1, 2) for item in range(15)]
            )
            clicks.begin_round()
            if number < 2:
                clicks.end_round()
        names = ("_waiting", "held", "_fresh", "_again", "_past", "_since_champion")
        kept = [getattr(clicks, name) for name in names]
        assert all(user in rows.user for rows in kept)
        clicks.erase(np.array([user]))
        kept = [getattr(clicks, name) for name in names]
        assert not any(user in rows.user for rows in kept)
        assert all(len(rows) for rows in kept)

    def test_one_that_waits_is_not_lost_by_a_restart(self, stream: Stream) -> None:
        settings = settings_with(BY_CLICK)
        before = Clicks(settings, {})
        admit(before, stream, (1, 1, 0, NAN), (1, 2, IMPRESSION, NAN))
        after = Clicks(settings, before.tensors())
        admit(after, stream, (1, 2, CLICK, NAN), *[(2, 9, 0, NAN)] * 12)
        assert fresh_labels(after) == [1.0]

    def test_what_waited_for_an_act_is_no_label_once_values_are(self, stream: Stream) -> None:
        before = Clicks(settings_with(BY_CLICK), {})
        admit(before, stream, (1, 1, IMPRESSION, NAN), (1, 2, IMPRESSION, NAN))
        admit(before, stream, (1, 2, CLICK, NAN))
        after = Clicks(settings_with(BY_VALUE), before.tensors())
        admit(after, stream, (1, 3, IMPRESSION, 0.0))
        assert fresh_labels(after) == [0.0]

    def test_a_label_comes_with_how_its_item_stood_when_it_was_shown(self, stream: Stream) -> None:
        clicks, head = Clicks(settings_with(BY_CLICK), {}), ClickHead(3, ClickLoss.BINARY)
        vocabulary = Vocabulary().extended([known(1), known(2)])
        stood = []
        for users, items, kind in (
            ([3, 4, 5], [1, 1, 2], 0),
            ([1], [1], IMPRESSION),
            ([1], [1], CLICK),
        ):
            stood.append(head.standing(torch.tensor(1)).tolist())
            batch = stream.batch(users, items, kinds=[kind] * len(users))
            admit_with(head, vocabulary, clicks, stream, batch)
        admit(clicks, stream, *[(2, 9, 0, NAN)] * 12)
        assert fresh_labels(clicks) == [1.0]
        assert stood[0] == [0.0, 0.0]
        assert clicks._past.standing.tolist() == [pytest.approx(stood[1])]
        assert head.standing(torch.tensor(1)).tolist() != pytest.approx(stood[1])

    def test_what_is_held_out_is_not_counted(self, stream: Stream) -> None:
        settings = settings_with(BY_VALUE, fraction=0.5)
        clicks = Clicks(settings, {})
        batch = stream.batch([1] * 40, list(range(40)), kinds=[IMPRESSION] * 40, values=[1.0] * 40)
        vocabulary = Vocabulary().extended(batch.item_ids)
        head = ClickHead(len(vocabulary), ClickLoss.BINARY)
        admit_with(head, vocabulary, clicks, stream, batch)
        counted = vocabulary.rows(clicks.held.item)
        assert 0 < len(counted) < 40
        assert not head.tally[counted].any()
        assert head.tally[:, 1].sum() == 40 - len(counted)

    def test_a_held_out_label_is_taught_once_newer_ones_push_it_out(self, stream: Stream) -> None:
        settings = settings_with(BY_VALUE.model_copy(update={"window_rows": 5}), fraction=0.5)
        clicks = Clicks(settings, {})
        admit(clicks, stream, *[(1, item, IMPRESSION, item % 2) for item in range(40)])
        held = clicks.held
        assert is_member(held.user, held.item, np.zeros_like(held.time), 0.5).all()
        assert len(held) == 5
        assert len(fresh_labels(clicks)) == 35
        restarted = Clicks(settings, clicks.tensors())
        assert restarted.held.item.tolist() == held.item.tolist()

    def test_in_a_quiet_stream_enough_labels_stay_to_decide_on(self, stream: Stream) -> None:
        made = settings_with(BY_VALUE, fraction=0.999999)
        holdout = made.trainer.holdout.model_copy(update={"max_age_s": 3.0})
        trainer = made.trainer.model_copy(update={"holdout": holdout})
        clicks = Clicks(made.model_copy(update={"trainer": trainer}), {})
        admit(clicks, stream, *[(user, 1, IMPRESSION, 0) for user in range(15)])  # 14 s
        assert len(clicks.held) == trainer.gate.min_rows == 10
        assert len(fresh_labels(clicks)) == 5

    def test_one_user_neither_fills_the_holdout_nor_a_round(self, stream: Stream) -> None:
        settings = settings_with(BY_VALUE.model_copy(update={"window_rows": 100}), fraction=0.5)
        trainer = settings.trainer.model_copy(update={"max_user_events": 30})
        clicks = Clicks(settings.model_copy(update={"trainer": trainer}), {})
        for start in (0, 100):
            items = range(start, start + 100)
            admit(clicks, stream, *[(1, item, IMPRESSION, item % 2) for item in items])
        assert len(clicks.held) == settings.trainer.holdout.max_user_rows == 16
        assert len(clicks._fresh) == 60
        newest = [known(number)[0] for number in range(170, 200)]
        assert clicks._fresh.item[-30:].tolist() == newest
        admit(clicks, stream, *[(2, item, IMPRESSION, item % 2) for item in range(20)])
        assert len(set(clicks.held.user.tolist())) == 2

    def test_a_label_whose_act_cannot_be_held_out_is_taught(self, stream: Stream) -> None:
        clicks = Clicks(settings_with(BY_CLICK, fraction=0.999999), {})
        admit(clicks, stream, (1, 1, IMPRESSION, NAN), (1, 2, IMPRESSION, NAN))
        admit(clicks, stream, (1, 1, CLICK, NAN), capped=True)
        assert fresh_labels(clicks) == [1.0]
        admit(clicks, stream, *[(2, 9, 0, NAN)] * 12)
        assert clicks.held.label.tolist() == [0.0]
        admit(clicks, stream, (1, 2, CLICK, NAN), capped=True)
        assert len(clicks.held) == 0

    def test_nor_is_one_held_that_a_refusal_tells(self, stream: Stream) -> None:
        made = settings_with(BY_VALUE, fraction=0.999999)
        events = EventsSettings(kinds=(*made.events.kinds, "dislike"), negative=("dislike",))
        clicks = Clicks(made.model_copy(update={"events": events}), {})
        dislike = events.kinds.index("dislike")
        admit(clicks, stream, (1, 1, IMPRESSION, 0), (1, 2, IMPRESSION, 0))
        admit(clicks, stream, (1, 1, dislike, NAN), capped=True)  # it is no target of the holdout
        assert clicks.held.item.tolist() == keys([2]).tolist()

    def test_nor_one_that_waits_when_a_refusal_tells_it(self, stream: Stream) -> None:
        made = settings_with(BY_CLICK, fraction=0.999999)
        events = EventsSettings(kinds=(*made.events.kinds, "dislike"), negative=("dislike",))
        clicks = Clicks(made.model_copy(update={"events": events}), {})
        dislike = events.kinds.index("dislike")
        admit(clicks, stream, (1, 1, IMPRESSION, NAN), (1, 2, IMPRESSION, NAN))
        admit(clicks, stream, (1, 1, dislike, NAN), capped=True)
        admit(clicks, stream, *[(2, 9, 0, NAN)] * 12)
        assert clicks.held.item.tolist() == keys([2]).tolist()
        assert clicks._fresh.item.tolist() == keys([1]).tolist()
        assert not clicks._told

    def test_once_an_act_is_taught_its_label_and_those_before_it_are(self, stream: Stream) -> None:
        clicks = Clicks(settings_with(BY_CLICK, fraction=0.999999), {})
        admit(clicks, stream, *[(1, item, IMPRESSION, NAN) for item in range(5)])
        admit(clicks, stream, (1, 1, CLICK, NAN), (1, 3, CLICK, NAN))
        admit(clicks, stream, *[(2, 9, 0, NAN)] * 17)
        assert clicks.held.label.tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]
        admit(clicks, stream, (2, 9, 0, NAN), freed=targets((1, 1, 5)))
        assert clicks.held.item.tolist() == keys([2, 3, 4]).tolist()
        assert fresh_labels(clicks) == [0.0, 1.0]
        admit(clicks, stream, (2, 9, 0, NAN), freed=targets((1, 1, 5), (2, 3, 5)))
        assert len(clicks.held) == 3

    def test_an_act_tells_nothing_of_what_was_shown_after_it(self, stream: Stream) -> None:
        clicks = Clicks(settings_with(BY_CLICK, fraction=0.999999), {})
        admit(clicks, stream, (1, 1, IMPRESSION, NAN), (1, 1, CLICK, NAN))
        admit(clicks, stream, *[(2, 9, 0, NAN)] * 12, *[(1, 1, IMPRESSION, NAN)] * 2)
        admit(clicks, stream, (1, 1, CLICK, NAN), freed=targets((1, 1, 1)))
        assert fresh_labels(clicks) == [1.0]  # of the first
        admit(clicks, stream, *[(2, 9, 0, NAN)] * 12)
        assert clicks.held.label.tolist() == [1.0, 1.0]

    def test_a_label_that_waits_is_not_held_once_its_act_is_taught(self, stream: Stream) -> None:
        clicks = Clicks(settings_with(BY_CLICK, fraction=0.999999), {})
        admit(clicks, stream, (1, 1, IMPRESSION, NAN), (1, 1, CLICK, NAN))
        admit(clicks, stream, (2, 9, 0, NAN), freed=targets((1, 1, 1)))
        assert fresh_labels(clicks) == [1.0]
        assert len(clicks.held) == 0


@pytest.mark.parametrize("click", [BY_VALUE, BY_CLICK], ids=["by value", "by click"])
def test_of_a_user_with_an_item_all_is_held_out_or_nothing(
    slab: HistorySlab, stream: Stream, click: ClickSettings
) -> None:
    """Else what is taught of the one would tell the other: a label its act, an act its label."""
    learner, _, clicks = a_learner(slab, settings_with(click, fraction=0.3))
    random, prepare = np.random.default_rng(0), learner._prepare
    taught: set[tuple[int, int]] = set()  # users and items, of targets
    told: set[tuple[int, int]] = set()  # and of labels

    def noted(batch: MicroBatch) -> Sequences:
        found = prepare(batch)
        row, place = np.nonzero(found.target)
        pairs = zip(found.user[row].tolist(), found.item[row, place].tolist(), strict=True)
        taught.update(pairs)
        fresh = clicks._fresh
        told.update(zip(fresh.user.tolist(), fresh.item.tolist(), strict=True))
        return found

    learner._prepare = noted  # type: ignore[method-assign]
    for _ in range(6):
        users = random.integers(0, 30, 40).tolist()
        items = random.integers(0, 8, 40).tolist()
        learner.learn([stream.batch(users, items, kinds=[IMPRESSION] * 40, values=[1.0] * 40)])
        learner.learn([stream.batch(users, items, kinds=[CLICK] * 40)])
    targets_held = set(zip(learner.held.user.tolist(), learner.held.item.tolist(), strict=True))
    labels_held = set(zip(clicks.held.user.tolist(), clicks.held.item.tolist(), strict=True))
    assert targets_held
    assert labels_held
    assert taught
    assert told
    assert not (targets_held | labels_held) & (taught | told)


def test_the_memory_is_asked_before_it_knows_what_was_clicked(
    slab: HistorySlab, stream: Stream
) -> None:
    settings = settings_with(BY_VALUE, fraction=0.3)
    learner, _, clicks = a_learner(slab, settings)
    learner.learn([stream.batch([1] * 8, list(range(8)))])
    offers = stream.batch([1] * 30, list(range(30, 60)), kinds=[IMPRESSION] * 30, values=[1.0] * 30)
    learner.learn([offers])
    memory = learner._memory
    assert memory is not None
    history = keys(list(range(8)))
    before = set(memory.recall(history).key.tolist()) - {0}
    for user in range(2, 30):  # others go on to other items
        learner.learn([stream.batch([user] * 9, [*range(8), 30 + user])])
    after = set(memory.recall(history).key.tolist()) - {0}
    held, recollections = clicks.held_clicks(memory)
    assert len(held) == len(recollections) > 0
    assert all(set(one.key.tolist()) == before < after for one in recollections)


def teach(learner: Learner, stream: Stream, rounds: int) -> int:
    random = np.random.default_rng(0)
    labels = 0
    for _ in range(rounds):
        users = list(range(30))
        half = [user % 2 * 10 for user in users]
        views = stream.batch(users, [start + int(random.integers(0, 10)) for start in half])
        shown = [int(random.integers(0, 20)) for _ in users]
        values = [float(item // 10 == start // 10) for item, start in zip(shown, half, strict=True)]
        offers = stream.batch(users, shown, kinds=[IMPRESSION] * 30, values=values)
        labels += learner.learn([views, offers]).labels
    return labels


class TestUndone:
    def test_labels_of_a_rejected_challenger_are_taught_again(
        self, slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        learner, _, clicks = a_learner(slab, settings_with(BY_VALUE))
        first = teach(learner, stream, 1)
        learner.promoted()
        labels = teach(learner, stream, 1)
        monkeypatch.setattr(learner_module, "judge", lambda *_: REJECTED)
        learner.judge()
        assert learner.learn([stream.batch([], [])]).labels == labels > 0
        assert len(clicks._past) == first + labels  # each once
        assert not learner.owes

    def test_those_of_a_diverged_round_are_taught_in_the_next(
        self, slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        learner, challenger, clicks = a_learner(slab, settings_with(BY_VALUE))
        first = teach(learner, stream, 1)
        break_weights(challenger, monkeypatch, times=1)
        labels = teach(learner, stream, 1)
        assert learner.owes
        assert learner.learn([stream.batch([], [])]).labels == labels > 0
        assert len(clicks._past) == first + labels

    def test_what_is_rejected_too_often_is_given_up(
        self, slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        learner, _, _ = a_learner(slab, settings_with(BY_VALUE))
        teach(learner, stream, 1)
        monkeypatch.setattr(learner_module, "judge", lambda *_: REJECTED)
        for _ in range(quick_training().max_rejections):
            learner.judge()
            taught = learner.learn([stream.batch([], [])]).labels
        assert taught == 0
        assert not learner.owes

    def test_a_settled_learner_owes_none(self, slab: HistorySlab, stream: Stream) -> None:
        learner, _, _ = a_learner(slab, settings_with(BY_VALUE))
        teach(learner, stream, 1)
        learner.settle()
        assert not learner.owes
        assert learner.learn([stream.batch([], [])]).labels == 0


def test_the_head_learns_what_a_history_says_of_an_item(slab: HistorySlab, stream: Stream) -> None:
    learner, challenger, clicks = a_learner(slab, settings_with(BY_VALUE, fraction=0.2))
    labels = teach(learner, stream, rounds=20)
    assert labels == 20 * 30 - len(clicks.held)
    learner.judge()
    report = learner.click_report
    assert report is not None
    assert report.scores.rows == len(clicks.held)
    assert report.scores.auc > 0.8
    assert report.scores.log_loss < 0.65
    assert report.rerank in WEIGHTS
    assert learner.shape["click"] == {"weights": 7, "loss": "binary"}
    assert challenger.is_finite()


def test_a_version_has_the_head_and_a_trainer_goes_on_with_it(
    slab: HistorySlab, stream: Stream
) -> None:
    settings = settings_with(BY_VALUE, fraction=0.2)
    learner, challenger, _ = a_learner(slab, settings)
    teach(learner, stream, rounds=2)
    artifact: Artifact = learner.artifact()
    servable = build_servable(learner.shape, artifact, 3, 0, {})  # type: ignore[arg-type]
    head = servable.model.click
    assert head is not None
    mine = challenger.model.click
    assert mine is not None
    assert torch.equal(head.weight, mine.weight)
    assert torch.equal(head.tally, mine.tally[: len(head.tally)])
    assert head.tally.any()
    assert "click.tally" not in artifact.frozen
    assert "optimizer.exp_avg.click.weight" in artifact.trainer
    assert len(Clicks(settings, dict(artifact.trainer)).held) > 0


@pytest.mark.parametrize("to_replay", [True, False])
def test_labels_alone_are_taught_too(slab: HistorySlab, stream: Stream, to_replay: bool) -> None:
    learner, challenger, _ = a_learner(slab, settings_with(BY_VALUE))
    if to_replay:
        learner.learn([stream.walk(20, 10, steps=3)])
    head = challenger.model.click
    assert head is not None
    before = head.weight.clone()
    report = learner.learn(
        [stream.batch([1, 2, 3], [3, 4, 5], kinds=[IMPRESSION] * 3, values=[1.0, 0.0, 1.0])]
    )
    assert (report.sequences, report.labels) == (0, 3)
    assert len(report.step_s) == quick_training().max_epochs
    assert np.isnan(report.loss) == (not to_replay)  # there was no next item to foretell
    assert not torch.equal(head.weight, before)


def test_a_clock_that_is_fast_ends_no_waiting(slab: HistorySlab, stream: Stream) -> None:
    """The codec takes events of up to two hours ahead."""
    learner, _, clicks = a_learner(slab, settings_with(BY_CLICK))
    stream.events = int(time.time())
    learner.learn([stream.batch([1], [1], kinds=[IMPRESSION])])
    learner.learn([stream.batch([2], [2], late_s=-3600)])
    assert len(clicks._waiting) == 1
    learner.learn([stream.batch([1], [1], kinds=[CLICK])])
    assert clicks._waiting.label.tolist() == [1.0]


def test_a_partition_that_is_read_ahead_ends_no_waiting_in_another(
    slab: HistorySlab, stream: Stream
) -> None:
    learner, _, clicks = a_learner(slab, settings_with(BY_CLICK))
    learner.learn([stream.batch([1], [1], kinds=[IMPRESSION])])
    ahead = stream.batch([2], [2], late_s=-1000)
    learner.learn([replace(ahead, partition=ahead.partition + 1)])
    learner.learn([stream.batch([1], [1], kinds=[CLICK])])
    assert clicks._waiting.label.tolist() == [1.0]


def test_without_a_head_nothing_is_labelled(slab: HistorySlab, stream: Stream) -> None:
    off = small_settings()
    assert Clicks.of(off, {}) is None
    challenger = Challenger.new(off.model, off.trainer, CPU, click=off.click)
    assert challenger.model.click is None


@pytest.mark.parametrize(
    ("gain", "rows", "weight"),
    [(0.1, 50, 1.0), (0.1, 5, 0.0), (0.0, 50, 0.0), (np.nan, 50, 0.0)],
)
def test_reorders_only_where_that_is_plainly_better(gain: float, rows: int, weight: float) -> None:
    random = np.random.default_rng(0)
    gains = np.tile(random.random(rows).astype(np.float32), (len(WEIGHTS), 1))
    gains[WEIGHTS.index(1.0)] += gain
    assert best_weight(gains, GateSettings(min_rows=10)) == weight


def test_what_is_shown_names_items_that_get_rows(slab: HistorySlab, stream: Stream) -> None:
    learner, challenger, _ = a_learner(slab, settings_with(BY_VALUE))
    learner.learn([stream.batch([1], [7], kinds=[IMPRESSION], values=[1.0])])
    assert (challenger.vocabulary.rows(keys([7])) > 0).all()


def test_a_pass_that_the_labels_pay_for_is_not_kept(
    slab: HistorySlab, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings_with(BY_VALUE, fraction=0.3)
    trainer = made.trainer.model_copy(update={"max_epochs": 4})
    learner, challenger, clicks = a_learner(slab, made.model_copy(update={"trainer": trainer}))
    losses, after_pass = iter([1.0, 9.0]), []

    def held_losses(*_: object) -> Float32s:
        after_pass.append(challenger.model.items.weight.detach().clone())
        return np.full(12, next(losses), np.float32)

    monkeypatch.setattr(clicks, "held_losses", held_losses)
    learner.learn([stream.walk(20, 10, steps=4)])
    assert len(after_pass) == 2
    assert torch.equal(challenger.model.items.weight, after_pass[0])


@pytest.mark.parametrize("loss", ClickLoss)
def test_what_is_held_out_loses_as_a_step_counts_it(
    slab: HistorySlab, stream: Stream, loss: ClickLoss
) -> None:
    settings = settings_with(BY_VALUE.model_copy(update={"loss": loss, "weight": 0.5}), 0.3)
    learner, challenger, clicks = a_learner(slab, settings)
    head, vocabulary = challenger.model.click, challenger.vocabulary
    assert head is not None
    assert len(clicks.held_losses(challenger.model, head, vocabulary, 10)) == 0
    values = [float(item % 3 == 0) for item in range(60)]
    learner.learn([stream.batch([1] * 60, list(range(60)), kinds=[IMPRESSION] * 60, values=values)])
    learner.learn([stream.batch([1], [61])])
    vocabulary, held = challenger.vocabulary, clicks.held.last(5)
    lost = clicks.held_losses(challenger.model, head, vocabulary, 5)
    assert len(lost) == 5
    label, expected = torch.from_numpy(held.label), torch.from_numpy(
        foretold(challenger.model, head, vocabulary, held.context, held.item, held.codes,
                 held.standing)
    )  # fmt: skip
    found = expected.logit() if loss is ClickLoss.BINARY else expected
    assert lost.mean() == pytest.approx(0.5 * float(head.mean_loss(found, label)), rel=1e-4)
