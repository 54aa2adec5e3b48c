"""A run of the continual protocol over period files, by one engine."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from service.backtest.continual import (
    Ranks,
    asked_events,
    known_before,
    popular,
    queries,
    rank,
    ranks_of,
    test,
)
from service.backtest.engine import Engine
from service.backtest.options import Options
from service.backtest.preparing import require_queries
from service.backtest.prequential import slices
from service.backtest.progress import Progress
from service.backtest.results import Part, SeedResult, plain_decision
from service.backtest.retrain import retrain
from service.backtest.scores import COLD, Result, mean_of_results, result
from service.backtest.still import still
from service.backtest.table import Table, join
from service.domain import Bools, Int64s
from service.errors import ConfigurationError
from service.model.item_tower import Described
from service.settings import Settings
from service.state.features import keys_of
from service.tracking.curves import live_values
from service.tracking.tracker import UNTRACKED, Tracker
from service.trainer.holdout import HoldoutRows


@dataclass(frozen=True, slots=True)
class _Learned:
    """What it took to stream a period."""

    wall_s: float
    train_s: float  # of these


def run_continual(
    periods: Sequence[Table],
    settings: Settings,
    options: Options,
    device: torch.device,
    progress: Progress,
    described: Described | None = None,
    tracker: Tracker = UNTRACKED,
) -> SeedResult:
    """One seed. Blocks for as long as the periods take to learn. What is `described` of the
    items is known from the start."""
    run = _Run(periods, settings, options, device, progress, described, tracker)
    try:
        return run.result()
    finally:
        run.close()


class _Run:
    def __init__(
        self,
        periods: Sequence[Table],
        settings: Settings,
        options: Options,
        device: torch.device,
        progress: Progress,
        described: Described | None,
        tracker: Tracker,
    ) -> None:
        self._periods = periods
        self._known = list(known_before(periods))
        kinds = settings.events
        tested = zip(periods[1:], self._known[1:], strict=True)
        require_queries(any(len(asked_events(*one, kinds)) for one in tested), settings)
        self._counted = list(_counted(periods))
        self._starts = np.cumsum([0, *map(len, periods)])
        self._settings = settings
        self._options = options
        self._device = device
        self._progress = progress
        self._described = described
        self._engine = Engine(settings, device, options.gate_every, described, tracker)
        self._tracker = tracker

    def close(self) -> None:
        self._engine.close()

    def result(self) -> SeedResult:
        started_s = time.perf_counter()
        parts = []
        _, learned = self._stream(0, np.zeros(0, np.int64))
        start = self._engine.champion, still(self._engine.memory, self._settings.memory)
        for number in range(1, len(self._periods)):
            event = self._queries(number)
            rows = self._rows(number, event)
            self._progress.meanwhile(f"testing period {number}")
            started_test_s = time.perf_counter()
            live = test(self._engine, rows)
            test_s = time.perf_counter() - started_test_s
            ranks = {
                "live": live.live,
                "transformer": live.transformer,
                "memory": live.memory,
                "frozen": ranks_of(*start, rows, (None,))[0],
                **self._popular(number, event),
            }
            retrain_s = 0.0
            if self._options.retrain:
                found, retrain_s = self._retrained(number, rows)
                ranks |= {"retrain": found.live, "retrain_transformer": found.transformer}
            models = self._results(number, event, ranks, learned.train_s, retrain_s)
            wall_s = learned.wall_s
            if self._options.streamed:
                streamed, learned = self._stream(number, event)
                cold = self._is_cold(number, event)
                models["live_streamed"] = result(streamed, cold, learned.train_s)
            elif number < len(self._periods) - 1:
                _, learned = self._stream(number, event[:0])
            first, end = self._starts[number : number + 2].tolist()
            parts.append(
                Part(
                    name=f"period {number}",
                    events=(first + 1, end),
                    queries=len(event),
                    models=models,
                    learn_seconds=wall_s,
                    test_seconds=test_s,
                )
            )
            self._progress.part(_note(parts[-1]))
            of_live = models["live"]
            self._tracker.add(end, live_values(of_live.hr_at_10, of_live.ndcg_at_10))
        return SeedResult(
            seed=self._settings.model.seed,
            queries=sum(part.queries for part in parts),
            models={
                name: mean_of_results([part.models[name] for part in parts])
                for name in parts[0].models
            },
            parts=parts,
            decisions=[plain_decision(decision) for decision in self._engine.decisions],
            seconds=time.perf_counter() - started_s,
            train_seconds_before=dict.fromkeys(("live", "transformer"), 0.0),
            clicks={},  # what is shown belongs to a stream
        )

    def _queries(self, number: int) -> Int64s:
        """The events of a period that are queries; some of them, where that is wanted. These are
        the same for all seeds."""
        event = asked_events(self._periods[number], self._known[number], self._settings.events)
        limit = self._options.limit_queries
        if limit is None or limit >= len(event):
            return event
        chosen = np.random.default_rng(number).choice(len(event), limit, replace=False)
        return event[np.sort(chosen)]

    def _rows(self, number: int, event: Int64s) -> HoldoutRows:
        given = self._periods[number], self._known[number], self._settings.events
        model = self._settings.model
        rows = queries(*given, model.max_length, keys_of(model.context))
        return rows.take(np.flatnonzero(np.isin(asked_events(*given), event)))

    def _popular(self, number: int, event: Int64s) -> dict[str, Int64s]:
        """Ranks by how often items were met in the periods before."""
        kinds, scorer = self._settings.events, self._settings.scorer
        before, asked = self._periods[:number], self._periods[number].item[event]
        others = kinds.codes(kinds.not_done)
        items = np.concatenate([period.item[~np.isin(period.kind, others)] for period in before])
        return {
            "popularity": popular(items, math.inf, asked),
            "recent_popularity": popular(items, scorer.popularity_half_life_events, asked),
        }

    def _retrained(self, number: int, rows: HoldoutRows) -> tuple[Ranks, float]:
        """Ranks by a model that was taught all periods before this one anew, and the seconds
        that it took."""
        new = retrain(
            join(self._periods[:number]),
            self._settings,
            self._device,
            self._options.retrain_epochs,
            self._options.retrain_patience,
            self._engine.champion.blend.share,
            self._described,
            lambda: self._progress.meanwhile(f"retraining for period {number}"),
        )
        return rank(new.servable, new.memory, rows), new.seconds

    def _stream(self, number: int, event: Int64s) -> tuple[Int64s, _Learned]:
        """Let the engine learn a period as the service would; the ranks, just before each was
        learned, of the given events."""
        period, first = self._periods[number], int(self._starts[number])
        asked = np.zeros(len(period), np.bool_)
        asked[event] = True
        ranks = []
        started_s, trained_s = time.perf_counter(), self._engine.train_seconds
        for start, end in slices(len(period), self._settings.batch, set()):
            events = period.events(start, end, first + start)
            ranks.append(self._engine.score(events, asked[start:end]).ranks)
            done = first + end
            self._progress.advance(done, int(self._starts[-1]), f"learning period {number}")
        self._engine.catch_up()
        learned = _Learned(time.perf_counter() - started_s, self._engine.train_seconds - trained_s)
        found = np.concatenate(ranks)
        if len(found) != len(event):
            raise ConfigurationError(
                f"{len(event) - len(found)} sessions of period {number} were forgotten while they "
                "went on: raise history.users, or history.events where much is turned down"
            )
        return found[np.searchsorted(np.sort(event), event)], learned

    def _results(
        self,
        number: int,
        event: Int64s,
        ranks: Mapping[str, Int64s],
        train_s: float,
        retrain_s: float,
    ) -> dict[str, Result]:
        cold = self._is_cold(number, event)
        live, retrain = ("live", "transformer"), ("retrain", "retrain_transformer")
        spent = dict.fromkeys(live, train_s) | dict.fromkeys(retrain, retrain_s)
        return {name: result(found, cold, spent.get(name, 0.0)) for name, found in ranks.items()}

    def _is_cold(self, number: int, event: Int64s) -> Bools:
        """Whether the periods before had few events of the item."""
        keys, counts = self._counted[number]
        item = self._periods[number].item[event]
        cold: Bools = counts[np.searchsorted(keys, item)] < COLD
        return cold


def _counted(periods: Sequence[Table]) -> Iterator[tuple[Int64s, Int64s]]:
    """Of the periods before each: item keys, rising, and their events."""
    items = np.zeros(0, np.int64)
    for period in periods:
        yield np.unique(items, return_counts=True)
        items = np.concatenate([items, period.item])


def _note(part: Part) -> str:
    told = [
        f"{name} Recall@20 {model.recall_at_20:.4f}, MRR@20 {model.mrr_at_20:.4f}"
        for name, model in part.models.items()
        if name in ("live", "live_streamed", "retrain")
    ]
    taken = f"learned in {part.learn_seconds:.0f} s, tested in {part.test_seconds:.0f} s"
    if "retrain" in part.models:
        taken += f", retrained in {part.models['retrain'].train_seconds:.0f} s"
    return f"{part.name}: {'; '.join(told)}; {taken}"
