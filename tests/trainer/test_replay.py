from contextlib import closing

import numpy as np
import pytest

from service.domain import Int64s, Offset, Partition
from service.settings import (
    EventsSettings,
    HistorySettings,
    ReplaySettings,
    Settings,
    TrainerSettings,
)
from service.state.histories import HistorySlab
from service.trainer.holdout import event_hash
from service.trainer.replay import Replay
from service.trainer.weighing import Weighing
from tests.state.examples import a_slab
from tests.trainer.examples import PARTITION, Stream, keys

LENGTH = 6
NONE: Int64s = np.zeros(0, np.int64)
END = {PARTITION: Offset(1 << 50)}
NOW = 10_000
EVEN = Weighing.of(Settings())


def test_held_and_untaught_events_are_never_drawn() -> None:
    with closing(a_slab(users=20, events=32)) as slab:
        batch = Stream(slab).batch([number % 10 for number in range(100)], list(range(100)))
        marks = event_hash(batch.user, batch.item, batch.timestamp).view(np.int64)
        replay = Replay({PARTITION: slab}, LENGTH, seed=0, weighing=EVEN)
        drawn: set[int] = set()
        for _ in range(100):
            sequences = replay.draw(8, marks[::7], {PARTITION: Offset(60)}, NOW)
            drawn.update(sequences.item.ravel().tolist())
    allowed = set(batch.item[:60].tolist()) - set(batch.item[::7].tolist())
    assert drawn - {0} == allowed


def test_nothing_is_drawn_of_a_partition_that_nothing_is_known_of() -> None:
    with closing(a_slab(users=20, events=32)) as slab:
        Stream(slab).batch([number % 4 for number in range(40)], list(range(40)))
        replay = Replay({PARTITION: slab}, LENGTH, seed=0, weighing=EVEN)
        assert len(replay.draw(4, NONE, {Partition(9): Offset(40)}, NOW)) == 0


def test_sequences_are_stretches_of_one_history_and_all_but_the_first_are_targets() -> None:
    with closing(a_slab(users=20, events=32)) as slab:
        Stream(slab).batch([number % 4 for number in range(40)], list(range(40)))
        sequences = Replay({PARTITION: slab}, LENGTH, seed=0, weighing=EVEN).draw(4, NONE, END, NOW)
    number = {key: i for i, key in enumerate(keys(range(40)).tolist())}
    for items, target in zip(sequences.item, sequences.target, strict=True):
        known = [number[key] for key in items.tolist() if key]
        assert len(known) > 1
        assert (np.diff(known) == 4).all()
        assert target.tolist() == [0 < place < len(known) for place in range(LENGTH)]


def test_draws_no_more_sequences_than_there_are_users() -> None:
    with closing(a_slab()) as slab:
        replay = Replay({PARTITION: slab}, LENGTH, seed=0, weighing=EVEN)
        assert len(replay.draw(5, NONE, END, NOW)) == 0
        Stream(slab).batch([1, 1, 1, 2, 2, 2], [1, 2, 3, 1, 2, 3])
        assert len(replay.draw(5, NONE, END, NOW)) <= 2
        assert len(replay.draw(0, NONE, END, NOW)) == 0
        assert replay.draw(0, NONE, END, NOW).item.shape == (0, LENGTH)


def test_users_with_one_event_take_the_place_of_no_sequence() -> None:
    with closing(a_slab(users=200, events=32)) as slab:
        stream = Stream(slab)
        stream.batch(list(range(200)), list(range(200)))
        stream.batch(list(range(10)), list(range(10)))
        replay = Replay({PARTITION: slab}, LENGTH, seed=0, weighing=EVEN)
        for wanted in (5, 16):
            firsts = [replay.draw(wanted, NONE, END, NOW).item[:, 0].tolist() for _ in range(20)]
            assert {len(users) for users in firsts} <= {min(wanted, 10), 9}
            assert all(len(set(users)) == len(users) for users in firsts)
    with closing(a_slab(users=200, events=32)) as slab:
        Stream(slab).batch(list(range(200)), list(range(200)))
        assert not len(Replay({PARTITION: slab}, LENGTH, 0, EVEN).draw(16, NONE, END, NOW))


def test_with_recency_newer_histories_are_drawn_more_often() -> None:
    with closing(a_slab(users=40, events=32)) as slab:
        stream = Stream(slab)
        for user in range(40):
            stream.batch([user] * 3, [user * 3, user * 3 + 1, user * 3 + 2])
        drawn = {}
        for recency in (1, 4):
            replay = Replay({PARTITION: slab}, LENGTH, seed=0, weighing=EVEN, recency=recency)
            rows = [replay.draw(20, NONE, END, NOW).item for _ in range(50)]
            drawn[recency] = np.isin(np.concatenate(rows), keys(range(90, 120))).sum() / 3000
    assert 0.2 < drawn[1] < 0.3  # the newest quarter of the users
    assert drawn[4] > 0.6


def test_older_events_count_less_and_what_was_turned_down_is_pushed_away_again() -> None:
    events = EventsSettings(kinds=("view", "dislike"), shown=(), negative=("dislike",))
    trainer = TrainerSettings(replay=ReplaySettings(half_life_s=2.0))
    settings = Settings(history=HistorySettings(users=4, events=50), events=events, trainer=trainer)
    with closing(HistorySlab.of(PARTITION, settings)) as slab:
        Stream(slab).batch([1] * 6, range(6), kinds=[1, 0, 0, 1, 1, 0])
        replay = Replay({PARTITION: slab}, LENGTH, seed=0, weighing=Weighing.of(settings))
        sequences = replay.draw(1, NONE, END, 6000)
    views, disliked = sequences.item.tolist()
    assert views == [*keys([1, 2, 5]).tolist(), 0, 0, 0]
    assert disliked == [*keys([1, 2, 4]).tolist(), 0, 0, 0]
    assert sequences.target.tolist() == [[0, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0]]
    weights = sequences.weight[sequences.target].tolist()
    assert weights == pytest.approx([2**-2, 2**-0.5, -(2**-1)])
