"""`headwater tune`: reads, searches, compares on what no trial saw, writes."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

import orjson
import torch
from rich.console import Console

from service.backtest.command import catalogue_of, data_of, describe, environment, stream_of, tell
from service.backtest.options import Protocol
from service.backtest.outputs import require_writable, writing
from service.backtest.preparing import prepared, require_times, with_seed
from service.backtest.progress import Progress
from service.backtest.reading import Read
from service.settings import Settings
from service.state.catalogue import CatalogueItem
from service.trainer.device import choose_device, choose_threads
from service.tune.measuring import Measuring
from service.tune.options import TuneOptions
from service.tune.results import Comparison, TuneReport, best_of, given_of, range_of
from service.tune.search import Search
from service.tune.settings_file import write_settings
from service.tune.space import Values, given_values, space_for
from service.tune.telling import comments, figures, table

INTERRUPTED = 130  # exit code, as a shell's


def run_tune(options: TuneOptions, settings: Settings) -> int:
    """From a file."""
    items = catalogue_of(options.data, settings)
    return tune(stream_of(options.data, settings), options, settings, items)


def tune(
    found: Read, options: TuneOptions, settings: Settings, items: Sequence[CatalogueItem] = ()
) -> int:
    """From what was read. Raises ConfigurationError."""
    started_s = time.perf_counter()
    progress = Progress(sys.stderr)
    if options.events is not None:
        found = replace(found, table=found.table.until(options.events))
    require_writable(options.out, options.report, options.journal)
    require_times(settings, [found.timed], options.data.columns.time_unit)
    settings, overrides = prepared(settings, [found.table], Protocol.PREQUENTIAL)
    seed = settings.model.seed if options.seed is None else options.seed
    settings, options = with_seed(settings, seed), replace(options, seed=seed)
    space = space_for(settings, options.fixed)
    given = given_values(space, settings)
    device = choose_device(settings.trainer.device)
    torch.set_num_threads(choose_threads(settings.trainer.threads))
    data = data_of([found], options.data, settings, items)
    tell(overrides, data, progress)
    described = describe(items, settings, device, progress)
    measuring = Measuring(found.table, settings, options, device, described)
    made_for = f"{measuring.fingerprint()} {' '.join(given)}"
    search = Search(space, given, options, made_for)
    is_whole = search.run(measuring.objective, progress)
    trials = search.trials
    best = best_of(trials)
    if best is None:
        progress.say("interrupted before a trial was finished: nothing is written")
        return INTERRUPTED
    comparison = None
    if is_whole and best.values != given:
        progress.say("comparing with the settings as given on what no trial saw")
        try:
            comparison = measuring.compare(given, best.values)
        except KeyboardInterrupt:
            is_whole = False
    report = TuneReport(
        command=options.command,
        objective=options.objective,
        seed=seed,
        data=data,
        searched_events=measuring.split,
        counted_from=measuring.first,
        space=[range_of(one) for one in space],
        trials=trials,
        given=given_of(trials, given).number,
        best=best.number,
        comparison=comparison,
        changes=_changes(given, best.values, comparison),
        interrupted=not is_whole,
        seconds=time.perf_counter() - started_s,
        environment=environment(device),
    )
    _write(report, options)
    return 0 if is_whole else INTERRUPTED


def _changes(given: Values, best: Values, comparison: Comparison | None) -> Values:
    """None where they gained nothing on what no trial saw."""
    if comparison is not None and comparison.gain <= 0:
        return {}
    return {name: value for name, value in best.items() if value != given[name]}


def _write(report: TuneReport, options: TuneOptions) -> None:
    plain = report.model_dump(mode="json")
    with writing(options.report):
        options.report.write_bytes(orjson.dumps(plain, option=orjson.OPT_INDENT_2) + b"\n")
    told = comments(report, date.today())
    with writing(options.out):
        write_settings(options.out, options.config, report.changes, told)
    console = Console()
    console.print(table(report))
    for line in (*figures(report), f"written: {options.out}, {options.report}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
