"""A backtest over MovieLens-100K, without a file of events."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from service.backtest.command import backtest
from service.backtest.options import Options
from service.backtest.reading import Read
from service.backtest.table import Table, keys_of
from service.domain import ItemId, UserId
from service.sandbox.movielens import MovieLens, load_movielens
from service.settings import Settings


def backtest_movielens(options: Options, settings: Settings) -> int:
    """Raises ConfigurationError where the data is absent."""
    found = Read(movielens_table(load_movielens(), settings), 0, None, timed=True)
    return backtest([found], replace(options, files=(Path("MovieLens-100K"),)), settings)


def movielens_table(ratings: MovieLens, settings: Settings) -> Table:
    """The ratings as events of the kind `rating`, or of the first kind where there is none."""
    kinds = settings.events.kinds
    kind = kinds.index("rating") if "rating" in kinds else 0
    user_ids = [UserId(user) for user in ratings.user_ids.tolist()]
    item_ids = [ItemId(item) for item in ratings.item_ids.tolist()]
    return Table(
        keys_of(user_ids),
        keys_of(item_ids),
        np.full(len(ratings), kind, np.uint8),
        ratings.timestamps * 1000,
        ratings.ratings,
        user_ids,
        item_ids,
    )
