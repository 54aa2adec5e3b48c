import numpy as np
import pytest

from service.settings import EventsSettings, ReplaySettings, Settings, TrainerSettings
from service.trainer.weighing import Weighing

KINDS = ("view", "buy", "return")
NOW = 100_000


def weighing(half_life_s: float | None = None) -> Weighing:
    return Weighing.of(
        Settings(
            events=EventsSettings(
                kinds=KINDS, shown=(), negative=("return",), weights={"return": 2.0, "buy": 4.0}
            ),
            trainer=TrainerSettings(replay=ReplaySettings(half_life_s=half_life_s)),
        )
    )


def test_a_kind_counts_as_the_settings_say_and_what_was_turned_down_below_zero() -> None:
    # 200: a kind that settings before these had
    found = weighing().new(np.array([0, 1, 2, 200], np.uint8))
    assert found.tolist() == [1.0, 4.0, -2.0, 1.0]


def test_a_replayed_event_counts_half_for_each_half_life_since() -> None:
    kind = np.array([0, 1, 2, 0], np.uint8)
    time = NOW - 1000 * np.array([10, 20, 0, -50])  # the last is dated ahead
    assert weighing(10.0).replayed(kind, time, NOW).tolist() == [0.5, 1.0, -2.0, 1.0]
    assert weighing().replayed(kind, time, NOW).tolist() == [1.0, 4.0, -2.0, 1.0]


@pytest.mark.filterwarnings("error")
def test_ages_that_are_far_apart_are_no_fault() -> None:
    found = weighing(0.001).replayed(np.zeros(2, np.uint8), np.array([0, 1 << 60]), 1 << 61)
    assert found.tolist() == [0.0, 0.0]
