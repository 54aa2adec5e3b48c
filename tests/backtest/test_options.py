import argparse
from pathlib import Path

import pytest

from service.backtest.options import (
    Columns,
    Options,
    Protocol,
    TimeUnit,
    add_arguments,
    options_from,
)
from service.errors import ConfigurationError


def parsed(*arguments: str) -> Options:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return options_from(parser.parse_args(arguments))


def test_a_file_is_all_that_is_needed() -> None:
    assert parsed("events.csv") == Options(files=(Path("events.csv"),))


def test_the_defaults_of_the_command_are_those_of_the_options() -> None:
    assert parsed("--movielens") == Options()


def test_columns_are_named() -> None:
    options = parsed("a.csv", "--user", "u", "--time", "t", "--time-unit", "s")
    assert options.columns == Columns(user="u", time="t", time_unit=TimeUnit.SECONDS)


def test_columns_of_vectors_are_named_by_their_sources() -> None:
    options = parsed("a.csv", "--items", "b.csv", "--items-vectors", "image=pixels", "audio=a=b")
    assert options.item_columns.vectors == (("image", "pixels"), ("audio", "a=b"))


def test_periods_are_in_the_order_of_their_names() -> None:
    options = parsed("--protocol", "continual", "--periods", "p_10.csv", "x/p_2.csv", "y/p_1.csv")
    assert options.protocol is Protocol.CONTINUAL
    assert options.files == (Path("y/p_1.csv"), Path("x/p_2.csv"), Path("p_10.csv"))


def test_seeds_may_be_listed_or_repeated() -> None:
    assert parsed("a.csv", "--seed", "1", "2", "--seed", "3", "1").seeds == (1, 2, 3)


def test_reports_lie_beside_each_other() -> None:
    options = parsed("a.csv", "--out", "x/y.json")
    assert (options.page, options.partial) == (Path("x/y.html"), Path("x/y.partial.json"))


def test_what_is_no_ending_belongs_to_the_name() -> None:
    first, second = (parsed("a.csv", "--out", f"x/rate-{rate}") for rate in ("0.01", "0.03"))
    assert first.page == Path("x/rate-0.01.html")
    assert len({first.page, first.partial, second.page, second.partial}) == 4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name one FILE"),
        (["a.csv", "--movielens"], "name one FILE"),
        (["a.csv", "--periods", "b.csv"], "name one FILE"),
        (["--protocol", "continual", "--periods", "a.csv"], "two files or more"),
        (["--protocol", "continual", "a.csv"], "two files or more"),
        (["a.csv", "--from", "1"], "--from must be"),
        (
            ["a.csv", "--items", "b.csv", "--items-vectors", "image"],
            "--items-vectors takes SOURCE=NAME",
        ),
        (["a.csv", "--parts", "0"], "--parts must be at least 1"),
        (["a.csv", "--retrain-every", "0"], "--retrain-every must be at least 1"),
        (["a.csv", "--limit-queries", "9"], "--limit-queries is not for --protocol prequential"),
        (["a.csv", "--retrain"], "--retrain is not for --protocol prequential"),
        (
            ["--protocol", "continual", "--periods", "a.csv", "b.csv", "--from", "0.5"],
            "--from is not for --protocol continual",
        ),
        (
            ["--protocol", "continual", "--periods", "a.csv", "b.csv", "--parts", "20"],
            "--parts is not for --protocol continual",
        ),
        (
            ["--protocol", "continual", "--periods", "a.csv", "b.csv", "--from", "0"],
            "--from is not for --protocol continual",
        ),
        (["a.csv", "--retrain-epochs", "3"], "--retrain-epochs goes with --retrain"),
        (["a.csv", "--seed", "0", "-1"], "--seed must be at least 0"),
        (["a.csv", "--seed", str(1 << 63)], "--seed must be at least 0 and less than"),
        (["--movielens", "--time-unit", "s"], "--time-unit goes with a FILE"),
        (["--movielens", "--context", "page"], "--context goes with a FILE"),
        (["--movielens", "--skip-bad"], "--skip-bad goes with a FILE"),
        (["a.csv", "--items-text", "title"], "--items-text goes with --items FILE"),
        (["a.csv", "--items-id", "id"], "--items-id goes with --items FILE"),
        (["a.csv", "--out", "b.html", "--html", "b.html"], "must be two files"),
        (
            ["--protocol", "continual", "--periods", "a", "b", "--retrain-every", "9"],
            "--retrain-every is not for --protocol continual",
        ),
    ],
)
def test_what_does_not_go_together_is_told(arguments: list[str], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        parsed(*arguments)
