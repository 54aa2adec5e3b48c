import pytest

from service.domain import ItemId
from service.state.popularity import Popularity

A, B, C = ItemId("a"), ItemId("b"), ItemId("c")


def test_an_event_weighs_half_after_the_half_life() -> None:
    popularity = Popularity(half_life_events=10)
    popularity.learn([A])
    assert popularity.score(A) == pytest.approx(1.0)
    popularity.learn([B] * 10)
    assert popularity.score(A) == pytest.approx(0.5)


def test_top_is_best_first_and_no_longer_than_what_is_known() -> None:
    popularity = Popularity(half_life_events=1000)
    popularity.learn([A, B, B, C, C, C])
    assert popularity.top(2) == [C, B]
    assert popularity.top(9) == [C, B, A]
    assert len(popularity) == 3


def test_a_walk_goes_through_all_from_the_best_on() -> None:
    popularity = Popularity(half_life_events=1_000_000)
    names = [ItemId(f"item-{number}") for number in range(500)]
    popularity.learn([name for place, name in enumerate(names) for _ in range(1 + place % 40)])
    walked = list(popularity.walk())
    assert sorted(walked) == sorted(names)
    scores = [popularity.score(name) for name in walked]
    assert scores == sorted(scores, reverse=True)
    assert not list(Popularity(half_life_events=10).walk())


def test_a_walk_gives_no_item_twice_when_its_first_part_is_older() -> None:
    popularity = Popularity(half_life_events=1_000_000)
    names = [ItemId(f"item-{number}") for number in range(200)]
    popularity.learn([name for place, name in enumerate(names) for _ in range(300 - place)])
    popularity.learn([names[199]] * 1000)
    next(popularity.walk())  # the first are ranked now
    popularity.learn(names[70:90] * 25)  # these overtake some of them
    walked = list(popularity.walk())
    assert sorted(walked) == sorted(names)


def test_a_new_favourite_is_seen_within_a_thousand_events() -> None:
    popularity = Popularity(half_life_events=100)
    popularity.learn([A])
    assert popularity.top(1) == [A]
    popularity.learn([B] * 1000)
    assert popularity.top(1) == [B]


def test_counts_survive_being_scaled_back() -> None:
    popularity = Popularity(half_life_events=1)
    for _ in range(500):
        popularity.learn([A, B])
    assert popularity.score(B) == pytest.approx(4 / 3)
    assert popularity.score(A) == pytest.approx(2 / 3)


def test_knows_nothing_at_first() -> None:
    popularity = Popularity(half_life_events=10)
    assert popularity.top(5) == []
    assert popularity.score(A) == 0.0


def test_what_was_popular_once_is_forgotten() -> None:
    popularity = Popularity(half_life_events=10)
    popularity.learn([ItemId(f"item-{number}") for number in range(10_000)])
    assert len(popularity) <= 120
    assert popularity.top(1) == [ItemId("item-9999")]
