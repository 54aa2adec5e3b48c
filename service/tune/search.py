"""The search itself, by Optuna: the only module that loads it.

The first trial is of the settings as given, so the best one is never worse than these on what
the trials see. A trial that fails is recorded, and the search goes on.
"""

import time
from collections.abc import Callable, Sequence

import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from service.backtest.progress import Progress
from service.errors import ConfigurationError, HeadwaterError
from service.tune.options import TuneOptions
from service.tune.results import Outcome, Trial, best_of
from service.tune.space import Scale, Searched, Value, Values, written

# Trials before values are proposed from what was found, and before any is ended early: fewer
# say nothing, and a search of thirty should not be half blind.
_AT_RANDOM = 5
# Parts of the stream before that: a single one is mostly noise.
_WARM_UP = 2
_FAULTS = (HeadwaterError, torch.OutOfMemoryError)
_OUTCOMES = {
    TrialState.COMPLETE: Outcome.COMPLETE,
    TrialState.PRUNED: Outcome.PRUNED,
    TrialState.FAIL: Outcome.FAILED,
}

# Tells the objective so far after each part, and whether it is worth going on; gives the last.
Measure = Callable[[Values, Callable[[int, float], None]], float]


class Search:
    """Made of what an earlier run left, or anew."""

    def __init__(
        self, space: Sequence[Searched], given: Values, options: TuneOptions, made_for: str
    ) -> None:
        """Reads or makes the journal. `made_for` tells searches of other events or settings
        apart. Raises ConfigurationError."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # trials are told by us
        self._space = space
        self._given = given
        self._options = options
        options.journal.parent.mkdir(parents=True, exist_ok=True)
        if not options.resume:
            options.journal.unlink(missing_ok=True)
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(options.journal))),
            study_name="headwater",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(_AT_RANDOM, n_warmup_steps=_WARM_UP),
            load_if_exists=True,
        )
        earlier = self._study.user_attrs.setdefault("made_for", made_for)
        if earlier != made_for:
            raise ConfigurationError(
                f"cannot go on from {options.journal}: it was made with other events, options or "
                "settings; --force begins anew"
            )
        self._study.set_user_attr("made_for", made_for)
        self._end_running()  # whoever ran them was killed
        # Another seed each time: with the same one a resumed search would draw the same again.
        seed = ((options.seed or 0) + len(self._study.trials)) % 2**32  # all that numpy takes
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_AT_RANDOM)

    @property
    def trials(self) -> list[Trial]:
        return [_plain(trial) for trial in self._study.trials]

    def run(self, measure: Measure, progress: Progress) -> bool:
        """Until the trials or the time are used up; False where Ctrl-C ended it sooner. What
        fails with the given settings is raised."""
        ends_s = time.monotonic() + (self._options.timeout_s or float("inf"))

        def objective(trial: optuna.Trial) -> float:
            values = {one.name: self._draw(trial, one) for one in self._space}
            trial.set_user_attr("values", values)
            try:
                return measure(values, lambda part, so_far: _tell(trial, part, so_far))
            except (*_FAULTS, KeyboardInterrupt) as error:
                trial.set_user_attr("why", str(error) or "interrupted")
                raise

        try:
            if not self._has_given():
                self._study.enqueue_trial(self._given)
                self._study.optimize(objective, n_trials=1)
                self._say(progress)
            while len(self._study.trials) < self._options.trials and time.monotonic() < ends_s:
                self._study.optimize(objective, n_trials=1, catch=_FAULTS)
                self._say(progress)
        except KeyboardInterrupt:
            self._end_running()
            return False
        return True

    def _draw(self, trial: optuna.Trial, one: Searched) -> Value:
        if one.scale is Scale.WHOLE:
            return trial.suggest_int(one.name, int(one.low), int(one.high))
        drawn = trial.suggest_float(one.name, one.low, one.high, log=one.scale is Scale.LOG)
        return written(one, drawn, self._given[one.name])

    def _has_given(self) -> bool:
        return any(
            trial.values == self._given and trial.outcome is Outcome.COMPLETE
            for trial in self.trials
        )

    def _end_running(self) -> None:
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _say(self, progress: Progress) -> None:
        trials = self.trials
        last, best = trials[-1], best_of(trials)
        found = last.outcome.value if last.objective is None else f"{last.objective:.4f}"
        why = f" ({last.why})" if last.why else ""
        so_far = f", best {best.objective:.4f} in trial {best.number}" if best else ""
        progress.say(
            f"trial {last.number} of {self._options.trials}: {found}{why} in {last.seconds:.0f} s"
            f"{so_far}"
        )


def _tell(trial: optuna.Trial, part: int, so_far: float) -> None:
    trial.report(so_far, part)
    if trial.should_prune():
        raise optuna.TrialPruned


def _plain(trial: FrozenTrial) -> Trial:
    return Trial(
        number=trial.number + 1,
        outcome=_OUTCOMES.get(trial.state, Outcome.FAILED),
        objective=trial.value if trial.state is TrialState.COMPLETE else None,
        seconds=trial.duration.total_seconds() if trial.duration else 0.0,
        values=trial.user_attrs.get("values", {}),
        why=trial.user_attrs.get("why"),
    )
