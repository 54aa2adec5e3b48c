"""Labels, baselines and the click head over a table of events."""

from pathlib import Path

import numpy as np
import pytest
import torch

from service.backtest.clicks import click_figures, click_rates, labels
from service.backtest.engine import Engine
from service.backtest.options import Protocol
from service.backtest.preparing import prepared
from service.backtest.table import Table
from service.settings import ClickSettings, Settings, load_settings
from tests.backtest.examples import quick_settings, table_of, walks
from tests.model.examples import save_bert
from tests.trainer.examples import CLICK, IMPRESSION

CPU = torch.device("cpu")
NAN = float("nan")
EXAMPLE = Path(__file__).parents[2] / "examples" / "bert-clicks.toml"


def with_clicks(click: ClickSettings) -> Settings:
    return quick_settings().model_copy(update={"click": click})


def shown_and_clicked() -> Table:
    """A second apart: user a is shown x, y; clicks x; user b is shown x, and at the end y."""
    table = table_of([("a", "x"), ("a", "y"), ("a", "x"), ("b", "x"), ("c", "z"), ("b", "y")])
    table.kind[:] = [IMPRESSION, IMPRESSION, CLICK, IMPRESSION, CLICK, IMPRESSION]
    table.value[:2] = [1.0, 0.0]
    return table


def test_a_label_is_what_follows_and_is_unknown_before_its_time_is_over() -> None:
    settings = with_clicks(ClickSettings(enabled=True, followed_by=("click",), within_s=2.0))
    found = labels(shown_and_clicked(), settings)
    assert found.tolist() == pytest.approx([1.0, 0.0, NAN, NAN, NAN, NAN], nan_ok=True)


def test_at_the_end_of_the_file_no_click_counts_either() -> None:
    table = table_of([("a", "x"), ("a", "y"), ("a", "y"), ("a", "z")])
    table.kind[:] = [IMPRESSION, IMPRESSION, CLICK, CLICK]
    settings = with_clicks(ClickSettings(enabled=True, followed_by=("click",), within_s=2.0))
    assert labels(table, settings).tolist() == pytest.approx([0.0, NAN, NAN, NAN], nan_ok=True)


def test_or_the_value() -> None:
    found = labels(shown_and_clicked(), with_clicks(ClickSettings(enabled=True)))
    assert found[:2].tolist() == [1.0, 0.0]
    assert np.isnan(found[2:]).all()


def test_an_items_rate_knows_no_label_before_its_time() -> None:
    table = table_of([("a", "x"), ("b", "x"), ("c", "x")])
    label = np.array([1.0, 1.0, 0.0], np.float32)
    by_value = click_rates(table, label, with_clicks(ClickSettings(enabled=True)))
    assert by_value.tolist() == pytest.approx([0.5, 1.0, 1.0])
    waits = ClickSettings(enabled=True, followed_by=("click",), within_s=2.0)
    rates = click_rates(table, label, with_clicks(waits))
    assert rates.tolist() == pytest.approx([0.5, 0.5, 1.0])


def test_the_seed_recipe_runs_from_the_example(tmp_path: Path) -> None:
    """A pretrained BERT, AdamW, early stopping; here a tiny one, and few events."""
    name = str(save_bert(tmp_path))
    small = {
        "model": {"backbone": {"name": name}, "max_length": 8, "dim": 8},
        "history": {"events": 8},
        "batch": {"train_max_events": 64},
        "trainer": {"gate": {"min_rows": 2}, "holdout": {"fraction": 0.2}},
        "click": {"within_s": 3.0},
    }
    settings = load_settings(EXAMPLE, {}, small)
    table = walks(400)
    table.kind[:] = settings.events.kinds.index("click")
    table.kind[::2] = settings.events.kinds.index("impression")
    settings, _ = prepared(settings, [table], Protocol.PREQUENTIAL)
    engine = Engine(settings, CPU, gate_every=1)
    try:
        for start in range(0, len(table), 50):
            events = table.events(start, min(start + 50, len(table)), start)
            engine.score(events, np.zeros(len(events), np.bool_))
        assert engine.champion.model.shape["backbone"]["model_type"] == "bert"
        assert engine.champion.model.click is not None
        figures = click_figures(np.concatenate(engine.expected), labels(table, settings), settings)
    finally:
        engine.close()
    assert figures.rows > 100
