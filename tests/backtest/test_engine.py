from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from service.backtest.engine import Engine
from service.errors import ConfigurationError
from service.settings import PretrainedBackbone
from service.state.histories import HistorySlab
from service.trainer import learner as learner_module
from service.trainer.gate import GateReport, Verdict, judge
from tests.backtest.examples import quick_settings, walks
from tests.trainer.examples import CPU, REJECTED


@pytest.fixture
def engine() -> Iterator[Engine]:
    with closing(Engine(quick_settings(), CPU, gate_every=100)) as made:
        yield made


def test_one_that_cannot_be_made_leaves_no_histories_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[HistorySlab] = []
    of = HistorySlab.of

    def kept(*given: Any) -> HistorySlab:
        made.append(of(*given))
        return made[-1]

    monkeypatch.setattr(HistorySlab, "of", kept)
    settings = quick_settings()
    absent = settings.model.model_copy(update={"backbone": PretrainedBackbone(name="/absent")})
    with pytest.raises(ConfigurationError, match="cannot load"):
        Engine(settings.model_copy(update={"model": absent}), CPU, gate_every=1)
    (slab,) = made
    with pytest.raises(FileNotFoundError):
        HistorySlab.attach(slab.address)


def test_in_a_pause_what_the_gate_turned_down_is_taught_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service would: what comes after the pause must not meet weights that lack it."""
    answers = iter([REJECTED])

    def ask(*scores: object) -> GateReport:
        return next(answers, None) or judge(*scores)  # type: ignore[arg-type]

    monkeypatch.setattr(learner_module, "judge", ask)
    table = walks(400)
    for start in range(0, len(table), 16):
        events = table.events(start, min(start + 16, len(table)), start)
        engine.score(events, np.zeros(len(events), np.bool_))
    engine.catch_up()
    verdicts = [decision.report.verdict for decision in engine.decisions]
    assert verdicts == [Verdict.REJECT, Verdict.PROMOTE]
    assert engine.champion.version == 2
