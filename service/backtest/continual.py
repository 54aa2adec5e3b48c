"""The continual protocol: learn period t - 1, be tested on period t, carry everything over.

As in ADER (Mi et al., RecSys 2020). Before a test, clicks on items that no earlier period has
are dropped, then sessions with fewer than two clicks left. Every prefix of every session is one
query, ranked against all items met so far with nothing filtered, ties against the model.
Neither weights nor memory learn from a period before all of it is scored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from service.backtest.engine import Engine
from service.backtest.table import Table
from service.domain import NO_KEY, Int64s, earlier
from service.model.memory import Memory
from service.model.mixture import Mixture, ranks
from service.model.ranking import MISSED
from service.registry.servable import Servable
from service.settings import EventsSettings
from service.state.features import gap_codes, gap_place
from service.trainer.evaluation import Questions, questions, recalled
from service.trainer.holdout import HoldoutRows
from service.trainer.reranking import ranks_reordered


@dataclass(frozen=True, slots=True)
class Ranks:
    """Of every query of a period, by model. [queries] each"""

    live: Int64s  # the mixture as it is served
    transformer: Int64s  # its weights alone
    memory: Int64s


def asked_events(period: Table, known: Int64s, kinds: EventsSettings) -> Int64s:
    """The events of a period that are queries, session after session."""
    return _asked(period, known, kinds)[0]


def queries(
    period: Table,
    known: Int64s,
    kinds: EventsSettings,
    length: int,
    features: Sequence[str] = (),
) -> HoldoutRows:
    """The test rows of a period, in the same order. `known` are the keys of the items met
    before it, `features` those of its codes."""
    event, order, place, asked = _asked(period, known, kinds)
    item = period.item[order]
    before = asked[:, None] - place[asked, None] + np.arange(length)  # [queries, length]
    before = before + np.maximum(place[asked] - length, 0)[:, None]
    inside = before < asked[:, None]
    at = np.minimum(before, len(item) - 1)
    context = np.where(inside, item[at], NO_KEY)
    codes, gap = period.codes[order], gap_place(features)
    if gap is not None:
        time = period.timestamp[order]
        codes[:, gap] = gap_codes(time, np.roll(time, 1), place == 0)
    codes = np.where(inside[..., None], codes[at], 0)
    return HoldoutRows(
        context,
        codes,
        period.user[event],
        period.item[event],
        np.zeros_like(event),
        period.kind[event],
    )


def _asked(
    period: Table, known: Int64s, kinds: EventsSettings
) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """The queries' events; the kept events, session after session; the place of each of these in
    its session; and which of these the queries are. What users were shown, or turned down, is
    neither kept nor asked for."""
    others = kinds.codes(kinds.not_done)
    kept = np.flatnonzero(np.isin(period.item, known) & ~np.isin(period.kind, others))
    order = kept[np.argsort(period.user[kept], kind="stable")]
    place = earlier(period.user[order])
    answered = np.isin(period.kind[order], kinds.codes(kinds.answered))
    asked = np.flatnonzero((place > 0) & answered)
    return order[asked], order, place, asked


def test(engine: Engine, rows: HoldoutRows) -> Ranks:
    """Rank the queries by what serves now."""
    return rank(engine.champion, engine.memory, rows)


def rank(servable: Servable, memory: Memory | None, rows: HoldoutRows) -> Ranks:
    """Rank the queries by a version and a memory."""
    return Ranks(*ranks_of(servable, memory, rows, (None, 1.0, 0.0)))


@torch.inference_mode()
def ranks_of(
    servable: Servable, memory: Memory | None, rows: HoldoutRows, shares: Sequence[float | None]
) -> list[Int64s]:
    """The queries' ranks under each share of the model, 1 and 0 also where one knows nothing, which
    is otherwise left to the other; None is the version as it serves."""
    found: list[list[torch.Tensor]] = [[torch.zeros(0, dtype=torch.int64)] for _ in shares]
    told = recalled(memory, rows)
    for asked in questions(servable.model, servable.vocabulary, rows, told, exclude_seen=False):
        mixed = asked.mixture(servable.blend)
        for share, parts in zip(shares, found, strict=True):
            if share is None:
                parts.append(_as_served(servable, asked, mixed).cpu())
            else:
                alone = replace(mixed, share=torch.full_like(mixed.share, share))
                parts.append(ranks(alone, asked.target).cpu())
    return [torch.cat(parts).numpy() for parts in found]


def _as_served(servable: Servable, asked: Questions, mixed: Mixture) -> torch.Tensor:
    """The ranks [rows] in the order in which a scorer shows items."""
    head, blend = servable.model.click, servable.blend
    if head is None or not blend.rerank:
        return ranks(mixed, asked.target)
    (found,) = ranks_reordered(
        asked, mixed, head, servable.vocabulary, blend.candidates, (blend.rerank,)
    )
    return found


def popular(items: Int64s, half_life_events: float, asked: Int64s) -> Int64s:
    """The ranks of the `asked` items among those of the events so far, each of which weighs half as
    much a half-life later."""
    keys, place = np.unique(items, return_inverse=True)
    age = np.arange(len(items))[::-1]
    counts = np.bincount(place, np.exp2(-age / half_life_events), minlength=len(keys))
    row = np.searchsorted(keys, asked).clip(max=max(len(keys) - 1, 0))
    known = np.isin(asked, keys)
    wanted = counts[row[known]]
    ranks = np.full(len(asked), MISSED)
    ranks[known] = len(keys) - np.searchsorted(np.sort(counts), wanted)
    return ranks


def known_before(periods: Sequence[Table]) -> Iterator[Int64s]:
    """The item keys of all periods before each."""
    known = np.zeros(0, np.int64)
    for period in periods:
        yield known
        known = np.union1d(known, period.item)
