"""What people see of a demo: all of it in a terminal, a line now and then without one."""

import io
import math
from dataclasses import replace

from rich.console import Console

from service.sandbox.scoreboard import Recommender, Score
from service.sandbox.view import SHAPE_POINTS, Status, View, line, render, sparkline

COMPARED = (Recommender.LIVE, Recommender.FROZEN, Recommender.POPULARITY)
WINDOW = {who: Score(500, 0.1 * n, 0.01 * n) for n, who in enumerate(COMPARED, start=1)}
SO_FAR = {who: Score(900, 0.2 * n, 0.04 * n) for n, who in enumerate(COMPARED, start=1)}
STATUS = Status(
    phase="replaying",
    done=1_200,
    total=6_000,
    events_per_s=543.2,
    elapsed_s=42.0,
    queries=900,
    window=WINDOW,
    so_far=SO_FAR,
    shape={who: [0.0, 0.5] for who in COMPARED},
    serving=7,
    versions=("version 8: 900 films, +0.0123 on the holdout", "version 7: 880 films"),
    verdicts={"promote": 6, "reject": 1},
    event_to_weights_s=(3.4, 6.7),
)


def terminal(width: int = 140) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_progress_versions_and_every_model() -> None:
    console = terminal()
    console.print(render(STATUS, window=500))
    page = shown(console)
    for part in ("replaying", "1,200 of 6,000 events", "543/s", "42 s", "900 queries"):
        assert part in page
    for name in ("live, learning", "frozen at the start", "popularity"):
        [row] = [one for one in page.splitlines() if name in one]
        assert "▁█" in row
    [live] = [one for one in page.splitlines() if "live, learning" in one]
    assert [part for part in live.split() if part[0] == "0"] == ["0.100", "0.010", "0.200", "0.040"]
    for part in ("version 7", "6 promote, 1 reject", "p50 3.4 s, p95 6.7 s", *STATUS.versions):
        assert part in page


def test_everything_fits_a_small_terminal() -> None:
    status = replace(
        STATUS,
        phase="asking the frozen models the last queries",
        done=100_000,
        total=100_000,
        queries=79_000,
        shape={who: [1.0] * SHAPE_POINTS for who in COMPARED},
        versions=tuple(f"version {n}: 1,682 films, +0.0123 on the holdout" for n in range(5)),
    )
    console = terminal(width=80)
    console.print(render(status, window=5_000))
    lines = shown(console).splitlines()
    assert len(lines) <= 23  # the prompt takes one
    assert "…" not in shown(console)
    for part in ("100,000 of 100,000 events", "frozen at the start", *status.versions):
        assert any(part in one for one in lines)
    assert sum("█" * SHAPE_POINTS in one for one in lines) == len(COMPARED)


def test_without_a_terminal_there_is_a_line_for_a_phase_and_few_more() -> None:
    console = Console(file=io.StringIO())
    with View(console, window=500) as view:
        for _ in range(3):
            view.show(STATUS)
    assert shown(console).splitlines() == [line(STATUS)]
    assert "1,200/6,000 events at 543/s" in line(STATUS)
    assert "live 0.010, frozen 0.020, popularity 0.030" in line(STATUS)


def test_a_sparkline_is_a_block_a_value() -> None:
    assert sparkline([0.0, 0.5, 1.0, math.nan, 2.0], top=1.0) == "▁▅█ █"
    assert sparkline([0.0], top=0.0) == ""
