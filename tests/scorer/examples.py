"""Servables with random weights, and decoded events."""

from collections.abc import Sequence

import numpy as np
import torch

from service.domain import (
    Events,
    ItemId,
    Offset,
    Partition,
    UserId,
    Version,
    item_key,
    no_codes,
    user_key,
)
from service.model.mixture import Blend
from service.model.recommender import unit_rows
from service.model.vocabulary import Vocabulary
from service.registry.servable import Servable
from service.settings import ClickSettings
from tests.model.examples import a_recommender

MODEL_ALONE = Blend(0.07, 1.0)


def a_servable(ids: Sequence[ItemId], version: int = 1, blend: Blend = MODEL_ALONE) -> Servable:
    model = a_recommender(len(ids))
    with torch.inference_mode():
        table = unit_rows(model.items.weight)
    vocabulary = Vocabulary((ItemId(""), *ids))
    through = {Partition(0): Offset(0)}
    return Servable(Version(version), 0, through, model, vocabulary, table, blend)


def a_reordering_champion(ids: Sequence[ItemId], rerank: float) -> Servable:
    """One whose click head would turn the order of its best items around."""
    plain = a_servable(ids, blend=Blend(0.07, 0.5, rerank=rerank, candidates=8))
    plain.model.fit_click_head(ClickSettings(enabled=True))
    head = plain.model.click
    assert head is not None
    torch.nn.init.constant_(head.weight, -10.0)
    head.begin(np.array([0, 1], np.float32))
    return plain


def events_of(
    users: Sequence[int], items: Sequence[ItemId], partitions: Sequence[int] | None = None
) -> Events:
    count = len(users)
    user_ids = [UserId(f"user-{number}") for number in users]
    number = np.arange(count, dtype=np.int64)
    return Events(
        partition=np.array(partitions or [0] * count, np.int32),
        offset=number,
        user=np.array([user_key(user) for user in user_ids], np.int64),
        item=np.array([item_key(item) for item in items], np.int64),
        kind=np.zeros(count, np.uint8),
        timestamp=number,
        appended=number,
        value=np.full(count, np.nan, np.float32),
        codes=no_codes(count),
        user_ids=user_ids,
        item_ids=list(items),
        event_ids=[None] * count,
        traces=[None] * count,
    )
