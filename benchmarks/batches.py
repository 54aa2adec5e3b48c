"""Batches of events of random users, as the scorer gets them."""

import time

import numpy as np

from service.domain import Events, ItemId, Partition, UserId, item_key, no_codes, user_key

BATCH = 64  # also the largest that a version is warmed with
PARTITION = Partition(0)


def common_item(number: int) -> ItemId:
    return ItemId(f"common-{number}")


def user(number: int) -> UserId:
    return UserId(f"user-{number}")


def random_batch(random: np.random.Generator, offset: int, users: int, items: int) -> Events:
    """One batch from `offset` on, of the first so many users and common items."""
    user_ids = [user(number) for number in random.integers(users, size=BATCH).tolist()]
    item_ids = [common_item(number) for number in random.integers(items, size=BATCH).tolist()]
    now_ms = time.time_ns() // 1_000_000
    return Events(
        partition=np.full(BATCH, PARTITION, np.int32),
        offset=np.arange(offset, offset + BATCH),
        user=np.array([user_key(one) for one in user_ids], np.int64),
        item=np.array([item_key(one) for one in item_ids], np.int64),
        kind=np.zeros(BATCH, np.uint8),
        timestamp=np.full(BATCH, now_ms, np.int64),
        appended=np.full(BATCH, now_ms, np.int64),
        value=np.full(BATCH, np.nan, np.float32),
        codes=no_codes(BATCH),
        user_ids=user_ids,
        item_ids=item_ids,
        event_ids=[None] * BATCH,
        traces=[None] * BATCH,
    )
