"""What `headwater backtest` is asked for. Loads nothing heavy: every command builds this parser."""

import argparse
import enum
import re
from dataclasses import dataclass
from pathlib import Path

from service.errors import ConfigurationError


class Protocol(enum.StrEnum):
    PREQUENTIAL = "prequential"  # one file; every event is ranked, then learned
    CONTINUAL = "continual"  # period files; a period is ranked as a whole, then learned


class TimeUnit(enum.StrEnum):
    SECONDS = "s"
    MILLISECONDS = "ms"


@dataclass(frozen=True, slots=True)
class Columns:
    """How the files name their columns; None: as `events.fields` in the settings does.

    A column that was named must be there. Of the others only user and item must.
    """

    user: str | None = None
    item: str | None = None
    time: str | None = None
    event: str | None = None
    value: str | None = None
    time_unit: TimeUnit | None = None
    context: tuple[str, ...] = ()  # columns that are put into the events' context


@dataclass(frozen=True, slots=True)
class ItemColumns:
    """How the file of items names its columns. What is not there is not known, but for those that
    were `named`."""

    item: str = "item_id"
    text: tuple[str, ...] = ("title", "text")  # joined
    categories: str = "categories"
    vectors: tuple[tuple[str, str], ...] = ()  # (source, column); others are named as the source
    named: tuple[str, ...] = ()  # columns; one row at least has each


@dataclass(frozen=True, slots=True)
class Options:
    """One run of the command."""

    protocol: Protocol = Protocol.PREQUENTIAL
    files: tuple[Path, ...] = ()
    columns: Columns = Columns()
    items: Path | None = None
    item_columns: ItemColumns = ItemColumns()
    skip_bad: bool = False
    seeds: tuple[int, ...] = ()  # empty: the one in the settings
    gate_every: int = 4  # micro-batches
    events: int | None = None  # of each file
    out: Path = Path("reports/backtest.json")
    html: Path | None = None  # beside `out` when None
    resume: bool = False
    # prequential
    start: float = 0.5  # share of the stream after which metrics are counted
    parts: int = 20
    retrain_every: int | None = None  # events
    # continual
    retrain: bool = False
    streamed: bool = False
    limit_queries: int | None = None
    # both
    retrain_epochs: int = 12
    retrain_patience: int = 4

    @property
    def page(self) -> Path:
        return self.html or beside(self.out, ".html")

    @property
    def partial(self) -> Path:
        """Where finished seeds are kept until the run is whole."""
        return beside(self.out, ".partial.json")


def beside(file: Path, ending: str) -> Path:
    """A file next to it; what is no known ending, as in `rate-0.01`, belongs to the name."""
    name = file.stem if file.suffix in (".json", ".toml") else file.name
    return file.with_name(name + ending)


_SEEDS = 1 << 63  # that torch and the settings take
_COUNTS = (
    "gate_every",
    "events",
    "parts",
    "retrain_every",
    "retrain_epochs",
    "retrain_patience",
    "limit_queries",
)
_PREQUENTIAL = ("start", "parts", "retrain_every")
_CONTINUAL = ("limit_queries", "retrain", "streamed")
_OF_FILES = ("user", "item", "time", "event", "value", "time_unit")
_OTHERS = ("protocol", "skip_bad", "start", "retrain", "streamed", "out", "html", "resume")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """What is read: the events of a stream, and what is known of items."""
    parser.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="CSV, TSV, JSONL, Parquet"
    )
    parser.add_argument(
        "--movielens", action="store_true", help="the demo's MovieLens ratings in place of FILE"
    )
    names = parser.add_argument_group("columns (defaults: events.fields in the settings)")
    for column in ("user", "item", "time", "event", "value"):
        names.add_argument(f"--{column}", metavar="NAME", help=f"the column of the {column}")
    names.add_argument(
        "--context", nargs="+", default=[], metavar="NAME",
        help="columns that belong to the event's context, for features of model.context",
    )  # fmt: skip
    names.add_argument("--time-unit", type=TimeUnit, choices=list(TimeUnit), help="of numbers")
    names.add_argument(
        "--skip-bad", action="store_true", help="count bad rows of events instead of ending"
    )
    of_items = parser.add_argument_group(
        "what is known of items (needs items.text.encoder or items.vectors)"
    )
    of_items.add_argument("--items", type=Path, metavar="FILE", help="CSV, TSV, JSONL, Parquet")
    default = ItemColumns()
    of_items.add_argument(
        "--items-id", metavar="NAME", help=f"the column of the item; default: {default.item}"
    )
    of_items.add_argument(
        "--items-text", nargs="+", default=(), metavar="NAME",
        help=f"the columns of the text, joined; default: {' and '.join(default.text)}",
    )  # fmt: skip
    of_items.add_argument(
        "--items-categories", metavar="NAME",
        help=f"of its categories; default: {default.categories}",
    )  # fmt: skip
    of_items.add_argument(
        "--items-vectors", nargs="+", default=(), metavar="SOURCE=NAME",
        help="the columns of the vectors; default: each named as its source in items.vectors",
    )  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    parser.add_argument("--protocol", type=Protocol, choices=list(Protocol), default="prequential")
    parser.add_argument(
        "--periods", type=Path, nargs="+", default=[], metavar="FILE", help="for continual, by name"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--seed", type=int, nargs="+", action="extend", default=[])
    how.add_argument("--gate-every", type=int, default=4, metavar="N", help="in micro-batches")
    how.add_argument("--events", type=int, metavar="N", help="the first of each file alone")
    how.add_argument(
        "--from", type=float, dest="start", metavar="SHARE",
        help=f"prequential: count and freeze from there on; default {Options().start}",
    )  # fmt: skip
    how.add_argument(
        "--parts", type=int, metavar="N",
        help=f"prequential: blocks reported apart; default {Options().parts}",
    )  # fmt: skip
    how.add_argument(
        "--retrain-every", type=int, metavar="EVENTS", help="prequential: also a periodic retrain"
    )
    how.add_argument("--retrain", action="store_true", help="continual: also a full retrain")
    how.add_argument(
        "--retrain-epochs", type=int, metavar="N",
        help=f"at most; default {Options().retrain_epochs}",
    )  # fmt: skip
    how.add_argument(
        "--retrain-patience", type=int, metavar="N",
        help=f"in epochs; default {Options().retrain_patience}",
    )  # fmt: skip
    how.add_argument(
        "--streamed", action="store_true", help="continual: also as the service learns in a period"
    )
    how.add_argument("--limit-queries", type=int, metavar="N", help="continual: of a period, drawn")
    how.add_argument("--out", type=Path, default=Path("reports/backtest.json"), metavar="FILE")
    how.add_argument("--html", type=Path, metavar="FILE", help="default: beside --out")
    how.add_argument("--resume", action="store_true", help="go on after the seeds that are done")


def _numbered(file: Path) -> list[tuple[int, str]]:
    """So that period 2 comes before period 10."""
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def options_from(arguments: argparse.Namespace) -> Options:
    """Raises ConfigurationError for what does not go together."""
    given = vars(arguments)
    continual = arguments.protocol is Protocol.CONTINUAL
    files = sorted(arguments.periods, key=_numbered)
    if continual and (len(files) < 2 or arguments.file or arguments.movielens):
        raise ConfigurationError("--protocol continual takes --periods with two files or more")
    if not continual and (files or bool(arguments.file) == arguments.movielens):
        raise ConfigurationError("name one FILE of events, or --protocol continual --periods FILES")
    for name in _COUNTS:
        if given[name] is not None and given[name] < 1:
            raise ConfigurationError(f"--{name.replace('_', '-')} must be at least 1")
    for name in _PREQUENTIAL if continual else _CONTINUAL:
        if given[name] is not None and given[name] is not False:
            option = "from" if name == "start" else name.replace("_", "-")
            raise ConfigurationError(f"--{option} is not for --protocol {arguments.protocol}")
    for name in ("retrain_epochs", "retrain_patience"):
        if given[name] is not None and not (arguments.retrain or arguments.retrain_every):
            raise ConfigurationError(
                f"--{name.replace('_', '-')} goes with --retrain or --retrain-every"
            )
    if arguments.html == arguments.out:
        raise ConfigurationError("--html and --out must be two files")
    if arguments.start is not None and not 0.0 <= arguments.start < 1.0:
        raise ConfigurationError("--from must be at least 0 and less than 1")
    for seed in arguments.seed:
        require_seed(seed)
    chosen = {name: given[name] for name in (*_COUNTS, *_OTHERS) if given[name] is not None}
    return Options(
        files=tuple(files) if continual else tuple(filter(None, [arguments.file])),
        columns=columns_from(arguments),
        items=items_from(arguments),
        item_columns=item_columns_from(arguments),
        seeds=tuple(dict.fromkeys(arguments.seed)),
        **chosen,
    )


def require_seed(seed: int) -> None:
    """Raises ConfigurationError where no generator takes it."""
    if not 0 <= seed < _SEEDS:
        raise ConfigurationError("--seed must be at least 0 and less than 2 ** 63")


def columns_from(arguments: argparse.Namespace) -> Columns:
    """Raises ConfigurationError where there is no file to have them."""
    given = vars(arguments)
    for name in (*_OF_FILES, "context", "skip_bad"):
        if arguments.movielens and given[name]:
            raise ConfigurationError(f"--{name.replace('_', '-')} goes with a FILE of events")
    return Columns(**{name: given[name] for name in _OF_FILES}, context=tuple(arguments.context))


def items_from(arguments: argparse.Namespace) -> Path | None:
    """Raises ConfigurationError where there are two files of items."""
    if arguments.items and arguments.movielens:
        raise ConfigurationError("--movielens brings its own items; --items goes with a FILE")
    items: Path | None = arguments.items
    return items


def item_columns_from(arguments: argparse.Namespace) -> ItemColumns:
    """Raises ConfigurationError where there is no file to have them."""
    given, default = vars(arguments), ItemColumns()
    for name in ("items_id", "items_text", "items_categories", "items_vectors"):
        if given[name] and not arguments.items:
            raise ConfigurationError(f"--{name.replace('_', '-')} goes with --items FILE")
    vectors = tuple(_source_and_column(one) for one in arguments.items_vectors)
    named = {*arguments.items_text, *(column for _, column in vectors)}
    named |= {arguments.items_categories} if arguments.items_categories else set()
    return ItemColumns(
        arguments.items_id or default.item,
        tuple(arguments.items_text) or default.text,
        arguments.items_categories or default.categories,
        vectors,
        tuple(sorted(named)),
    )


def _source_and_column(given: str) -> tuple[str, str]:
    source, _, column = given.partition("=")
    if not source or not column:
        raise ConfigurationError(f"--items-vectors takes SOURCE=NAME, not {given!r}")
    return source, column
