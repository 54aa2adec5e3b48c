"""What `headwater tune` is asked for. Loads nothing heavy: every command builds this parser."""

import argparse
import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.backtest.options import (
    Options,
    add_data_arguments,
    beside,
    columns_from,
    item_columns_from,
    items_from,
    require_seed,
)
from service.errors import ConfigurationError
from service.settings import from_environment


class Objective(enum.StrEnum):
    """A metric of the live model; the names are those of the reports."""

    RECALL_AT_20 = "recall_at_20"
    RECALL_AT_10 = "recall_at_10"
    MRR_AT_20 = "mrr_at_20"
    MRR_AT_10 = "mrr_at_10"
    NDCG_AT_10 = "ndcg_at_10"
    HR_AT_10 = "hr_at_10"


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """One run of the command."""

    data: Options  # what is read, and how a trial replays it
    trials: int = 30  # those of an interrupted search included
    timeout_s: float | None = None
    objective: Objective = Objective.NDCG_AT_10
    holdout_share: float = 0.25  # the end of the stream, which no trial sees
    events: int | None = None  # only the first so many
    seed: int | None = None  # of the models and the search; None: the settings'
    out: Path = Path("headwater-tuned.toml")
    report: Path = Path("reports/tune.json")
    force: bool = False
    resume: bool = False
    config: Path | None = None  # the settings file whose keys the new one takes over
    fixed: frozenset[str] = frozenset()  # dotted names that the environment sets
    command: str = "headwater tune"

    @property
    def journal(self) -> Path:
        """Where the search's library keeps the trials."""
        return beside(self.out, ".journal")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    how = parser.add_argument_group("how")
    how.add_argument("--trials", type=int, default=30, metavar="N", help="in all; default 30")
    how.add_argument("--timeout-s", type=float, metavar="SECONDS", help="no trial begins after")
    how.add_argument(
        "--objective", type=Objective, choices=list(Objective), default=Objective.NDCG_AT_10,
        help="a metric of the live model; default ndcg_at_10",
    )  # fmt: skip
    how.add_argument(
        "--holdout-share", type=float, default=0.25, metavar="SHARE",
        help="the end of the stream that no trial sees, to compare on; default 0.25",
    )  # fmt: skip
    how.add_argument(
        "--from", type=float, default=0.25, dest="start", metavar="SHARE",
        help="a trial counts from there on, in what it sees; default 0.25",
    )  # fmt: skip
    how.add_argument("--events", type=int, metavar="N", help="only the first so many")
    how.add_argument("--seed", type=int, help="of models and search; default: model.seed")
    how.add_argument(
        "--out", type=Path, default=Path("headwater-tuned.toml"), metavar="FILE",
        help="the settings file to write; default headwater-tuned.toml",
    )  # fmt: skip
    how.add_argument(
        "--report", type=Path, default=Path("reports/tune.json"), metavar="FILE",
        help="every trial; default reports/tune.json",
    )  # fmt: skip
    how.add_argument("--force", action="store_true", help="overwrite what is at --out, begin anew")
    how.add_argument("--resume", action="store_true", help="go on with the search of --out")


def options_from(
    arguments: argparse.Namespace, environ: Mapping[str, str], config: Path | None, command: str
) -> TuneOptions:
    """Raises ConfigurationError for what does not go together."""
    if bool(arguments.file) == arguments.movielens:
        raise ConfigurationError("name one FILE of events, or --movielens")
    for name in ("trials", "events"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ConfigurationError(f"--{name} must be at least 1")
    if arguments.timeout_s is not None and not arguments.timeout_s > 0:  # nor NaN
        raise ConfigurationError("--timeout-s must be more than 0")
    if not 0.0 < arguments.holdout_share < 1.0:
        raise ConfigurationError("--holdout-share must be more than 0 and less than 1")
    if not 0.0 <= arguments.start < 1.0:
        raise ConfigurationError("--from must be at least 0 and less than 1")
    if arguments.seed is not None:
        require_seed(arguments.seed)
    if arguments.report == arguments.out:
        raise ConfigurationError("--report and --out must be two files")
    if arguments.force and arguments.resume:
        raise ConfigurationError("--force begins anew and --resume goes on: name one of them")
    data = Options(
        files=tuple(filter(None, [arguments.file])),
        columns=columns_from(arguments),
        items=items_from(arguments),
        item_columns=item_columns_from(arguments),
        skip_bad=arguments.skip_bad,
        start=arguments.start,
    )
    return TuneOptions(
        data=data,
        trials=arguments.trials,
        timeout_s=arguments.timeout_s,
        objective=arguments.objective,
        holdout_share=arguments.holdout_share,
        events=arguments.events,
        seed=arguments.seed,
        out=arguments.out,
        report=arguments.report,
        force=arguments.force,
        resume=arguments.resume,
        config=config,
        fixed=frozenset(_names(from_environment(environ))),
        command=command,
    )


def require_new(options: TuneOptions) -> None:
    """Raises ConfigurationError rather than overwrite what took hours."""
    there = [file for file in (options.out, options.journal) if file.exists()]
    if there and not (options.force or options.resume):
        raise ConfigurationError(
            f"{there[0]} is there already: --resume goes on with its search, --force begins anew, "
            "--out names another file"
        )


def _names(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _names(value, (*path, key))
        else:
            yield ".".join((*path, key))
