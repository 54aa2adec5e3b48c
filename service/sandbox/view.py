"""What is seen while the demo runs: a live table in a terminal, else a line now and then."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.sandbox.scoreboard import Recommender, Score

_LINE_EVERY_S = 10.0
SHAPE_POINTS = 16  # as many as a terminal of 80 columns has room for
_BARS = "▁▂▃▄▅▆▇█"
NAMES = {
    Recommender.LIVE: "live, learning",
    Recommender.FROZEN: "frozen at the start",
    Recommender.POPULARITY: "popularity",
    Recommender.FROZEN_AT_HALF: "frozen half-way",
}


@dataclass(frozen=True, slots=True)
class Status:
    """All that the view shows, at one moment."""

    phase: str
    done: int  # events answered
    total: int
    events_per_s: float
    elapsed_s: float
    queries: int
    window: Mapping[Recommender, Score]  # the last queries
    so_far: Mapping[Recommender, Score]
    shape: Mapping[Recommender, list[float]]  # NDCG@10 along the stream, SHAPE_POINTS at most
    serving: int | None
    versions: tuple[str, ...]  # the newest ones published, one line each, newest first
    verdicts: Mapping[str, int]
    event_to_weights_s: tuple[float, float] | None  # p50, p95


class View:
    """Shows statuses; a context manager, so that the terminal is given back whatever happens."""

    def __init__(self, console: Console, window: int) -> None:
        self._console = console
        self._window = window
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._phase = ""
        self._next_line_s = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, status: Status) -> None:
        """Call as often as you like: without a terminal most calls print nothing."""
        if self._live:
            self._live.update(render(status, self._window), refresh=True)
            return
        now_s = time.monotonic()
        if status.phase != self._phase or now_s >= self._next_line_s:
            self._phase, self._next_line_s = status.phase, now_s + _LINE_EVERY_S
            self._console.print(line(status), markup=False, highlight=False, soft_wrap=True)


def line(status: Status) -> str:
    """A status without colours or cursor movements."""
    parts = [f"{status.elapsed_s:4.0f} s  {status.phase}"]
    if status.done:
        parts.append(f"{status.done:,}/{status.total:,} events at {status.events_per_s:,.0f}/s")
    ndcg = [f"{who} {score.ndcg_at_10:.3f}" for who, score in status.window.items()]
    if status.queries:
        parts.append(f"NDCG@10 {', '.join(ndcg)}")
    if status.serving is not None:
        parts.append(f"version {status.serving}, {status.verdicts.get('reject', 0)} rejected")
    return "; ".join(parts)


def render(status: Status, window: int) -> RenderableType:
    """Fits a terminal of 80 columns and 24 lines; what does not fit is cut off at the end."""
    progress = Table.grid(padding=(0, 2))
    progress.add_row(
        ProgressBar(total=max(status.total, 1), completed=status.done, width=30),
        f"{status.done:,} of {status.total:,} events",
        f"{status.events_per_s:,.0f}/s",
        f"{status.elapsed_s:.0f} s",
    )
    return Panel(
        Group(
            Text(status.phase, style="bold"),
            progress,
            "",
            _scores(status, window),
            "",
            _versions(status),
        ),
        title="Headwater learns from MovieLens as it streams through Kafka",
    )


def _scores(status: Status, window: int) -> Table:
    title = f"{status.queries:,} queries, each asked before it was learned"
    table = Table(title=title, box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for head in (f"HR@10, last {window:,}", "NDCG@10", "so far HR@10", "NDCG@10"):
        table.add_column(head, justify="right")
    table.add_column("NDCG@10 in time", no_wrap=True, min_width=SHAPE_POINTS)
    top = max((value for values in status.shape.values() for value in values), default=0.0)
    for who, score in status.window.items():
        far = status.so_far[who]
        table.add_row(
            NAMES[who],
            *(f"{value:.3f}" for value in (score.hr_at_10, score.ndcg_at_10)),
            *(f"{value:.3f}" for value in (far.hr_at_10, far.ndcg_at_10)),
            sparkline(status.shape.get(who, []), top),
            style="bold green" if who is Recommender.LIVE else None,
        )
    return table


def _versions(status: Status) -> Table:
    table = Table.grid(padding=(0, 2))
    verdicts = ", ".join(f"{count} {name}" for name, count in sorted(status.verdicts.items()))
    table.add_row("serving", f"version {status.serving}" if status.serving is not None else "-")
    table.add_row("gate", verdicts or "-")
    if status.event_to_weights_s:
        p50, p95 = status.event_to_weights_s
        table.add_row("event to weights", f"p50 {p50:.1f} s, p95 {p95:.1f} s")
    table.add_row("published", "\n".join(status.versions) or "-")
    return table


def sparkline(values: list[float], top: float) -> str:
    """One block a value, from 0 to `top`; a NaN is a blank."""
    if top <= 0:
        return ""
    steps = len(_BARS) - 1
    return "".join(
        " " if value != value else _BARS[round(min(value / top, 1.0) * steps)] for value in values
    )
