"""The command from events to a settings file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from service.backtest.options import Options
from service.backtest.reading import Read
from service.errors import ConfigurationError
from service.settings import MemorySettings, Settings, load_settings
from service.tune.command import INTERRUPTED, tune
from service.tune.measuring import Measuring
from service.tune.options import TuneOptions
from service.tune.results import Comparison, TuneReport
from service.tune.space import with_values
from tests.backtest.examples import quick_settings, walks

FOUND = Read(walks(280), 0, None, timed=True)
# So slow, and without a memory to lean on, that whatever is drawn learns more.
SLOW = with_values(
    quick_settings().model_copy(update={"memory": MemorySettings(enabled=False)}),
    {"trainer.learning_rate": 3e-4, "trainer.item_learning_rate": 1e-3},
)
OTHERS = frozenset(
    {
        "model.dropout", "model.temperature", "trainer.replay.ratio", "trainer.max_epochs",
        "model.backbone.layers",
    }
)  # fmt: skip


def options(folder: Path) -> TuneOptions:
    return TuneOptions(
        Options(files=(Path("events.csv"),), gate_every=2, start=0.25),
        trials=3, out=folder / "tuned.toml", report=folder / "reports" / "tune.json",
        fixed=OTHERS, command="headwater tune events.csv",
    )  # fmt: skip


def report_of(asked: TuneOptions) -> TuneReport:
    return TuneReport.model_validate_json(asked.report.read_bytes())


def test_it_ends_with_a_settings_file_that_serve_accepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = options(tmp_path)
    assert tune(FOUND, asked, SLOW) == 0
    report = report_of(asked)
    given, best = report.trials[report.given - 1], report.trials[report.best - 1]
    assert given.objective
    assert best.objective
    assert best.objective > given.objective
    assert report.comparison
    assert report.comparison.gain > 0
    assert (report.searched_events, report.counted_from) == (210, 52)
    assert [one["number"] for one in json.loads(asked.report.read_text())["trials"]] == [1, 2, 3]
    assert report.changes == {
        name: value for name, value in best.values.items() if value != given.values[name]
    }
    assert load_settings(asked.out, {}) == with_values(Settings(), report.changes)
    text = asked.out.read_text()
    told = capsys.readouterr().out
    for figure in (given.objective, best.objective, report.comparison.tuned):
        assert f"{figure:.4f}" in text
        assert f"{figure:.4f}" in told
    assert "by: headwater tune events.csv" in text


def test_the_settings_stay_where_the_end_of_the_stream_shows_no_gain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = Comparison(queries=9, given=0.3, tuned=0.2, gain=-0.1, margin=0.05)
    monkeypatch.setattr(Measuring, "compare", lambda *_: worse)
    asked = options(tmp_path)
    assert tune(FOUND, asked, SLOW) == 0
    assert report_of(asked).changes == {}
    assert load_settings(asked.out, {}) == Settings()
    assert "the settings stay as given" in asked.out.read_text()


def test_ctrl_c_writes_the_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, calls = Measuring.objective, []

    def interrupted(self: Measuring, *arguments: object) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Measuring, "objective", interrupted)
    asked = options(tmp_path)
    assert tune(FOUND, asked, SLOW) == INTERRUPTED
    report = report_of(asked)
    assert report.interrupted
    assert report.comparison is None
    assert report.changes
    assert "Interrupted: not compared" in asked.out.read_text()
    monkeypatch.undo()

    assert tune(FOUND, replace(asked, resume=True, trials=4), SLOW) == 0
    whole = report_of(asked)
    assert whole.trials[:3] == report.trials
    assert whole.comparison


def test_ctrl_c_before_any_trial_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(Measuring, "objective", interrupted)
    asked = options(tmp_path)
    assert tune(FOUND, asked, SLOW) == INTERRUPTED
    assert not asked.out.exists()


def test_only_the_first_events_are_read_where_that_is_asked(tmp_path: Path) -> None:
    asked = replace(options(tmp_path), events=200, trials=1)
    tune(FOUND, asked, SLOW)
    assert report_of(asked).searched_events == 150


def test_a_search_of_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    asked = replace(options(tmp_path), events=200, trials=1)
    tune(FOUND, asked, SLOW)
    fewer = replace(asked, resume=True, fixed=OTHERS | {"trainer.learning_rate"})
    with pytest.raises(ConfigurationError, match="cannot go on from"):
        tune(FOUND, fewer, SLOW)
