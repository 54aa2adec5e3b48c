"""What a search found, in words: for the terminal, and as comments of the settings file."""

from datetime import date

from rich import box
from rich.table import Table as Grid

from service.backtest.page import LABELS
from service.tune.results import Outcome, TuneReport
from service.tune.space import Values


def figures(report: TuneReport) -> list[str]:
    """One sentence a line."""
    given, best = report.trials[report.given - 1], report.trials[report.best - 1]
    metric, share = LABELS[report.objective], 1.0 - report.searched_events / report.data.events
    counts = {each: sum(one.outcome is each for one in report.trials) for each in Outcome}
    ended = ", ".join(f"{count} {each}" for each, count in counts.items() if count)
    told = [f"Trials: {ended}, in {report.seconds:,.0f} s."]
    if best.values == given.values:
        told.append(f"No trial beat the settings as given ({metric} {given.objective:.4f}).")
    else:
        told.append(
            f"On the events that were searched on: {metric} {best.objective:.4f} instead of "
            f"{given.objective:.4f}; optimistic, as it is the best of the trials."
        )
    if comparison := report.comparison:
        told.append(
            f"On the last {share:.0%}, which no trial saw: {metric} {comparison.tuned:.4f} instead "
            f"of {comparison.given:.4f}, a gain of {comparison.gain:+.4f} ± "
            f"{comparison.margin:.4f} (95 %, {comparison.queries:,} queries)."
        )
        if not report.changes:
            told.append("There it is no better: the settings stay as given.")
        elif comparison.gain < comparison.margin:
            told.append("There the gain may be chance: more trials or more events would tell.")
    elif report.changes:
        told.append("Interrupted: not compared on the events that no trial saw.")
    if any(name.startswith("model.backbone.") for name in report.changes):
        told.append(
            "Another backbone: versions of the present one are refused, so begin with another "
            "storage.root."
        )
    return told


def comments(report: TuneReport, today: date) -> list[str]:
    """Of the settings file: where it is from, its figures, and what it changes."""
    given = report.trials[report.given - 1].values
    changes = [f"  {name} = {value}, given {given[name]}" for name, value in report.changes.items()]
    heading = "It changes:" if changes else "It changes nothing."
    return [f"Written {today} by: {report.command}", *figures(report), heading, *changes]


def table(report: TuneReport) -> Grid:
    given = report.trials[report.given - 1].values
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    grid.add_column("setting", no_wrap=True)
    for heading in ("given", "best", "searched"):
        grid.add_column(heading, justify="right", no_wrap=True)
    best: Values = report.trials[report.best - 1].values
    for one in report.space:
        changed = best[one.name] != given[one.name]
        grid.add_row(
            one.name,
            f"{given[one.name]:g}",
            f"{best[one.name]:g}",
            f"{one.low:g} to {one.high:g}",
            style="bold" if changed else None,
        )
    return grid
