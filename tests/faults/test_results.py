"""What makes a row hold, and what is told of it."""

from dataclasses import replace

import pytest

from tests.faults.oracle import Histories, Output, Teaching
from tests.faults.results import Result, table
from tests.faults.run import Judged, Strike

WELL = Judged(Output(0, 0, 0, 0, 0), Histories(0, 0), Teaching(0, 0), 10, 3, 0, [1.0, 4.0])
RESULT = Result(
    fault="kill",
    what="kill -9",
    once=False,
    seeds=2,
    strikes=[Strike(0.0, 0.0, 3, 2.0), Strike(9.0, 0.0, 1, 5.0)],
    unproved=1,
    judged=WELL,
    failure=None,
    seconds=60.0,
)


def test_a_row_has_the_medians_and_the_worst() -> None:
    row = RESULT.row()
    assert row["recovery_s"] == {"median": 3.5, "max": 5.0}
    assert row["longest_gap_s"] == {"median": 2.5, "max": 4.0}
    assert (row["seeds"], row["strikes"], row["unproved"]) == (2, 2, 1)
    assert RESULT.holds
    assert "3.5 / 5.0" in table([RESULT])


@pytest.mark.parametrize(
    "judged",
    [
        replace(WELL, output=replace(WELL.output, lost=1)),
        replace(WELL, output=replace(WELL.output, duplicates_other_rec_id=1)),
        replace(WELL, output=replace(WELL.output, strangers=1)),
        replace(WELL, output=replace(WELL.output, out_of_order=1)),
        replace(WELL, histories=Histories(1, 0)),
        replace(WELL, histories=Histories(0, 1)),
        replace(WELL, teaching=Teaching(1, 0)),
        replace(WELL, teaching=Teaching(0, 1)),
    ],
)
def test_any_harm_breaks_it(judged: Judged) -> None:
    assert not replace(RESULT, judged=judged).holds


def test_a_duplicate_breaks_it_only_where_nobody_crashed() -> None:
    twice = replace(RESULT, judged=replace(WELL, output=replace(WELL.output, duplicates=2)))
    assert twice.holds
    assert not replace(twice, once=True).holds


def test_without_a_verdict_it_does_not_hold_and_says_why() -> None:
    broken = replace(RESULT, judged=None, failure="no answer")
    assert not broken.holds
    assert broken.row()["failure"] == "no answer"
    assert table([broken])
