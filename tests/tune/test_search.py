"""The search over a measure that costs nothing."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from service.backtest.options import Options
from service.backtest.progress import Progress
from service.errors import ConfigurationError, NonFiniteError
from service.settings import Settings
from service.tune.options import TuneOptions
from service.tune.results import Outcome, Trial, best_of
from service.tune.search import Search
from service.tune.space import Values, given_values, space_for

SPACE = space_for(Settings(), frozenset())
GIVEN = given_values(SPACE, Settings())
Tell = Callable[[int, float], None]


def worth(values: Values, tell: Tell) -> float:
    """Most with a dropout of a half."""
    return 1.0 - abs(values["model.dropout"] - 0.5)


def options(folder: Path, trials: int = 4) -> TuneOptions:
    return TuneOptions(Options(), trials=trials, out=folder / "tuned.toml", seed=0)


def search(asked: TuneOptions, made_for: str = "these") -> Search:
    return Search(SPACE, GIVEN, asked, made_for)


def run(searching: Search, measure: Callable[[Values, Tell], float] = worth) -> bool:
    return searching.run(measure, Progress(io.StringIO()))


def test_the_first_trial_is_of_the_given_settings_and_the_best_no_worse(tmp_path: Path) -> None:
    searching = search(options(tmp_path, 12))
    assert run(searching)
    trials = searching.trials
    assert [trial.number for trial in trials] == list(range(1, 13))
    assert trials[0].values == GIVEN
    best = best_of(trials)
    assert best
    assert best.objective == max(trial.objective or 0 for trial in trials) > 0.7


def test_of_equals_the_first_is_the_best() -> None:
    same = [
        Trial(number=n, outcome=Outcome.COMPLETE, objective=0.5, seconds=0, values={}, why=None)
        for n in (1, 2)
    ]
    assert best_of(same) == same[0]
    assert best_of([]) is None


def test_a_seed_draws_the_same_again(tmp_path: Path) -> None:
    one, other = (search(options(tmp_path / name)) for name in "ab")
    run(one)
    run(other)
    assert [each.values for each in one.trials] == [each.values for each in other.trials]


def test_a_seed_may_be_negative(tmp_path: Path) -> None:
    assert run(search(replace(options(tmp_path, 2), seed=-1)))


@pytest.mark.parametrize(
    "fault", [NonFiniteError("a loss is NaN"), ConfigurationError("does not fit")]
)
def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(
    fault: Exception, tmp_path: Path
) -> None:
    def second_fails(values: Values, tell: Tell) -> float:
        if len(searching.trials) == 2:
            raise fault
        return worth(values, tell)

    searching = search(options(tmp_path))
    assert run(searching, second_fails)
    complete, failed, *others = searching.trials
    assert (failed.outcome, failed.objective, failed.why) == (Outcome.FAILED, None, str(fault))
    assert {each.outcome for each in (complete, *others)} == {Outcome.COMPLETE}


def test_a_figure_that_is_no_number_is_a_failure(tmp_path: Path) -> None:
    searching = search(options(tmp_path))
    run(searching, lambda values, _: 0.5 if values == GIVEN else float("nan"))
    assert [each.outcome for each in searching.trials[1:]] == [Outcome.FAILED] * 3


def test_what_fails_with_the_given_settings_is_raised(tmp_path: Path) -> None:
    def fails(values: Values, tell: Tell) -> float:
        raise ConfigurationError("no such model")

    with pytest.raises(ConfigurationError, match="no such model"):
        run(search(options(tmp_path)), fails)


def test_trials_behind_the_others_are_ended_early(tmp_path: Path) -> None:
    def told(values: Values, tell: Tell) -> float:
        for part in range(3):
            tell(part, worth(values, tell))
        return worth(values, tell)

    searching = search(options(tmp_path, 20))
    run(searching, told)
    outcomes = [each.outcome for each in searching.trials]
    assert Outcome.PRUNED not in outcomes[:5]
    assert Outcome.PRUNED in outcomes[5:]


def test_no_trial_begins_after_the_time_is_used_up(tmp_path: Path) -> None:
    searching = search(replace(options(tmp_path, 1000), timeout_s=1e-6))
    assert run(searching)
    assert [each.values for each in searching.trials] == [GIVEN]  # the given ones all the same


def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path) -> None:
    def interrupted(values: Values, tell: Tell) -> float:
        if len(searching.trials) == 3:
            raise KeyboardInterrupt
        return worth(values, tell)

    searching = search(options(tmp_path))
    assert not run(searching, interrupted)
    before = searching.trials
    assert [each.outcome.value for each in before] == ["complete", "complete", "failed"]
    assert before[-1].why == "interrupted"

    again = search(replace(options(tmp_path, 6), resume=True))
    assert run(again)
    assert again.trials[:3] == before
    drawn = [tuple(each.values.values()) for each in again.trials]
    assert len(set(drawn)) == len(drawn) == 6  # nothing twice


def test_whoever_was_killed_left_a_trial_that_has_failed(tmp_path: Path) -> None:
    killed = search(options(tmp_path))
    killed._study.ask()
    again = search(replace(options(tmp_path), resume=True))
    assert run(again)
    assert again.trials[0].outcome is Outcome.FAILED
    assert again.trials[1].values == GIVEN


def test_a_search_of_other_events_is_not_gone_on_with(tmp_path: Path) -> None:
    run(search(options(tmp_path)))
    with pytest.raises(ConfigurationError, match="made with other events"):
        search(replace(options(tmp_path), resume=True), "others")
    anew = search(replace(options(tmp_path), force=True), "others")
    assert not anew.trials
