"""One run of the command as plain data: reports/backtest.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from service.backtest.clicks import ClickFigures
from service.backtest.options import Options
from service.backtest.outputs import writing
from service.backtest.preparing import Override
from service.backtest.results import Part, SeedResult
from service.backtest.scores import METRICS, Plain, Result, Score, spread
from service.settings import Settings, masked

# What a backtest follows from; the others are of Kafka, disks and ports.
SECTIONS = ("events", "history", "batch", "model", "items", "memory", "click", "trainer", "scorer")


class Data(Plain):
    """What was read."""

    files: list[str]  # names, without folders
    events: int
    users: int
    items: int
    bad_rows: int
    first_bad_row: str | None
    repeated_rows: int  # left out, by their event_id
    timed: bool  # False: in the order of the file, without times
    without_effect: list[str]  # what the settings ask for and the files have nothing of


class SummaryScore(Score):
    """Means over seeds."""

    spread: dict[str, float]  # standard deviations over seeds, by metric


class Summary(SummaryScore):
    """A model's, over the run or a part of it."""

    train_seconds: float
    cold: SummaryScore
    warm: SummaryScore


class SummaryPart(Plain):
    name: str
    events: tuple[int, int]
    queries: int
    models: dict[str, Summary]
    learn_seconds: float
    test_seconds: float


class Report(Plain):
    """The file. With several seeds all figures are means over these."""

    protocol: str
    seed: int | list[int]
    queries: int
    models: dict[str, Summary]
    parts: list[SummaryPart]
    seconds: float  # wall clock of all seeds
    train_seconds_before: dict[str, float]  # by model, before anything was counted
    clicks: dict[str, ClickFigures]  # of the first seed, where a click head is trained
    versions: dict[str, int]  # gate decisions by verdict, of all seeds
    seeds: list[SeedResult]
    data: Data
    notes: list[str]
    overrides: list[Override]
    options: dict[str, Any]
    settings: dict[str, Any]
    environment: dict[str, Any]


def make_report(
    runs: Sequence[SeedResult],
    data: Data,
    options: Options,
    settings: Settings,
    overrides: Sequence[Override],
    environment: Mapping[str, Any],
) -> Report:
    seeds = [run.seed for run in runs]
    first = runs[0]
    verdicts = [decision.verdict for run in runs for decision in run.decisions]
    return Report(
        protocol=options.protocol.value,
        seed=seeds[0] if len(seeds) == 1 else seeds,
        queries=first.queries,
        models=_over_seeds([run.models for run in runs]),
        parts=[_part([run.parts[i] for run in runs]) for i in range(len(first.parts))],
        seconds=sum(run.seconds for run in runs),
        train_seconds_before={
            name: _mean([run.train_seconds_before[name] for run in runs])
            for name in first.train_seconds_before
        },
        clicks=first.clicks,
        versions={verdict: verdicts.count(verdict) for verdict in ("promote", "hold", "reject")},
        seeds=list(runs),
        data=data,
        notes=notes(options, data),
        overrides=list(overrides),
        options=plain_options(options),
        settings={name: masked(settings)[name] for name in SECTIONS},
        environment=dict(environment),
    )


def notes(options: Options, data: Data) -> list[str]:
    """What a reader must know of how the figures came about."""
    told = [
        "Ties count against a model: a rank is the number of items that score at least as high.",
        "Margins are 95 % intervals that take queries as independent.",
    ]
    if not data.timed:
        told.append("The events have no times: they stand in the order of the file.")
    told += data.without_effect
    if data.bad_rows:
        told.append(f"{data.bad_rows:,} bad rows were left out, such as {data.first_bad_row}.")
    if data.repeated_rows:
        told.append(
            f"{data.repeated_rows:,} rows with an event_id from shortly before were left out, as "
            "the service does."
        )
    if options.events:
        told.append(f"Of each file the first {options.events:,} events are used.")
    if options.limit_queries:
        told.append(f"A sample: at most {options.limit_queries:,} queries of a period are ranked.")
    if options.retrain or options.retrain_every:
        told.append(
            f"A retrain starts anew, makes at most {options.retrain_epochs} passes over all events "
            f"so far and stops after {options.retrain_patience} without a better holdout."
        )
    return told


def click_lines(report: Report) -> list[str]:
    """The figures of the click head; none where there is no head."""
    of = f", seed {report.seeds[0].seed}" if len(report.seeds) > 1 else ""
    return [
        f"clicks, {name}{of}: AUC {_told(figures.auc)}, log loss {_told(figures.log_loss)}, "
        f"accuracy {_told(figures.accuracy)}, RMSE {_told(figures.rmse)} on {figures.rows:,} "
        f"labels, {figures.clicks:,} of them clicks"
        for name, figures in report.clicks.items()
    ]


def _told(figure: float | None) -> str:
    return "none" if figure is None else f"{figure:.4f}"


def plain_options(options: Options) -> dict[str, Any]:
    """Without folders: where something lies on a machine is no result."""
    plain: dict[str, Any] = orjson.loads(orjson.dumps(options, default=lambda path: path.name))
    return plain


def write(report: Report, file: Path) -> None:
    plain = report.model_dump(mode="json")
    with writing(file):
        file.write_bytes(orjson.dumps(plain, option=orjson.OPT_INDENT_2) + b"\n")


def _part(parts: Sequence[Part]) -> SummaryPart:
    first = parts[0]
    return SummaryPart(
        name=first.name,
        events=first.events,
        queries=first.queries,
        models=_over_seeds([part.models for part in parts]),
        learn_seconds=_mean([part.learn_seconds for part in parts]),
        test_seconds=_mean([part.test_seconds for part in parts]),
    )


def _over_seeds(runs: Sequence[Mapping[str, Result]]) -> dict[str, Summary]:
    return {name: _summary([run[name] for run in runs]) for name in runs[0]}


def _summary(results: Sequence[Result]) -> Summary:
    return Summary(
        **_score(results).model_dump(),
        train_seconds=_mean([one.train_seconds for one in results]),
        cold=_score([one.cold for one in results]),
        warm=_score([one.warm for one in results]),
    )


def _score(scores: Sequence[Score]) -> SummaryScore:
    return SummaryScore(
        queries=scores[0].queries,
        # Seeds rank the same queries: more of them make no narrower interval.
        margin={name: _mean([one.margin[name] for one in scores]) for name in METRICS},
        spread=spread(scores),
        **{name: _mean([getattr(one, name) for one in scores]) for name in METRICS},
    )


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
