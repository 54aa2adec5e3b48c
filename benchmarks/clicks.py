"""AUC of the click head beside item popularity and a logistic regression, split in time.

The head is the service's own, which predicts every labelled event before it learns from it. The
regression is fitted to the first half of the events; all three are measured on the second.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from benchmarks.rows import Row, make_row
from benchmarks.scale import Scale
from service.backtest.clicks import click_rates, labels
from service.backtest.engine import Engine
from service.backtest.options import Columns, Protocol, TimeUnit
from service.backtest.preparing import prepared
from service.backtest.reading import read
from service.backtest.table import Table, keys_of
from service.domain import Float32s, Int64s, ItemId, UserId, earlier, no_codes
from service.model.click_metrics import auc
from service.settings import ClickSettings, EventsSettings, Settings
from service.trainer.device import choose_threads

REES46 = Path("../shared/data/rees46-sample/interactions.tsv.gz")
_USERS, _ITEMS, _TASTES = 300, 120, 6
_PENALTY = 1e-3
# Of the sample all but the first twentieth lies within half an hour: labels must come sooner.
_WITHIN_S = 300.0


@dataclass(frozen=True, slots=True)
class Case:
    """Events, and how they are labelled."""

    name: str
    table: Table
    settings: Settings


def click_rows(scale: Scale) -> list[Row]:
    """Three rows a case. The sample of rees46 is left out, with a word, where it is not there."""
    torch.set_num_threads(choose_threads(0))
    cases = [generated(scale.click_events)]
    if REES46.exists():
        cases.append(rees46(scale.click_events))
    else:
        print(f"clicks/rees46 is left out: there is no {REES46}")
    return [row for case in cases for row in _rows(case)]


def generated(events: int, seed: int = 0) -> Case:
    """Users who view items of their taste, and are shown any: they click more on what is to their
    taste, and on what is liked by all."""
    random = np.random.default_rng(seed)
    user = random.integers(0, _USERS, events)
    shown = random.random(events) < 0.5
    anything = random.integers(0, _ITEMS, events)
    liked = anything // _TASTES * _TASTES + user % _TASTES  # of the user's taste
    item = np.where(shown, anything, liked)
    logit = -2.5 + 2.5 * (item % _TASTES == user % _TASTES) + random.normal(0, 0.7, _ITEMS)[item]
    clicked = random.random(events) < 1 / (1 + np.exp(-logit))
    user_ids = [UserId(f"user-{number}") for number in user]
    item_ids = [ItemId(f"item-{number}") for number in item]
    kinds = EventsSettings().kinds
    table = Table(
        user=keys_of(user_ids),
        item=keys_of(item_ids),
        kind=np.where(shown, kinds.index("impression"), kinds.index("view")).astype(np.uint8),
        timestamp=1000 * np.arange(events, dtype=np.int64),
        value=np.where(shown, clicked, np.nan).astype(np.float32),
        codes=no_codes(events),
        user_ids=user_ids,
        item_ids=item_ids,
    )
    return Case("generated", table, Settings(click=ClickSettings(enabled=True)))


def rees46(events: int) -> Case:
    """Views, of which those are clicks that lead to the cart or a purchase."""
    settings = Settings(
        events=EventsSettings(kinds=("view", "cart", "purchase")),
        click=ClickSettings(
            enabled=True, kinds=("view",), followed_by=("cart", "purchase"), within_s=_WITHIN_S
        ),
    )
    columns = Columns(time_unit=TimeUnit.SECONDS)
    return Case("rees46", read(REES46, columns, settings.events).table.until(events), settings)


def _rows(case: Case) -> list[Row]:
    table = case.table
    settings, _ = prepared(case.settings, [table], Protocol.PREQUENTIAL)
    label = labels(table, settings)
    rate = click_rates(table, label, settings)
    rows = np.flatnonzero(np.isfinite(label))
    late = rows >= len(table) // 2
    test, clicked = rows[late], label[rows[late]] > 0
    features = _features(table, rate, rows)
    waits_ms = settings.click.within_s * 1000 if settings.click.followed_by else 0.0
    known = table.timestamp[rows] + waits_ms < table.timestamp[len(table) // 2]
    regression = _regression(features[known], label[rows[known]], features[late])
    head = auc(_head(table, settings)[test], clicked)
    return [
        make_row(f"clicks/{case.name}/auc", [head], "AUC", name, [auc(other, clicked)])
        for name, other in (("popularity", rate[test]), ("logistic regression", regression))
    ]


def _head(table: Table, settings: Settings) -> Float32s:
    """What the live head expects of every event before it learns from it."""
    engine = Engine(settings, torch.device("cpu"), gate_every=1)
    size = settings.batch.score_max_events
    try:
        for start in range(0, len(table), size):
            events = table.events(start, start + size, start)
            engine.score(events, np.zeros(len(events), np.bool_))
        return np.concatenate(engine.expected)
    finally:
        engine.close()


def _features(table: Table, rate: Float32s, rows: Int64s) -> Float32s:
    """What is commonly known of an item and a user before an event. [rows, features]"""
    pair = table.user * 31 + table.item
    price = np.maximum(np.nan_to_num(table.value), 1.0)  # 1 where the value is the label
    columns = (
        rate[rows],
        np.log1p(earlier(table.item))[rows],
        np.log1p(earlier(table.user))[rows],
        np.log1p(earlier(pair))[rows],
        np.log(price)[rows],
    )
    return np.stack(columns, axis=1).astype(np.float32)


def _regression(known: Float32s, label: Float32s, asked: Float32s) -> Float32s:
    """Fitted by L-BFGS with a small L2 penalty; its logits for what is asked."""
    middle, scale = known.mean(axis=0), known.std(axis=0) + 1e-6
    inputs, target = torch.from_numpy((known - middle) / scale), torch.from_numpy(label)
    weight = torch.zeros(inputs.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = inputs @ weight[:-1] + weight[-1]
        value = functional.binary_cross_entropy_with_logits(logits, target)
        value = value + _PENALTY * weight[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        found: Float32s = (
            torch.from_numpy((asked - middle) / scale) @ weight[:-1] + weight[-1]
        ).numpy()
    return found
