"""The prequential protocol: every event is ranked by all before anything has learned it.

A query is an event whose user has a history. Metrics are counted from a place in the stream
on; there the frozen contestant gets a copy of the live model, which never changes after.
"""

import math
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from service.backtest.clicks import ClickFigures, click_figures, click_rates, labels
from service.backtest.contestants import (
    Contestant,
    Follower,
    Live,
    Popular,
    empty_servable,
)
from service.backtest.engine import Engine
from service.backtest.options import Options
from service.backtest.preparing import require_queries
from service.backtest.progress import Progress
from service.backtest.results import Part, SeedResult, plain_decision
from service.backtest.retrain import retrain, room
from service.backtest.scores import COLD, Result, Score, result, score
from service.backtest.still import still
from service.backtest.table import Table
from service.domain import Bools, Int64s, earlier
from service.model.item_tower import Described
from service.model.memory import Memory
from service.settings import BatchSettings, Settings
from service.state.histories import SLACK, require_room
from service.tracking.curves import live_values
from service.tracking.tracker import UNTRACKED, Tracker

_SLABS = 4  # of the live model, its weights alone, the memory and the frozen start
_LATELY = 20  # batches that the progress bar and the curve look back


@dataclass(frozen=True, slots=True)
class _Mark:
    """How much was spent when the stream had come so far."""

    event: int
    wall_s: float
    train_s: dict[str, float]


def run_prequential(
    table: Table,
    settings: Settings,
    options: Options,
    device: torch.device,
    progress: Progress,
    described: Described | None = None,
    tracker: Tracker = UNTRACKED,
) -> SeedResult:
    """One seed. Blocks for as long as the stream takes to learn. What is `described` of the
    items is known from the start."""
    run = _Run(table, settings, options, device, progress, described, tracker)
    try:
        for done in run.stream():
            lately = run.lately()
            note = f"live NDCG@10 {lately.ndcg_at_10:.4f}"
            progress.advance(done, len(table), note)
            if lately.queries:
                tracker.add(done, live_values(lately.hr_at_10, lately.ndcg_at_10))
            if done in run.ends:
                progress.part(note)
        return run.result()
    finally:
        run.close()


def queries(table: Table, settings: Settings, first: int) -> Bools:
    """Which events are ranked: those that the service answers, of users with a history, and by
    which nothing was turned down."""
    kinds = settings.events
    asked = np.zeros(len(table), np.bool_)
    there = np.flatnonzero(~np.isin(table.kind, kinds.codes(kinds.shown)))
    turned_down = np.isin(table.kind[there], kinds.codes(kinds.negative))
    # What was turned down takes a place in the history too, and may have pushed all else out.
    places = _places_since(table.user[there], ~turned_down)
    asked[there] = (places < settings.history.events) & ~turned_down
    asked &= np.isin(table.kind, kinds.codes(kinds.answered))
    asked[:first] = False
    return asked


def _places_since(user: Int64s, counts: Bools) -> Int64s:
    """How many events back each user's last one stands that `counts`, from 1; where there is none,
    more than there are events."""
    places, met, last = np.empty(len(user), np.int64), dict[int, int](), dict[int, int]()
    for row, (one, is_counted) in enumerate(zip(user.tolist(), counts.tolist(), strict=True)):
        met[one] = met.get(one, 0) + 1
        places[row] = met[one] - last[one] if one in last else len(user) + 1
        if is_counted:
            last[one] = met[one]
    return places


def part_ends(first: int, end: int, parts: int) -> list[int]:
    """Where each of the parts of these events ends."""
    ends = np.unique(np.linspace(first, end, parts + 1).astype(int))
    found: list[int] = ends[ends > first].tolist()
    return found


def slices(events: int, batch: BatchSettings, cuts: Set[int]) -> Iterator[tuple[int, int]]:
    """From and to: as many events as are scored at once, and never across one of the cuts or the
    end of a micro-batch."""
    ends = {*range(0, events, batch.score_max_events), *range(0, events, batch.train_max_events)}
    yield from pairwise(sorted({0, events, *cuts, *ends}))


class _Run:
    def __init__(
        self,
        table: Table,
        settings: Settings,
        options: Options,
        device: torch.device,
        progress: Progress,
        described: Described | None = None,
        tracker: Tracker = UNTRACKED,
    ) -> None:
        self._table = table
        self._settings = settings
        self._options = options
        self._device = device
        self._first = int(len(table) * options.start)
        self._asked = queries(table, settings, self._first)
        require_queries(bool(self._asked.any()), settings)
        self._progress = progress
        self._described = described
        retrains = options.retrain_every is not None
        require_room(
            settings.history,
            slabs=_SLABS + retrains,
            features=len(settings.model.context),
            beside=room(table, settings) if retrains else 0,
        )
        self._engine = Engine(settings, device, options.gate_every, described, tracker)
        empty = empty_servable(settings)
        self._transformer = Follower(settings, empty, None)
        self._frozen = Follower(settings, empty, None)
        self._retrained = Follower(settings, empty, None) if options.retrain_every else None
        half_life = settings.scorer.popularity_half_life_events
        contestants: dict[str, Contestant | None] = {
            "live": Live(self._engine),
            "transformer": self._transformer,
            "memory": Follower(settings, empty, Memory(settings.memory)),
            "frozen": self._frozen,
            "popularity": Popular(math.inf, settings),
            "recent_popularity": Popular(half_life, settings),
            "retrain": self._retrained,
        }
        self._contestants = {name: one for name, one in contestants.items() if one}
        self._ranks: dict[str, list[Int64s]] = {name: [] for name in self._contestants}
        self._retrain_s = 0.0
        self.ends = part_ends(self._first, len(table), options.parts)
        every = options.retrain_every or len(table)
        self._retrain_at = set(range(self._first, len(table), every)) - {0}
        self._marks: list[_Mark] = []
        self._started_s = time.perf_counter()

    def close(self) -> None:
        for contestant in self._contestants.values():
            contestant.close()

    def stream(self) -> Iterator[int]:
        """Rank and learn a few events at a time; gives how many are done."""
        for start, end in self._slices():
            if start == self._first:
                self._mark(start)
                self._frozen.use(
                    self._engine.champion, still(self._engine.memory, self._settings.memory)
                )
            if self._retrained and start in self._retrain_at:
                self._retrain(self._retrained, start)
            # As of now: the engine may promote another at the end of this round.
            self._transformer.use(self._engine.champion, None)
            events = self._table.events(start, end, start)
            for name, contestant in self._contestants.items():
                self._ranks[name].append(contestant.rank(events, self._asked[start:end]))
            self._engine.learn_if_due()
            if end in self.ends:
                self._mark(end)
            yield end

    def _slices(self) -> Iterator[tuple[int, int]]:
        """As many events as are scored at once, cut where something is done in between. Of a user
        no more than the histories hold beside what is read of them."""
        cuts = {self._first, *self.ends, *self._retrain_at}
        for start, end in slices(len(self._table), self._settings.batch, cuts):
            _, counts = np.unique(self._table.user[start:end], return_counts=True)
            step = SLACK if counts.max() > SLACK else end - start
            yield from pairwise([*range(start, end, step), end])

    def _retrain(self, contestant: Follower, end: int) -> None:
        options = self._options
        taught = self._table.until(end)
        found = retrain(
            taught,
            self._settings,
            self._device,
            options.retrain_epochs,
            options.retrain_patience,
            self._engine.champion.blend.share,
            self._described,
            lambda: self._progress.meanwhile(f"retraining on {end:,} events"),
        )
        self._retrain_s += found.seconds
        contestant.use(found.servable, still(found.memory, self._settings.memory))

    def _mark(self, event: int) -> None:
        self._marks.append(_Mark(event, time.perf_counter(), self._train_s()))

    def _train_s(self) -> dict[str, float]:
        """Spent on weights until now. Memory and popularity have none."""
        spent = dict.fromkeys(self._contestants, 0.0)
        spent |= dict.fromkeys(("live", "transformer"), self._engine.train_seconds)
        if self._retrained:
            spent["retrain"] = self._retrain_s
        return spent

    def lately(self) -> Score:
        """How the live model has done of late."""
        return score(np.concatenate(self._ranks["live"][-_LATELY:]))

    def result(self) -> SeedResult:
        asked = np.flatnonzero(self._asked)
        cold = (earlier(self._table.item) < COLD)[asked]
        ranks = {name: np.concatenate(found) for name, found in self._ranks.items()}
        first, last = self._marks[0], self._marks[-1]

        def results(start: _Mark, end: _Mark) -> dict[str, Result]:
            rows = slice(*np.searchsorted(asked, [start.event, end.event]).tolist())
            return {
                name: result(found[rows], cold[rows], end.train_s[name] - start.train_s[name])
                for name, found in ranks.items()
            }

        return SeedResult(
            seed=self._settings.model.seed,
            queries=len(asked),
            models=results(first, last),
            parts=[
                Part(
                    name=f"events {start.event + 1:,} to {end.event:,}",
                    events=(start.event + 1, end.event),
                    queries=int(self._asked[start.event : end.event].sum()),
                    models=results(start, end),
                    learn_seconds=end.wall_s - start.wall_s,
                    test_seconds=0.0,
                )
                for start, end in pairwise(self._marks)
            ],
            decisions=[plain_decision(decision) for decision in self._engine.decisions],
            seconds=time.perf_counter() - self._started_s,
            train_seconds_before=first.train_s,
            clicks=self._clicks() if self._settings.click.enabled else {},
        )

    def _clicks(self) -> dict[str, ClickFigures]:
        """What was expected of the counted events that have a label: by the live head, and by the
        share of clicks that each item had so far."""
        label, settings = labels(self._table, self._settings), self._settings
        live = np.concatenate(self._engine.expected)
        rate = click_rates(self._table, label, settings)
        return {
            name: click_figures(expected[self._first :], label[self._first :], settings)
            for name, expected in (("live", live), ("popularity", rate))
        }
