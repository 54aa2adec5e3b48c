import math

import numpy as np
import pytest

from service.model.click_metrics import auc, click_scores
from service.settings import ClickLoss, ClickSettings


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    random = np.random.default_rng(0)
    score = random.integers(0, 5, 40).astype(np.float32)  # with ties
    positive = random.random(40) < 0.3
    pairs = [
        float(one > other) + 0.5 * float(one == other)
        for one in score[positive]
        for other in score[~positive]
    ]
    assert auc(score, positive) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("positive", [[True, True], [False, False]])
def test_there_is_no_auc_of_labels_that_are_all_alike(positive: list[bool]) -> None:
    assert math.isnan(auc(np.array([0.1, 0.2], np.float32), np.array(positive)))


def test_probabilities_have_a_log_loss() -> None:
    scores = click_scores(
        np.array([0.8, 0.4, 0.9], np.float32), np.array([1, 0, 0], np.float32), ClickSettings()
    )
    assert (scores.rows, scores.clicks) == (3, 1)
    assert scores.log_loss == pytest.approx(-np.mean(np.log([0.8, 0.6, 0.1])), rel=1e-5)
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.auc == 0.5
    assert scores.rmse == pytest.approx(math.sqrt((0.2**2 + 0.4**2 + 0.9**2) / 3), rel=1e-5)


def test_a_certain_and_wrong_probability_costs_much_but_not_everything() -> None:
    found = click_scores(np.ones(1, np.float32), np.zeros(1, np.float32), ClickSettings())
    assert 10 < found.log_loss < 20


def test_numbers_are_clicks_from_a_value_on_and_have_no_log_loss() -> None:
    ratings = ClickSettings(loss=ClickLoss.SQUARED, positive_from=4.0)
    scores = click_scores(
        np.array([4.5, 2.0, 4.0], np.float32), np.array([5, 3, 3], np.float32), ratings
    )
    assert (scores.clicks, scores.auc) == (1, 1.0)
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.rmse == pytest.approx(math.sqrt((0.25 + 1 + 1) / 3))
    assert math.isnan(scores.log_loss)


def test_no_rows_have_no_figures() -> None:
    none = np.zeros(0, np.float32)
    assert math.isnan(click_scores(none, none, ClickSettings()).rmse)
