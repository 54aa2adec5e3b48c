"""From what the runs found to `reports/faults.json` and the table in the terminal. Pure but for
writing."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.run import Judged, Strike

NOTHING = (
    "lost",
    "applied_twice",
    "trained_twice",
    "untaught",
    "duplicates_other_rec_id",
    "strangers",
    "out_of_order",
)  # what must be 0 in every row


@dataclass(frozen=True, slots=True)
class Result:
    """One fault's run; `judged` is None where it came to no verdict, `failure` says why."""

    fault: str
    what: str
    once: bool  # duplicates count as broken promises too
    seeds: int
    strikes: Sequence[Strike]
    unproved: int  # strikes that hit an idle service, and were repeated
    judged: Judged | None
    failure: str | None
    seconds: float

    def row(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "fault": self.fault,
            "what": self.what,
            "seeds": self.seeds,
            "strikes": len(self.strikes),
            "unproved": self.unproved,
            "seconds": round(self.seconds, 1),
            "failure": self.failure,
        }
        if self.judged is None:
            return told
        judged = self.judged
        return told | {
            "lost": judged.output.lost,
            "applied_twice": judged.histories.applied_twice + judged.histories.disordered,
            "trained_twice": judged.teaching.trained_twice,
            "untaught": judged.teaching.untaught,
            "given_up": judged.given_up,
            "duplicates": judged.output.duplicates,
            "duplicates_other_rec_id": judged.output.duplicates_other_rec_id,
            "strangers": judged.output.strangers,
            "out_of_order": judged.output.out_of_order,
            "recovery_s": _spread(one.recovery_s for one in self.strikes),
            "longest_gap_s": _spread(judged.longest_gap_s),
            "lasted_s": _spread(one.lasted_s for one in self.strikes),
            "under_way": _spread(one.under_way for one in self.strikes),
            "events": judged.events,
            "versions": judged.versions,
        }

    @property
    def holds(self) -> bool:
        row = self.row()
        nothing = (*NOTHING, "duplicates") if self.once else NOTHING
        return self.failure is None and not any(row[name] for name in nothing)


def _spread(values: Iterable[float]) -> dict[str, float | None]:
    values = list(values)
    if not values:
        return {"median": None, "max": None}
    return {"median": round(statistics.median(values), 2), "max": round(max(values), 2)}


def write(results: Iterable[Result], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [result.row() for result in results]
    file.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


_COLUMNS = (
    ("fault", "fault", ">"),
    ("strikes", "strikes", ""),
    ("unproved", "unproved", ""),
    ("lost", "lost", ""),
    ("applied_twice", "applied 2x", ""),
    ("trained_twice", "trained 2x", ""),
    ("untaught", "untaught", ""),
    ("given_up", "given up", ""),
    ("duplicates", "dup", ""),
    ("duplicates_other_rec_id", "dup other", ""),
    ("out_of_order", "disorder", ""),
    ("recovery_s", "recovery s", ""),
    ("longest_gap_s", "gap s", ""),
)


def table(results: Iterable[Result]) -> str:
    """For a terminal; seconds are median / max."""
    lines = [[title for _, title, _ in _COLUMNS]]
    for result in results:
        row = result.row()
        lines.append([_cell(row.get(name)) for name, _, _ in _COLUMNS])
    widths = [max(len(line[place]) for line in lines) for place in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if place == 0 else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return f"{value['median']} / {value['max']}"
    return str(value)
