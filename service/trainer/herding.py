"""Which of many sequences stand for all of them."""

import numpy as np

from service.domain import Float32s, Int64s


def herd(features: Float32s, count: int) -> Int64s:
    """Rows of `features` [rows, dim] whose mean is near the mean of all, chosen one by one.

    Herding (Welling, 2009) as iCaRL (Rebuffi et al., 2017) and ADER (Mi et al., 2020) choose what
    is replayed. No row is chosen twice; all are where there are not more than `count`.
    """
    rows = len(features)
    if rows <= count:
        return np.arange(rows)
    mean = features.mean(axis=0)
    chosen = np.zeros(count, np.int64)
    total = np.zeros_like(mean)
    free = np.ones(rows, np.bool_)
    for place in range(count):
        # The row that brings the mean of those chosen nearest to that of all.
        wanted = mean * (place + 1) - total
        distance = np.square(features - wanted).sum(axis=1)
        chosen[place] = np.where(free, distance, np.inf).argmin()
        free[chosen[place]] = False
        total += features[chosen[place]]
    return chosen
