"""`headwater backtest`: reads, runs every seed, reports."""

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table as Grid

from service import __version__
from service.backtest import partial
from service.backtest.options import Options, Protocol
from service.backtest.outputs import require_writable, writing
from service.backtest.page import LABELS, draw_page, summary_line
from service.backtest.periods import run_continual
from service.backtest.preparing import (
    Override,
    prepared,
    require_times,
    with_seed,
    without_effect,
)
from service.backtest.prequential import run_prequential
from service.backtest.progress import Progress
from service.backtest.reading import MS_APART, Read, read
from service.backtest.reading_items import read_items
from service.backtest.report import Data, Report, click_lines, make_report, write
from service.backtest.results import SeedResult
from service.backtest.scores import METRICS
from service.backtest.table import Table, keys_of
from service.domain import UserId
from service.errors import ConfigurationError
from service.model.item_tower import Described
from service.settings import Settings
from service.state.catalogue import CatalogueItem
from service.tracking.tracker import start_tracker
from service.trainer.describing import Describer
from service.trainer.device import choose_device, choose_threads


def run_backtest(options: Options, settings: Settings) -> int:
    """From files."""
    items = catalogue_of(options, settings)
    if options.protocol is Protocol.CONTINUAL:
        return backtest(_periods(options, settings), options, settings, items)
    return backtest([stream_of(options, settings)], options, settings, items)


def stream_of(options: Options, settings: Settings) -> Read:
    """The one file of a prequential run."""
    (file,) = options.files
    return _read(file, options, settings)


def _read(file: Path, options: Options, settings: Settings) -> Read:
    return read(
        file, options.columns, settings.events, settings.model.context, skip_bad=options.skip_bad
    )


def catalogue_of(options: Options, settings: Settings) -> list[CatalogueItem]:
    """What the options' file knows of items; none without one."""
    known = settings.items
    if options.items and not known.text.encoder and not known.vectors:
        raise ConfigurationError(
            "--items needs items.text.encoder, the model that reads their texts (a hub id or a "
            "local folder), or items.vectors, which name columns of vectors"
        )
    return read_items(options.items, options.item_columns, known.vectors) if options.items else []


def backtest(
    found: Sequence[Read],
    options: Options,
    settings: Settings,
    items: Sequence[CatalogueItem] = (),
) -> int:
    """From what was read: one table, or one for each period; and a catalogue of items. Raises
    ConfigurationError."""
    require_times(settings, [one.timed for one in found], options.columns.time_unit)
    if options.events:
        found = [replace(one, table=one.table.until(options.events)) for one in found]
    tables = [one.table for one in found]
    settings, overrides = prepared(settings, tables, options.protocol)
    device = choose_device(settings.trainer.device)
    torch.set_num_threads(choose_threads(settings.trainer.threads))
    seeds = options.seeds or (settings.model.seed,)
    console, progress = Console(), Progress(sys.stderr)
    progress.say(f"{options.protocol} protocol, seed {', '.join(map(str, seeds))}")
    data = data_of(found, options, settings, items)
    require_writable(options.out, options.page, options.partial)
    tell(overrides, data, progress)
    described = describe(items, settings, device, progress)
    runs = _runs(tables, settings, options, device, seeds, described)
    report = make_report(runs, data, options, settings, overrides, environment(device))
    write(report, options.out)
    with writing(options.page):
        options.page.write_text(draw_page(report), encoding="utf-8")
    options.partial.unlink(missing_ok=True)
    _print(report, console)
    console.print(
        f"written: {options.out}, {options.page}", highlight=False, markup=False, soft_wrap=True
    )
    return 0


def tell(overrides: Sequence[Override], data: Data, progress: Progress) -> None:
    """Before the run, what is not as it was asked for."""
    for override in overrides:
        progress.say(
            f"{override.name} is {override.used} instead of {override.given}: {override.why}"
        )
    for line in data.without_effect:
        progress.say(line)


def describe(
    items: Sequence[CatalogueItem], settings: Settings, device: torch.device, progress: Progress
) -> Described | None:
    """The items' texts as vectors; None without items."""
    if not items:
        return None
    progress.say(f"encoding what the catalogue says of {len(items):,} items")
    describer = Describer(settings.items, device)
    describer.remember(items)
    return describer.describe(items)


def _runs(
    tables: Sequence[Table],
    settings: Settings,
    options: Options,
    device: torch.device,
    seeds: Sequence[int],
    described: Described | None,
) -> list[SeedResult]:
    """One result a seed; those that an interrupted run has finished are not run again."""
    made_for = partial.fingerprint(tables, settings, options, described)
    done = partial.load(options.partial, made_for) if options.resume else []
    for seed in seeds:
        if any(run.seed == seed for run in done):
            continue
        progress = Progress(sys.stderr, f"seed {seed} " if len(seeds) > 1 else "")
        seeded = with_seed(settings, seed)
        tracker = start_tracker(seeded, f"backtest-seed-{seed}", datetime.now(UTC))
        given = (seeded, options, device, progress, described, tracker)
        try:
            if options.protocol is Protocol.CONTINUAL:
                done.append(run_continual(tables, *given))
            else:
                done.append(run_prequential(tables[0], *given))
        finally:
            tracker.close()
            progress.end()
        partial.save(options.partial, made_for, done)
    return [run for seed in seeds for run in done if run.seed == seed]


def _periods(options: Options, settings: Settings) -> list[Read]:
    """Sessions belong to their period: the same id in another one is another session."""
    found, events = [], 0
    for number, file in enumerate(options.files):
        one = _read(file, options, settings)
        table = one.table
        user_ids = [UserId(f"{number}/{user}") for user in table.user_ids]
        time = table.timestamp
        if not one.timed:  # periods follow each other
            time = (events + np.arange(len(table), dtype=np.int64)) * MS_APART
        table = replace(table, user_ids=user_ids, user=keys_of(user_ids), timestamp=time)
        found.append(replace(one, table=table))
        events += len(table)
    return found


def data_of(
    found: Sequence[Read],
    options: Options,
    settings: Settings,
    items: Sequence[CatalogueItem],
) -> Data:
    tables = [one.table for one in found]
    return Data(
        files=[file.name for file in options.files],
        events=sum(len(one.table) for one in found),
        users=len(np.unique(np.concatenate([one.table.user for one in found]))),
        items=len(np.unique(np.concatenate([one.table.item for one in found]))),
        bad_rows=sum(one.bad for one in found),
        repeated_rows=sum(one.repeated for one in found),
        first_bad_row=next((one.first_bad for one in found if one.first_bad), None),
        timed=all(one.timed for one in found),
        without_effect=without_effect(settings, tables, knows_items=bool(items)),
    )


def environment(device: torch.device) -> dict[str, Any]:
    return {
        "headwater": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type,
    }


def _print(report: Report, console: Console) -> None:
    shown = [metric for metric in METRICS if metric != "hr_at_10"]  # the same as Recall@10
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    grid.add_column("model", no_wrap=True)
    for metric in shown:
        grid.add_column(LABELS[metric], justify="right", no_wrap=True)
    grid.add_column("training", justify="right", no_wrap=True)
    for name, model in report.models.items():
        grid.add_row(
            name,
            *(f"{getattr(model, metric):.4f}" for metric in shown),
            f"{model.train_seconds:,.1f} s",
            style="bold" if name == "live" else None,
        )
        if len(report.seeds) > 1:
            spread = (f"±{model.spread[metric]:.4f}" for metric in shown)
            grid.add_row("  over seeds", *spread, "", style="dim")
    console.print(grid)
    for line in (summary_line(report), *click_lines(report), *report.notes):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
