"""The continual protocol on generated periods."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from service.backtest import continual
from service.backtest.continual import asked_events, known_before
from service.backtest.engine import Engine
from service.backtest.options import Options, Protocol
from service.backtest.periods import run_continual
from service.backtest.preparing import prepared
from service.backtest.progress import Progress
from service.backtest.results import SeedResult
from service.backtest.scores import METRICS
from service.backtest.table import Table
from service.domain import Bools, Events, MicroBatch
from service.errors import ConfigurationError
from service.scorer.scorer import Scored
from service.settings import EventsSettings, Settings
from service.trainer.holdout import HoldoutRows
from tests.backtest.examples import periods, quick_settings, walks

FILES = tuple(Path(f"p_{number}.csv") for number in range(4))
OPTIONS = Options(
    protocol=Protocol.CONTINUAL, files=FILES, gate_every=2, retrain=True, streamed=True,
    retrain_epochs=3,
)  # fmt: skip
ALWAYS = {"live", "transformer", "memory", "frozen", "popularity", "recent_popularity"}


def run(
    tables: list[Table], options: Options = OPTIONS, settings: Settings | None = None
) -> SeedResult:
    fitting = settings or prepared(quick_settings(), tables, Protocol.CONTINUAL)[0]
    progress = Progress(io.StringIO())
    return run_continual(tables, fitting, options, torch.device("cpu"), progress)


@pytest.fixture(scope="module")
def found() -> SeedResult:
    return run(periods(4))


def test_every_period_but_the_first_is_a_part(found: SeedResult) -> None:
    tables = periods(4)
    expected = [
        len(asked_events(table, known, EventsSettings()))
        for table, known in zip(tables, known_before(tables), strict=True)
    ]
    assert [part.queries for part in found.parts] == expected[1:]
    assert found.queries == sum(expected[1:])
    assert [part.name for part in found.parts] == ["period 1", "period 2", "period 3"]


def test_kinds_that_tell_what_was_shown_or_turned_down_are_streamed_too() -> None:
    tables = periods(3)
    for table in tables:
        table.kind[::3], table.kind[1::7] = 1, 2
    kinds = EventsSettings(kinds=("view", "impression", "return"), negative=("return",))
    settings = prepared(quick_settings(), tables, Protocol.CONTINUAL)[0]
    found = run(
        tables,
        replace(OPTIONS, retrain=False),
        settings.model_copy(update={"events": kinds}),
    )
    assert 0 < found.queries < run(tables, replace(OPTIONS, retrain=False)).queries
    assert found.models["live_streamed"].queries == found.queries


def test_a_model_that_knows_nothing_of_a_history_foretells_nothing() -> None:
    """What the memory would say is not its own."""
    tables = periods(2)
    settings = prepared(quick_settings(), tables, Protocol.CONTINUAL)[0]
    gate = settings.trainer.gate.model_copy(update={"min_rows": 10**6})  # nothing is published
    trainer = settings.trainer.model_copy(update={"gate": gate})
    found = run(
        tables,
        replace(OPTIONS, retrain=False, streamed=False),
        settings.model_copy(update={"trainer": trainer}),
    )
    assert found.models["transformer"].recall_at_20 == 0.0
    assert found.models["live"].recall_at_20 == found.models["memory"].recall_at_20 > 0.0


def test_every_model_ranks_the_same_queries(found: SeedResult) -> None:
    taught = {"retrain", "retrain_transformer", "live_streamed"}
    assert set(found.models) == ALWAYS | taught
    for part in found.parts:
        assert {model.queries for model in part.models.values()} == {part.queries}


def test_each_period_weighs_the_same(found: SeedResult) -> None:
    for name, model in found.models.items():
        for metric in METRICS:
            parts = [getattr(part.models[name], metric) for part in found.parts]
            assert getattr(model, metric) == pytest.approx(np.mean(parts))


def test_it_learns(found: SeedResult) -> None:
    assert found.models["live"].recall_at_10 > 0.6
    assert found.models["retrain"].recall_at_10 > 0.6
    assert found.models["live"].train_seconds > 0
    assert found.models["memory"].train_seconds == 0
    assert found.models["frozen"].train_seconds == 0


def test_the_frozen_start_is_what_the_first_period_taught(found: SeedResult) -> None:
    first, *_, last = found.parts
    assert first.models["frozen"].ndcg_at_10 == first.models["live"].ndcg_at_10
    assert last.models["frozen"].ndcg_at_10 < last.models["live"].ndcg_at_10


def test_a_period_is_tested_when_exactly_those_before_it_are_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = periods(4)
    streamed, learned, at_test = 0, 0, []
    whole_rank, whole_learn, whole_test = Engine.rank, Engine._learn, continual.test

    def noted_rank(engine: Engine, events: Events, answer: Bools) -> Scored:
        nonlocal streamed
        streamed += len(events)
        return whole_rank(engine, events, answer)

    def noted_learn(engine: Engine, batch: MicroBatch | None) -> None:
        nonlocal learned
        learned += 0 if batch is None else len(batch)
        whole_learn(engine, batch)

    def noted_test(engine: Engine, rows: HoldoutRows) -> continual.Ranks:
        at_test.append((streamed, learned))
        return whole_test(engine, rows)

    monkeypatch.setattr(Engine, "rank", noted_rank)
    monkeypatch.setattr(Engine, "_learn", noted_learn)
    monkeypatch.setattr("service.backtest.periods.test", noted_test)
    run(tables)
    before = np.cumsum([len(table) for table in tables])[:-1].tolist()
    assert at_test == [(events, events) for events in before]


def test_a_later_period_changes_nothing_in_an_earlier_one() -> None:
    """What comes in a later period changes no figure of an earlier one."""
    tables = periods(4)
    other = [*tables[:3], periods(4, sessions=40)[3]]
    options = Options(protocol=Protocol.CONTINUAL, files=FILES, gate_every=2, streamed=True)
    settings, _ = prepared(quick_settings(), [*tables, *other], Protocol.CONTINUAL)
    first, second = run(tables, options, settings), run(other, options, settings)
    for one, two in zip(first.parts[:2], second.parts[:2], strict=True):
        for name, model in one.models.items():
            assert model.ndcg_at_10 == two.models[name].ndcg_at_10
    assert first.parts[2].models != second.parts[2].models


def test_streaming_a_period_does_not_change_what_is_tested_before_it() -> None:
    plain = Options(protocol=Protocol.CONTINUAL, files=FILES, gate_every=2)
    streamed = Options(protocol=Protocol.CONTINUAL, files=FILES, gate_every=2, streamed=True)
    with_it, without = run(periods(3), streamed), run(periods(3), plain)
    assert set(without.models) == ALWAYS
    for metric in METRICS:
        assert getattr(with_it.models["live"], metric) == getattr(without.models["live"], metric)


def test_a_sample_of_the_queries_is_the_same_for_all_models() -> None:
    options = Options(
        protocol=Protocol.CONTINUAL, files=FILES, gate_every=2, streamed=True, limit_queries=10
    )
    found = run(periods(3), options)
    for part in found.parts:
        assert {model.queries for model in part.models.values()} == {10}


def test_a_forgotten_session_is_not_left_out_in_silence() -> None:
    tables = [walks(200, users=20), walks(200, seed=1, users=20)]
    settings, _ = prepared(quick_settings(), tables, Protocol.CONTINUAL)
    history = settings.history.model_copy(update={"users": 2})
    options = Options(protocol=Protocol.CONTINUAL, files=FILES, streamed=True)
    with pytest.raises(ConfigurationError, match=r"raise history\.users"):
        run(tables, options, settings.model_copy(update={"history": history}))
