"""The demo's summary, and the report whose fields other programs read."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from service.sandbox.demo_report import Results, print_summary, ratios, write_json
from service.sandbox.picture import draw
from service.sandbox.scoreboard import Curve, Recommender, Score
from tests.sandbox.test_view import COMPARED

HALF = {
    Recommender.LIVE: Score(40, 0.2, 0.12),
    Recommender.FROZEN: Score(40, 0.1, 0.08),
    Recommender.POPULARITY: Score(40, 0.1, 0.10),
    Recommender.FROZEN_AT_HALF: Score(40, 0.0, 0.0),
}
RESULTS = Results(
    events=100_000,
    replayed=80_000,
    seconds=190.0,
    replay_seconds=160.0,
    second_half=HALF,
    whole={who: HALF[who] for who in COMPARED},
    published=42,
    served=40,
    rejected=3,
    event_to_weights_s=(3.0, 6.3),
    published_at=[5, 9],
    is_whole=True,
    examples=[("7", ["Heat (1995)"], ["Fargo (1996)", "Se7en (1995)"])],
)


def summary(results: Results) -> str:
    text = io.StringIO()
    print_summary(results, Console(file=text, width=120))
    return text.getvalue()


def test_the_report_has_the_fields_that_stay(tmp_path: Path) -> None:
    write_json(RESULTS, tmp_path / "demo.json")
    report = json.loads((tmp_path / "demo.json").read_text())
    assert (report["events"], report["seconds"]) == (100_000, 190.0)
    for who in COMPARED:
        scores = report["second_half"][who.value]
        assert (scores["hr_at_10"], scores["ndcg_at_10"]) == (
            HALF[who].hr_at_10,
            HALF[who].ndcg_at_10,
        )
    assert (report["versions"]["published"], report["versions"]["rejected"]) == (42, 3)
    assert report["event_to_weights_s"] == {"p50": 3.0, "p95": 6.3}


def test_a_model_that_never_hit_has_no_ratio() -> None:
    assert ratios(HALF).keys() == {Recommender.FROZEN, Recommender.POPULARITY}


def test_the_summary_says_which_target_was_reached() -> None:
    page = summary(RESULTS)
    assert "1.10 x reached" in page
    assert "2.00 x missed" in page
    assert "42 published, 3 rejected" in page
    assert "p50 3.0 s, p95 6.3 s" in page
    assert "user 7 rated Heat (1995)" in page
    assert "Fargo (1996); Se7en (1995)" in page


def test_a_shortened_run_has_no_targets() -> None:
    page = summary(replace(RESULTS, is_whole=False, event_to_weights_s=None))
    assert "reached" not in page
    assert "missed" not in page


def test_the_picture_is_one(tmp_path: Path) -> None:
    points = {who: [0.1, 0.2] for who in COMPARED}
    curve = Curve(event=np.array([10, 20]), ndcg_at_10=points, hr_at_10=points)
    draw(curve, published=[12], half=20, window=5, file=tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
