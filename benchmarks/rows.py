"""The rows of reports/bench.json."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table

REPORT = Path("reports/bench.json")
LIMIT = "limit"  # a reference that must not be passed, whatever the machine


@dataclass(frozen=True, slots=True)
class Row:
    """One figure beside the limit or peer that was measured in the same run."""

    name: str
    value: float  # the median of the runs
    unit: str
    reference: str | None
    reference_value: float | None
    ratio: float | None  # value to reference_value
    runs: int
    spread: float  # the largest run less the smallest, in `unit`


def make_row(
    name: str,
    values: Sequence[float],
    unit: str,
    reference: str | None = None,
    reference_values: Sequence[float] = (),
) -> Row:
    """A row of the medians of some runs, one at least."""
    value = statistics.median(values)
    against = statistics.median(reference_values) if reference_values else None
    return Row(
        name,
        value,
        unit,
        reference,
        against,
        value / against if against else None,
        len(values),
        max(values) - min(values),
    )


def too_much(rows: Sequence[Row]) -> list[str]:
    """The names of those that passed their limit."""
    return [row.name for row in rows if row.reference == LIMIT and (row.ratio or 0.0) > 1.0]


def percentile(values: Sequence[float], share: float) -> float:
    """NaN of nothing, which the report writes as null."""
    return float(np.percentile(values, share)) if len(values) else float("nan")


def write_report(rows: Sequence[Row]) -> None:
    REPORT.parent.mkdir(exist_ok=True)
    plain = {"rows": [asdict(row) for row in rows]}
    REPORT.write_bytes(orjson.dumps(plain, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def print_rows(rows: Sequence[Row]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for name in ("value", "unit", "reference", "its value", "ratio", "runs", "spread"):
        table.add_column(name, justify="left" if name in ("unit", "reference") else "right")
    for row in rows:
        table.add_row(
            row.name,
            _short(row.value),
            row.unit,
            row.reference or "",
            _short(row.reference_value),
            _short(row.ratio),
            str(row.runs),
            _short(row.spread),
        )
    Console(width=150).print(table)


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
