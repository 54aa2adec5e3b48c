"""The popularity baselines, against a count in plain Python."""

import math
from collections import deque

import numpy as np
import pytest

from service.backtest.contestants import Popular
from service.backtest.table import Table
from service.model.ranking import MISSED
from service.settings import Settings
from tests.backtest.examples import quick_settings, table_of, walks


def by_counting(table: Table, half_life: float, remembered: int, exclude_seen: bool) -> list[int]:
    counts: dict[str, float] = {}
    seen: dict[str, deque[str]] = {}
    ranks = []
    for place, (user, item) in enumerate(zip(table.user_ids, table.item_ids, strict=True)):
        hidden = seen.setdefault(user, deque(maxlen=remembered)) if exclude_seen else deque()
        if item in hidden or item not in counts:
            ranks.append(MISSED)
        else:
            ranks.append(
                sum(
                    count >= counts[item] * (1 - 1e-12)
                    for other, count in counts.items()
                    if other not in hidden
                )
            )
        if exclude_seen:
            hidden.append(item)
        counts[item] = counts.get(item, 0.0) + 2 ** (place / half_life)
    return ranks


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("half_life", [math.inf, 7.0])
def test_popularity_is_a_decayed_count(half_life: float, exclude_seen: bool) -> None:
    settings: Settings = quick_settings()
    scorer = settings.scorer.model_copy(update={"exclude_seen": exclude_seen})
    settings = settings.model_copy(update={"scorer": scorer})
    table = walks(200)
    popular = Popular(half_life, settings)
    found = [
        rank
        for start in range(0, 200, 30)
        for rank in popular.rank(
            table.events(start, start + 30, start),
            np.ones(len(table.user[start : start + 30]), bool),
        ).tolist()
    ]
    assert found == by_counting(table, half_life, settings.history.events, exclude_seen)


def test_counts_survive_many_half_lives_and_items() -> None:
    table = table_of([("u", f"item-{number % 1500}") for number in range(3000)])
    popular = Popular(2.0, quick_settings())
    popular.rank(table.events(0, 3000, 0), np.zeros(3000, bool))
    last = table_of([("v", "item-1499"), ("v", "item-0")]).events(0, 2, 3000)
    assert popular.rank(last, np.ones(2, bool)).tolist() == [1, 1499]


def test_what_a_user_turned_down_competes_no_more() -> None:
    """As in the service, also where what was seen may be shown again."""
    settings = quick_settings()
    events = settings.events.model_copy(
        update={"kinds": ("view", "return"), "negative": ("return",)}
    )
    scorer = settings.scorer.model_copy(update={"exclude_seen": False})
    settings = settings.model_copy(update={"events": events, "scorer": scorer})
    table = table_of([("b", "x"), ("b", "x"), ("b", "y"), ("a", "x"), ("a", "y")])
    asked = np.array([False] * 4 + [True])
    found = []
    for kind in ("view", "return"):
        table.kind[3] = events.kinds.index(kind)
        found += Popular(math.inf, settings).rank(table.events(0, 5, 0), asked).tolist()
    assert found == [2, 1]
