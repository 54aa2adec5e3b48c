import asyncio
from typing import cast

import numpy as np
import orjson

from service.domain import Event, ItemId, Offset, Partition, Version
from service.sandbox.baselines import PopularFilms
from service.sandbox.movielens import MovieLens
from service.sandbox.replay import (
    Answer,
    Pace,
    Ratings,
    Replay,
    Served,
    event_to_weights_s,
    read_answer,
    room,
)
from service.sandbox.serve_process import environment
from service.settings import load_settings
from service.stream.client import Appended, EventProducer

PACE = Pace(events_per_s=100, max_in_flight=50)


def ratings(user: str, item: str) -> Ratings:
    return Ratings(
        MovieLens(
            user_ids=np.array(list(user)),
            item_ids=np.array(list(item)),
            ratings=np.full(len(user), 4, np.float32),
            timestamps=np.arange(len(user), dtype=np.int64) + 880_000_000,
            titles={ItemId(name): name.upper() for name in item},
        ),
        len(user),
    )


def test_the_pace_is_kept() -> None:
    assert room(PACE, sent=0, answered=0, elapsed_s=0.0) == 0
    assert room(PACE, sent=0, answered=0, elapsed_s=0.25) == 25
    assert room(PACE, sent=100, answered=100, elapsed_s=0.9) == 0


def test_too_many_unanswered_hold_the_replay_back() -> None:
    assert room(PACE, sent=50, answered=0, elapsed_s=9.0) == 0
    assert room(PACE, sent=50, answered=30, elapsed_s=9.0) == 30


def test_an_event_is_one_by_the_services_own_definition() -> None:
    key, value = ratings("ab", "xy").record(1)
    event = Event.model_validate(orjson.loads(value))
    assert key == b"b"
    assert event == Event(
        user_id="b",
        item_id="y",
        event="rating",
        timestamp=880_000_001_000,
        event_id="1",
        value=4.0,
    )


def test_an_answer_is_read_from_a_recommendation() -> None:
    value = orjson.dumps(
        {
            "rec_id": "events/1/7",
            "user_id": "b",
            "items": [{"item_id": "x", "score": 0.5}, {"item_id": "y", "score": 0.25}],
            "model_version": 3,
            "trained_through": {"0": 4, "1": 9},
            "event": {"item_id": "y", "event": "rating", "timestamp": 1, "event_id": "12"},
            "generated_at": 1234,
        }
    )
    assert read_answer(value) == Answer(
        event=12,
        items=[ItemId("x"), ItemId("y")],
        version=Version(3),
        trained_through={Partition(0): Offset(4), Partition(1): Offset(9)},
        generated_ms=1234,
    )


def served(generated_ms: int, *through: int) -> Served:
    offsets = {Partition(place): Offset(offset) for place, offset in enumerate(through)}
    return Served(0, generated_ms, offsets)


def test_an_event_waits_for_the_first_version_trained_past_it() -> None:
    seconds = event_to_weights_s(
        sent_ms=np.array([1000, 1000, 2000, 2000], np.int64),
        partition=np.array([0, 1, 0, 1], np.int32),
        offset=np.array([0, 0, 1, 1], np.int64),
        # The second is past offset 0 of both partitions; the third also past 1 of the first.
        served=[served(3000, 0, 0), served(4000, 1, 1), served(9000, 2, 1)],
    )
    assert seconds[:3].tolist() == [3.0, 3.0, 7.0]
    assert np.isnan(seconds[3])


def test_versions_may_be_told_in_any_order() -> None:
    versions = [served(9000, 2), served(4000, 2), served(5000, 2)]
    seconds = event_to_weights_s(
        np.array([1000], np.int64), np.array([0], np.int32), np.array([1], np.int64), versions
    )
    assert seconds.tolist() == [3.0]


def test_a_partition_that_a_version_does_not_name_is_not_learned() -> None:
    seconds = event_to_weights_s(
        np.array([1000], np.int64),
        np.array([1], np.int32),
        np.array([0], np.int64),
        [served(4000, 5)],
    )
    assert np.isnan(seconds).all()


class Topic:
    """A producer that accepts everything, on two partitions by turns."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    async def send(self, key: bytes, value: bytes) -> "asyncio.Future[Appended]":
        self.values.append(value)
        count = len(self.values) - 1
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        future.set_result(_At(count % 2, count // 2))
        return future


class _At:
    def __init__(self, partition: int, offset: int) -> None:
        self.partition, self.offset = partition, offset


def test_every_event_is_sent_once_and_its_place_is_noted() -> None:
    stream, topic = ratings("abcabc", "xyzxyz"), Topic()

    async def run() -> Replay:
        replay = Replay(stream, cast(EventProducer, topic))
        await replay.send_all(2)
        replay.answered = 2
        await replay.send_at(Pace(events_per_s=10_000, max_in_flight=100))
        return replay

    replay = asyncio.run(run())
    sent = [orjson.loads(value)["event_id"] for value in topic.values]
    assert sent == ["0", "1", "2", "3", "4", "5"]
    assert replay.partition.tolist() == [0, 1, 0, 1, 0, 1]
    assert replay.offset.tolist() == [0, 0, 1, 1, 2, 2]


def test_popularity_ranks_what_the_user_has_not_seen_and_knows_nothing_of_the_future() -> None:
    stream = ratings("abcda", "xxyzy")
    number = stream.number
    popular = PopularFilms(stream, half_life_events=1_000_000)
    named = {place: name for name, place in number.items()}
    rankings = [[named[film] for film in one] for one in popular.answer(np.arange(5))]
    assert rankings[0] == []
    assert rankings[1] == []
    assert rankings[2] == ["x"]
    assert rankings[3] == ["x", "y"]
    assert rankings[4] == ["z"]


def test_older_events_count_less() -> None:
    stream = ratings("abcdef", "xxyyyz")
    recent = PopularFilms(stream, half_life_events=1)
    named = {place: name for name, place in stream.number.items()}
    assert [named[film] for film in recent.answer(np.arange(6))[-1]] == ["y", "x"]


def test_variables_are_read_back_as_the_settings_they_were() -> None:
    chosen = {"events": {"kinds": ["rating"]}, "trainer": {"holdout": {"max_age_s": 1e9}}}
    settings = load_settings(None, environment(chosen))
    assert settings.events.kinds == ("rating",)
    assert settings.trainer.holdout.max_age_s == 1e9
