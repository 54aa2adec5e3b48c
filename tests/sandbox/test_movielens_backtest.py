from importlib.util import find_spec

import numpy as np
import pytest

from service.domain import stable_key
from service.sandbox.movielens import load_movielens
from service.sandbox.movielens_backtest import movielens_table
from service.settings import EventsSettings, Settings


@pytest.mark.skipif(find_spec("recbole") is None, reason="MovieLens is not installed")
def test_ratings_are_events_in_time_order() -> None:
    settings = Settings(events=EventsSettings(kinds=("view", "rating")))
    ratings = load_movielens()
    table = movielens_table(ratings, settings)
    assert len(table) == len(ratings)
    assert (np.diff(table.timestamp) >= 0).all()
    assert table.timestamp[0] == ratings.timestamps[0] * 1000
    assert table.item[7] == stable_key(ratings.item_ids[7])
    assert set(table.kind.tolist()) == {1}
    assert table.value[:3].tolist() == ratings.ratings[:3].tolist()
