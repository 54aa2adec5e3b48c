"""Means over the last events that the live model was tested on."""

import numpy as np
import pytest

from service.app.prequential import PrequentialWindow
from service.model.ranking import MISSED


def test_a_hit_is_a_rank_within_ten() -> None:
    window = PrequentialWindow()
    window.add(np.array([1, 10, 11, MISSED]))
    assert window.hit_rate() == 0.5


def test_a_better_rank_gains_more() -> None:
    window = PrequentialWindow()
    window.add(np.array([1]))
    assert window.ndcg() == pytest.approx(1.0)
    window.add(np.array([MISSED]))
    assert window.ndcg() == pytest.approx(0.5)


def test_an_old_event_is_forgotten_after_two_thousand() -> None:
    window = PrequentialWindow()
    window.add(np.ones(500, np.int64))
    for _ in range(4):
        window.add(np.full(400, MISSED))
    assert window.hit_rate() == pytest.approx(400 / 2_000)
    window.add(np.full(400, MISSED))
    assert window.hit_rate() == 0.0
