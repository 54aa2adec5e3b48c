"""A search over MovieLens-100K, without a file of events."""

from dataclasses import replace

from service.sandbox.movielens_backtest import MOVIELENS, movielens
from service.settings import Settings
from service.tune.command import tune
from service.tune.options import TuneOptions


def tune_movielens(options: TuneOptions, settings: Settings) -> int:
    """With the films' titles where an encoder is set. Raises ConfigurationError where the data is
    absent."""
    found, items = movielens(settings)
    data = replace(options.data, files=(MOVIELENS,))
    return tune(found, replace(options, data=data), settings, items)
