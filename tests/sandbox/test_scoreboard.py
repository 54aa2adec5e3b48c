import math

import numpy as np
import pytest

from service.sandbox.scoreboard import MISSED, Recommender, Score, Scoreboard, place

LIVE, FROZEN, POPULARITY = Recommender.LIVE, Recommender.FROZEN, Recommender.POPULARITY


def board(user: list[int], item: list[int], first: int = 0) -> Scoreboard:
    return Scoreboard(np.array(user, np.int64), np.array(item, np.int64), first)


def test_a_users_first_event_is_no_query() -> None:
    assert board([7, 8, 7, 9, 8], [0, 1, 2, 3, 4]).queries.tolist() == [2, 4]


def test_what_came_before_the_first_answer_is_neither_query_nor_answered() -> None:
    scores = board([7, 8, 7, 7, 8, 8], [0, 1, 2, 3, 4, 5], first=2)
    assert scores.queries.tolist() == [3, 5]
    assert scores.asked(np.arange(6)).tolist() == [False, False, True, False, True, False]


def test_an_answer_is_held_against_the_same_users_next_event() -> None:
    scores = board([7, 8, 7, 8], [0, 1, 2, 3])
    scores.answered(LIVE, 0, [9, 2])  # user 7 goes on to item 2: rank 2
    scores.answered(LIVE, 1, [9, 8])  # user 8 goes on to item 3: missed
    score = scores.score(LIVE, slice(None))
    assert (score.queries, score.hr_at_10) == (2, 0.5)
    assert score.ndcg_at_10 == pytest.approx(1 / math.log2(3) / 2)


def test_an_answer_that_nothing_follows_counts_nowhere() -> None:
    scores = board([7, 7], [0, 1])
    scores.answered(LIVE, 1, [0])
    assert scores.settled([LIVE]) == 0


def test_a_repeated_answer_changes_nothing() -> None:
    scores = board([7, 7], [0, 1])
    scores.answered(LIVE, 0, [1])
    scores.answered(LIVE, 0, [5, 6, 1])
    assert scores.score(LIVE, slice(None)) == Score(1, 1.0, 1.0)


def test_only_queries_that_all_are_judged_on_are_settled() -> None:
    scores = board([7, 7, 7, 7], [0, 1, 2, 3])
    for event in (0, 1, 2):
        scores.answered(LIVE, event, [])
    scores.answered(FROZEN, 0, [])
    scores.answered(FROZEN, 2, [])  # a gap before it
    assert scores.settled([LIVE]) == 3
    assert scores.settled([LIVE, FROZEN]) == 1
    assert scores.settled([LIVE, FROZEN, POPULARITY]) == 0


def test_the_order_of_arrival_does_not_matter() -> None:
    one, other = (board([7, 8, 7, 8, 7], [0, 1, 2, 3, 4]) for _ in range(2))
    answers = [(0, [2]), (1, [0, 3]), (2, [1])]
    for event, ranking in answers:
        one.answered(LIVE, event, ranking)
    for event, ranking in reversed(answers):
        other.answered(LIVE, event, ranking)
    assert one.score(LIVE, slice(None)) == other.score(LIVE, slice(None))


def test_without_a_query_the_score_is_zero() -> None:
    assert board([7, 8], [0, 1]).score(LIVE, slice(None)) == Score(0, 0.0, 0.0)


def test_the_rank_is_the_place_in_the_first_ten() -> None:
    assert place([4, 5, 6], 4) == 1
    assert place([4, 5, 6], 6) == 3
    assert place([4, 5, 6], 7) == MISSED
    assert place([], 7) == MISSED
    assert place(list(range(20)), 9) == 10
    assert place(list(range(20)), 10) == MISSED


def test_a_range_of_queries_starts_at_an_event() -> None:
    scores = board([7, 8, 7, 9, 8, 7], [0, 1, 2, 3, 4, 5])
    assert scores.queries.tolist() == [2, 4, 5]
    assert [scores.since(event) for event in (0, 2, 3, 5, 6)] == [0, 0, 1, 2, 3]


def test_a_curve_is_the_mean_of_the_last_queries() -> None:
    scores = board([7] * 11, list(range(11)))
    for event in range(10):
        scores.answered(LIVE, event, [event + 1] if event >= 5 else [])
    curve = scores.curve({LIVE: 0}, window=5, points=10)
    assert curve.event.tolist() == list(range(2, 12))
    assert curve.hr_at_10[LIVE] == pytest.approx([0, 0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1])


def test_a_curve_that_starts_later_is_blank_before() -> None:
    scores = board([7] * 11, list(range(11)))
    for event in range(10):
        scores.answered(LIVE, event, [])
        if event >= 5:
            scores.answered(Recommender.FROZEN_AT_HALF, event, [event + 1])
    curve = scores.curve({LIVE: 0, Recommender.FROZEN_AT_HALF: 6}, window=5, points=10)
    later = curve.hr_at_10[Recommender.FROZEN_AT_HALF]
    assert [math.isnan(value) for value in later] == [True] * 5 + [False] * 5
    assert later[5:] == [1.0] * 5


def test_a_curve_of_nothing_is_empty() -> None:
    assert board([7, 8], [0, 1]).curve({LIVE: 0}, window=5, points=10).event.tolist() == []
