"""Made-up events of MovieLens-100K's size, with something to learn in them.

Seven of ten events are the item that follows the user's last one in a fixed order, the others
are drawn by a power law: a version that learned is better than one that did not, so that the
gate promotes as it would for real users.
"""

import time

import numpy as np
import orjson

from service.domain import Int64s

ITEMS = 1_682
USERS = 943
_FOLLOWS = 0.7


class Shoppers:
    """Endless events; the same seed gives the same users and items in the same order."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._next_item = self._random.permutation(ITEMS)
        self._last = self._random.integers(ITEMS, size=USERS)
        share = 1.0 / np.arange(1, ITEMS + 1)
        self._share = share / share.sum()
        self._made = 0

    def draw(self, count: int) -> tuple[Int64s, Int64s]:
        """Users and items of the next events."""
        users = self._random.integers(USERS, size=count)
        drawn = self._random.choice(ITEMS, size=count, p=self._share)
        follows = self._random.random(count) < _FOLLOWS
        items = np.empty(count, np.int64)
        for i, user in enumerate(users.tolist()):
            items[i] = self._next_item[self._last[user]] if follows[i] else drawn[i]
            self._last[user] = items[i]
        return users, items

    def records(self, count: int) -> list[tuple[str, bytes, bytes]]:
        """Event id, key and value of the next events, dated now."""
        users, items = self.draw(count)
        now_ms = time.time_ns() // 1_000_000
        made = []
        for user, item in zip(users.tolist(), items.tolist(), strict=True):
            event_id = f"e{self._made}"
            self._made += 1
            event = {
                "user_id": f"user-{user}",
                "item_id": item_name(item),
                "event": "click",
                "timestamp": now_ms,
                "event_id": event_id,
            }
            made.append((event_id, str(event["user_id"]).encode(), orjson.dumps(event)))
        return made


def item_name(item: int) -> str:
    return f"item-{item}"
