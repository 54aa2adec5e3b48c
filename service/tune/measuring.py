"""What settings are worth: the live model's figures over the stream, each event tested first."""

from collections.abc import Callable, Generator
from contextlib import closing

import numpy as np
import numpy.typing as npt
import torch

from service.backtest import partial
from service.backtest.engine import Engine
from service.backtest.prequential import part_ends, queries, slices
from service.backtest.scores import METRICS
from service.backtest.table import Table
from service.domain import Int64s
from service.errors import ConfigurationError
from service.model.item_tower import Described
from service.settings import Settings
from service.tune.options import TuneOptions
from service.tune.results import Comparison
from service.tune.space import Values, with_values

_PARTS = 10  # of what a trial counts: after each it may be ended early
_Z = 1.96  # 95 % of a normal distribution


class Measuring:
    """Trials see the stream up to `split` and count from `first`; the rest is to compare on."""

    def __init__(
        self,
        table: Table,
        settings: Settings,
        options: TuneOptions,
        device: torch.device,
        described: Described | None,
    ) -> None:
        """Raises ConfigurationError where there is too little to measure on."""
        self.split = int(len(table) * (1.0 - options.holdout_share))
        self.first = int(self.split * options.data.start)
        self._table = table
        self._settings = settings
        self._options = options
        self._device = device
        self._described = described
        asked = queries(table, settings, self.first)
        if not asked[: self.split].any() or not asked[self.split :].any():
            raise ConfigurationError(
                f"{len(table):,} events are too few to search and to compare on: one of the parts "
                "has no user with a history"
            )

    def fingerprint(self) -> str:
        """Of all that a trial's figure follows from, but for the values that are searched."""
        table, options = self._table.until(self.split), self._options
        made_for = partial.fingerprint([table], self._settings, options.data, self._described)
        return f"{made_for} {options.objective} {options.seed}"

    def objective(self, values: Values, tell: Callable[[int, float], None]) -> float:
        """Over what trials see. `tell` hears the number of each part and the mean so far, and may
        raise to end it."""
        table, found = self._table.until(self.split), np.zeros(0)
        with closing(self._ranks(table, values, self.first, _PARTS)) as parts:
            for part, ranks in enumerate(parts):
                found = np.concatenate([found, self._scores(ranks)])
                tell(part, _mean(found))
        return _mean(found)

    def compare(self, given: Values, tuned: Values) -> Comparison:
        """Both on what no trial saw, after learning all before it."""
        scores = []
        for values in (given, tuned):  # one model at a time is in memory
            with closing(self._ranks(self._table, values, self.split, 1)) as parts:
                scores.append(self._scores(next(parts)))
        gains = scores[1] - scores[0]
        spread = float(gains.std(ddof=1)) if len(gains) > 1 else 0.0
        return Comparison(
            queries=len(gains),
            given=_mean(scores[0]),
            tuned=_mean(scores[1]),
            gain=_mean(gains),
            margin=_Z * spread / len(gains) ** 0.5,
        )

    def _scores(self, ranks: Int64s) -> npt.NDArray[np.float64]:
        """The objective of each query."""
        metric = METRICS[self._options.objective]
        scores: npt.NDArray[np.float64] = metric(torch.from_numpy(ranks)).double().numpy()
        return scores

    def _ranks(
        self, table: Table, values: Values, first: int, parts: int
    ) -> Generator[Int64s, None, None]:
        """Of the queries from event `first` on, part by part: as `headwater backtest` ranks them
        with these values."""
        settings = with_values(self._settings, values)
        asked = queries(table, settings, first)
        ends = part_ends(first, len(table), parts)
        engine = Engine(settings, self._device, self._options.data.gate_every, self._described)
        try:
            ranks = []
            for start, end in slices(len(table), settings.batch, {first, *ends}):
                events = table.events(start, end, start)
                ranks.append(engine.score(events, asked[start:end]).ranks)
                if end in ends:
                    yield np.concatenate(ranks)
                    ranks = []
        finally:
            engine.close()


def _mean(scores: npt.NDArray[np.float64]) -> float:
    return float(scores.mean()) if len(scores) else 0.0
