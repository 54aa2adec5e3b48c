"""What the demo found: the summary for people and reports/demo.json for comparing over time."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from service.sandbox.scoreboard import Recommender, Score
from service.sandbox.view import NAMES

# What the live model is to reach over the last half, in NDCG@10 as a multiple of the other's.
_TARGETS = {Recommender.FROZEN: 1.10, Recommender.POPULARITY: 2.0}


@dataclass(frozen=True, slots=True)
class Results:
    """A whole run."""

    events: int  # through the topic, those of the start included
    replayed: int
    seconds: float  # of the whole run
    replay_seconds: float
    second_half: Mapping[Recommender, Score]
    whole: Mapping[Recommender, Score]
    published: int  # versions, without the one it started from
    served: int  # distinct versions that answered, with it
    rejected: int
    event_to_weights_s: tuple[float, float] | None  # p50, p95
    published_at: list[int]  # the events at which versions took over
    is_whole: bool  # not shortened by `--events`: the targets are meant for the whole data
    examples: list[tuple[str, list[str], list[str]]]  # user, last films, recommended ones


def ratios(scores: Mapping[Recommender, Score]) -> dict[Recommender, float]:
    """NDCG@10 of the live model as a multiple of every other's."""
    live = scores[Recommender.LIVE].ndcg_at_10
    return {
        who: live / score.ndcg_at_10
        for who, score in scores.items()
        if who is not Recommender.LIVE and score.ndcg_at_10 > 0
    }


def write_json(results: Results, file: Path) -> None:
    delays = results.event_to_weights_s
    plain: dict[str, Any] = {
        "events": results.events,
        "replayed": results.replayed,
        "seconds": results.seconds,
        "replay_seconds": results.replay_seconds,
        "second_half": _plain(results.second_half),
        "whole": _plain(results.whole),
        "ratios": {who.value: ratio for who, ratio in ratios(results.second_half).items()},
        "versions": {
            "published": results.published,
            "served": results.served,
            "rejected": results.rejected,
        },
        "event_to_weights_s": {"p50": delays[0], "p95": delays[1]} if delays else None,
    }
    file.write_bytes(orjson.dumps(plain, option=orjson.OPT_INDENT_2) + b"\n")


def _plain(scores: Mapping[Recommender, Score]) -> dict[str, Any]:
    return {who.value: asdict(score) for who, score in scores.items()}


def print_summary(results: Results, console: Console) -> None:
    console.print()
    console.print(_scores(results))
    console.print(_figures(results))
    console.print()
    for user, seen, recommended in results.examples:
        console.print(f"user {user} rated {'; '.join(seen)}", style="bold", highlight=False)
        console.print(f"  and was recommended {'; '.join(recommended)}", highlight=False)
    console.print()


def _scores(results: Results) -> Table:
    queries = results.second_half[Recommender.LIVE].queries
    table = Table(title=f"The last half of the replay: {queries:,} queries, asked of all")
    for head in ("model", "HR@10", "NDCG@10", "live is", "target"):
        table.add_column(head, justify="left" if head == "model" else "right")
    multiples = ratios(results.second_half)
    for who, score in results.second_half.items():
        target = _TARGETS.get(who) if results.is_whole else None
        reached = target is None or multiples.get(who, 0.0) >= target
        table.add_row(
            NAMES[who],
            f"{score.hr_at_10:.4f}",
            f"{score.ndcg_at_10:.4f}",
            f"{multiples[who]:.2f} x" if who in multiples else "",
            f"{target:.2f} x {'reached' if reached else 'missed'}" if target else "",
            style="bold" if who is Recommender.LIVE else None,
        )
    return table


def _figures(results: Results) -> Table:
    table = Table.grid(padding=(0, 2))
    rate = results.replayed / results.replay_seconds
    table.add_row("events", f"{results.events:,}, {results.replayed:,} of them at {rate:,.0f}/s")
    table.add_row("versions", f"{results.published} published, {results.rejected} rejected")
    if results.event_to_weights_s:
        p50, p95 = results.event_to_weights_s
        table.add_row(
            "from an event to a version that learned it",
            f"p50 {p50:.1f} s, p95 {p95:.1f} s (1 in 20 waits longer, in the rolling holdout)",
        )
    table.add_row("duration", f"{results.seconds:.0f} s")
    return table
