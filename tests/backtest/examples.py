"""Small tables of events, and settings under which they are learned in a second."""

from collections.abc import Sequence

import numpy as np

from service.backtest.table import Table, keys_of
from service.domain import ItemId, UserId, no_codes
from service.settings import BatchSettings, Settings
from tests.trainer.examples import quick_training, small_settings


def table_of(events: Sequence[tuple[str, str]], first_ms: int = 0) -> Table:
    """Events of (user, item), a second apart."""
    user_ids = [UserId(user) for user, _ in events]
    item_ids = [ItemId(item) for _, item in events]
    count = len(events)
    return Table(
        keys_of(user_ids),
        keys_of(item_ids),
        np.zeros(count, np.uint8),
        first_ms + 1000 * np.arange(count, dtype=np.int64),
        np.full(count, np.nan, np.float32),
        no_codes(count),
        user_ids,
        item_ids,
    )


def walks(events: int, seed: int = 0, users: int = 12, items: int = 30) -> Table:
    """Users who mostly go to the next item, and sometimes leap."""
    random = np.random.default_rng(seed)
    place = random.integers(0, items, users)
    found = []
    for user in random.integers(0, users, events).tolist():
        leap = random.integers(0, items) if random.random() < 0.2 else 0
        place[user] = (place[user] + 1 + leap) % items
        found.append((f"user-{user}", f"item-{place[user]}"))
    return table_of(found)


def periods(count: int, sessions: int = 30, items: int = 15) -> list[Table]:
    """Sessions that walk; every period brings two new items, and dates on from the one before."""
    random = np.random.default_rng(1)
    found: list[Table] = []
    for number in range(count):
        size = items + 2 * number
        events = [
            (f"{number}/{session}", f"item-{(start + step) % size}")
            for session in range(sessions)
            for start in [int(random.integers(0, size))]
            for step in range(int(random.integers(1, 7)))
        ]
        found.append(table_of(events, first_ms=1000 * sum(map(len, found))))
    return found


def quick_settings() -> Settings:
    """With a gate that lets everything pass: so few events decide nothing."""
    trainer = quick_training()
    trainer = trainer.model_copy(
        update={"gate": trainer.gate.model_copy(update={"tolerance": 1.0})}
    )
    return small_settings(trainer).model_copy(
        update={"batch": BatchSettings(score_max_events=16, train_max_events=32)}
    )
