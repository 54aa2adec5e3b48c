"""A backtest over MovieLens-100K, without a file of events."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from service.backtest.command import backtest
from service.backtest.options import Options
from service.backtest.reading import Read
from service.backtest.table import Table, keys_of
from service.domain import ItemId, UserId, item_key
from service.sandbox.movielens import MovieLens, load_movielens
from service.settings import Settings
from service.state.catalogue import CatalogueItem
from service.state.features import Features

MOVIELENS = Path("MovieLens-100K")  # how reports name the file


def backtest_movielens(options: Options, settings: Settings) -> int:
    """With the films' titles where an encoder is set. Raises ConfigurationError where the data is
    absent."""
    found, items = movielens(settings)
    return backtest([found], replace(options, files=(MOVIELENS,)), settings, items)


def movielens(settings: Settings) -> tuple[Read, list[CatalogueItem]]:
    """The events, and the films where an encoder is set."""
    ratings = load_movielens()
    found = Read(movielens_table(ratings, settings), 0, None, timed=True)
    return found, movielens_items(ratings) if settings.items.text.encoder else []


def movielens_items(ratings: MovieLens) -> list[CatalogueItem]:
    """Every film with its title."""
    return [CatalogueItem(item_key(item), item, title) for item, title in ratings.titles.items()]


def movielens_table(ratings: MovieLens, settings: Settings) -> Table:
    """The ratings as events of the kind `rating`, or of the first kind where there is none."""
    kinds = settings.events.kinds
    kind = kinds.index("rating") if "rating" in kinds else 0
    user_ids = [UserId(user) for user in ratings.user_ids.tolist()]
    item_ids = [ItemId(item) for item in ratings.item_ids.tolist()]
    kinds_of = np.full(len(ratings), kind, np.uint8)
    timestamp = ratings.timestamps * 1000
    features = Features(settings.model.context, kinds)
    return Table(
        keys_of(user_ids),
        keys_of(item_ids),
        kinds_of,
        timestamp,
        ratings.ratings,
        features.codes([None] * len(ratings), kinds_of, timestamp),
        user_ids,
        item_ids,
    )
