"""Which items keep their rows: the decision, without a clock or a table."""

import numpy as np

from service.domain import Bools, Int64s
from service.model.vocabulary import NO_ROW
from service.settings import ItemsSettings


def kept_rows(met: Int64s, named: Bools, settings: ItemsSettings, now_ms: int) -> Int64s:
    """The rows that go on into the next version, rising; row 0, which is no item, among them.

    met [rows] is when each row's item was last met. What the catalogue has `named` [rows] does not
    age, but is no exception where there are too many: then those that were met longest ago go.
    """
    alive = np.ones(len(met), np.bool_)
    if settings.expire_after_s is not None:
        alive = named | (met >= now_ms - settings.expire_after_s * 1000)
    alive[NO_ROW] = False
    items = np.flatnonzero(alive)
    newest = items[np.argsort(-met[items], kind="stable")[: settings.max_rows]]
    return np.append(NO_ROW, np.sort(newest))
