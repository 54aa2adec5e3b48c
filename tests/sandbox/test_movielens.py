import sys
from importlib.util import find_spec

import numpy as np
import pytest

from service.errors import ConfigurationError
from service.sandbox import movielens
from service.sandbox.movielens import ALL_EVENTS, MovieLens, load_movielens


@pytest.fixture(scope="module")
def ratings() -> MovieLens:
    if find_spec("recbole") is None:
        pytest.skip("MovieLens is absent: `pip install --no-deps recbole==1.2.1` brings it")
    return load_movielens()


def test_has_every_rating_user_and_title(ratings: MovieLens) -> None:
    assert len(ratings) == ALL_EVENTS
    assert len(np.unique(ratings.user_ids)) == 943
    assert len(ratings.titles) == 1_682
    assert set(ratings.item_ids) == set(ratings.titles)
    assert set(ratings.ratings) == {1.0, 2.0, 3.0, 4.0, 5.0}


def test_is_in_time_order(ratings: MovieLens) -> None:
    assert (np.diff(ratings.timestamps) >= 0).all()


def test_titles_carry_the_year(ratings: MovieLens) -> None:
    titles = dict(ratings.titles)
    assert next(iter(titles.values())) == "Toy Story (1995)"


def test_the_package_that_carries_the_data_is_not_imported(ratings: MovieLens) -> None:
    assert len(ratings)
    assert "recbole" not in sys.modules


def test_absence_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movielens, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install --no-deps recbole==1\.2\.1"):
        load_movielens()
