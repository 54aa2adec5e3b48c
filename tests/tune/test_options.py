import argparse
from pathlib import Path

import pytest

from service.backtest.options import Columns, Options
from service.backtest.scores import METRICS
from service.errors import ConfigurationError
from service.tune.options import (
    Objective,
    TuneOptions,
    add_arguments,
    options_from,
    require_new,
)


def parsed(*arguments: str, **environ: str) -> TuneOptions:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return options_from(parser.parse_args(arguments), environ, None, "headwater tune")


def test_the_defaults_of_the_command_are_those_of_the_options() -> None:
    assert parsed("a.csv") == TuneOptions(Options(files=(Path("a.csv"),), start=0.25))


def test_events_are_named_as_for_a_backtest() -> None:
    data = parsed("a.csv", "--user", "u", "--skip-bad", "--from", "0.5").data
    assert (data.columns, data.skip_bad, data.start) == (Columns(user="u"), True, 0.5)


def test_every_metric_of_a_backtest_can_be_the_objective() -> None:
    assert set(Objective) == set(METRICS)


def test_what_the_environment_sets_is_fixed() -> None:
    environ = {"HEADWATER_MODEL__DROPOUT": "0", "HEADWATER_MODEL__BACKBONE": '{"layers": 1}'}
    assert parsed("a.csv", **environ).fixed == {"model.dropout", "model.backbone.layers"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name one FILE"),
        (["a.csv", "--movielens"], "name one FILE"),
        (["--movielens", "--items", "b.csv"], "brings its own items"),
        (["a.csv", "--trials", "0"], "--trials must be at least 1"),
        (["a.csv", "--timeout-s", "0"], "--timeout-s must be more than 0"),
        (["a.csv", "--timeout-s", "nan"], "--timeout-s must be more than 0"),
        (["a.csv", "--out", "one", "--report", "one"], "must be two files"),
        (["a.csv", "--holdout-share", "0"], "--holdout-share must be"),
        (["a.csv", "--from", "1"], "--from must be"),
        (["a.csv", "--force", "--resume"], "name one of them"),
    ],
)
def test_what_does_not_go_together_is_told(arguments: list[str], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        parsed(*arguments)


@pytest.mark.parametrize("there", ["tuned.toml", "tuned.journal"])
def test_nothing_is_overwritten_unasked(there: str, tmp_path: Path) -> None:
    out = tmp_path / "tuned.toml"
    require_new(parsed("a.csv", "--out", str(out)))
    (tmp_path / there).touch()
    with pytest.raises(ConfigurationError, match="--resume goes on with its search, --force"):
        require_new(parsed("a.csv", "--out", str(out)))
    require_new(parsed("a.csv", "--out", str(out), "--force"))
    require_new(parsed("a.csv", "--out", str(out), "--resume"))
