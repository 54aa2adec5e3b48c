"""The command from files to report, both protocols, and going on after an interruption."""

import csv
import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from service.backtest import command, partial
from service.backtest.command import run_backtest
from service.backtest.options import Columns, Options, Protocol, TimeUnit
from service.backtest.periods import run_continual
from service.backtest.results import SeedResult
from service.backtest.scores import METRICS
from service.backtest.table import Table
from service.errors import ConfigurationError
from service.settings import (
    CategoryFeature,
    GapFeature,
    ItemsSettings,
    Settings,
    TextSettings,
    TrackingSettings,
    VectorSettings,
    load_settings,
)
from tests.backtest.examples import periods, quick_settings, walks
from tests.model.encoders import write_encoder
from tests.model.examples import save_llama
from tests.tracking.examples import curves, runs

SETTINGS = quick_settings()
EXAMPLE = Path(__file__).parents[2] / "examples" / "llama-lora.toml"


def write(table: Table, file: Path) -> Path:
    with file.open("w", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["session_id", "item_id"])
        rows.writerows(zip(table.user_ids, table.item_ids, strict=True))
    return file


def continual(folder: Path, **more: Any) -> Options:
    files = [write(table, folder / f"p_{i}.csv") for i, table in enumerate(periods(3))]
    return Options(
        protocol=Protocol.CONTINUAL, files=tuple(files), columns=Columns(user="session_id"),
        gate_every=2, out=folder / "out" / "report.json", **more,
    )  # fmt: skip


def prequential(folder: Path) -> Options:
    return Options(
        files=(write(walks(300), folder / "events.csv"),), columns=Columns(user="session_id"),
        gate_every=2, parts=3, out=folder / "report.json",
    )  # fmt: skip


def report_of(options: Options) -> dict[str, Any]:
    assert run_backtest(options, SETTINGS) == 0
    report: dict[str, Any] = json.loads(options.out.read_text())
    return report


class Page(HTMLParser):
    """What a page would load, and the text of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [name for name, _ in attrs if name in ("src", "href", "srcset", "data")]


@pytest.mark.parametrize("protocol", list(Protocol))
def test_the_report_has_the_fields_that_stay(
    protocol: Protocol, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = continual(tmp_path) if protocol is Protocol.CONTINUAL else prequential(tmp_path)
    report = report_of(options)
    assert report["protocol"] == protocol
    assert report["seed"] == SETTINGS.model.seed
    assert report["queries"] == sum(part["queries"] for part in report["parts"])
    for holder in (report, *report["parts"]):
        for name in ("live", "transformer", "memory"):
            model = holder["models"][name]
            assert model["train_seconds"] >= 0
            assert all(0 <= model[metric] <= 1 for metric in METRICS)
            assert all(model["margin"][metric] >= 0 for metric in METRICS)
            assert {"cold", "warm"} <= model.keys()
    assert report["seeds"][0]["decisions"]
    assert report["settings"]["model"]["dim"] == 16
    assert report["environment"]["torch"]
    assert {one["name"] for one in report["overrides"]} >= {"history.users"}
    assert str(tmp_path) not in options.out.read_text()
    told = capsys.readouterr()
    assert "NDCG@10" in told.out
    assert "live" in told.out
    assert "seed 0" in told.err
    assert "history.users is" in told.err


@pytest.mark.parametrize("protocol", list(Protocol))
def test_the_page_needs_nothing_else(protocol: Protocol, tmp_path: Path) -> None:
    options = continual(tmp_path) if protocol is Protocol.CONTINUAL else prequential(tmp_path)
    report_of(options)
    text = options.page.read_text()
    page = Page(text)
    assert page.loads == []
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    assert page.tags.count("svg") == 6
    assert str(tmp_path) not in text
    assert "$" not in text


def test_the_first_events_alone_are_those_of_a_shorter_file(tmp_path: Path) -> None:
    whole = prequential(tmp_path)
    found = report_of(dataclasses.replace(whole, events=200))
    short = write(walks(300).until(200), tmp_path / "short.csv")
    alone = report_of(dataclasses.replace(whole, files=(short,)))
    assert found["data"]["events"] == alone["data"]["events"] == 200
    assert found["models"]["live"]["mrr_at_20"] == alone["models"]["live"]["mrr_at_20"]
    assert "Of each file the first 200 events are used." in found["notes"]


def test_a_language_model_with_lora_runs_from_the_example(tmp_path: Path) -> None:
    """Here a tiny Llama, and few events."""
    small = {
        "model": {
            "backbone": {"name": str(save_llama(tmp_path / "llama"))},
            "dim": 8,
            "max_length": 8,
        },
        "batch": {"train_max_events": 64},
        "trainer": {"gate": {"min_rows": 2, "tolerance": 1.0}, "holdout": {"fraction": 0.2}},
    }
    settings = load_settings(EXAMPLE, {}, small)
    options = dataclasses.replace(prequential(tmp_path), start=0.0)
    assert run_backtest(options, settings) == 0
    report = json.loads(options.out.read_text())
    assert report["settings"]["trainer"]["trained"]["kind"] == "lora"
    weights_alone = report["models"]["transformer"]
    assert weights_alone["mrr_at_20"] > report["models"]["frozen"]["mrr_at_20"]


def test_several_seeds_are_reported_one_by_one_and_as_a_mean(tmp_path: Path) -> None:
    report = report_of(continual(tmp_path, seeds=(3, 4)))
    assert report["seed"] == [3, 4]
    assert [one["seed"] for one in report["seeds"]] == [3, 4]
    found = [one["models"]["live"]["mrr_at_20"] for one in report["seeds"]]
    live = report["models"]["live"]
    assert live["mrr_at_20"] == pytest.approx(sum(found) / 2)
    assert live["spread"]["mrr_at_20"] == pytest.approx(abs(found[0] - found[1]) / 2**0.5)


class TestResume:
    @pytest.fixture
    def runs(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """The seeds that were run. The second one to be run is interrupted."""
        seeds: list[int] = []
        whole = run_continual

        def interrupted(tables: Any, settings: Any, *more: Any) -> SeedResult:
            seeds.append(settings.model.seed)
            if len(seeds) == 2:
                raise KeyboardInterrupt
            return whole(tables, settings, *more)

        monkeypatch.setattr(command, "run_continual", interrupted)
        return seeds

    def test_a_finished_seed_is_not_run_again(self, runs: list[int], tmp_path: Path) -> None:
        options = continual(tmp_path, seeds=(1, 2))
        with pytest.raises(KeyboardInterrupt):
            run_backtest(options, SETTINGS)
        assert options.partial.exists()
        report = report_of(continual(tmp_path, seeds=(1, 2), resume=True))
        assert runs == [1, 2, 2]
        assert report["seed"] == [1, 2]
        assert not options.partial.exists()

    def test_without_resume_all_are_run(self, runs: list[int], tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            run_backtest(continual(tmp_path, seeds=(1, 2)), SETTINGS)
        report_of(continual(tmp_path, seeds=(1, 2)))
        assert runs == [1, 2, 1, 2]

    def test_another_run_is_not_gone_on_with(self, runs: list[int], tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            run_backtest(continual(tmp_path, seeds=(1, 2)), SETTINGS)
        other = continual(tmp_path, seeds=(1, 2), resume=True, limit_queries=5)
        with pytest.raises(ConfigurationError, match="other files, options or settings"):
            run_backtest(other, SETTINGS)
        assert runs == [1, 2]

    def test_a_damaged_file_is_told(self, tmp_path: Path) -> None:
        options = continual(tmp_path, resume=True)
        options.partial.parent.mkdir(parents=True)
        options.partial.write_text("{")
        with pytest.raises(ConfigurationError, match="run without --resume"):
            run_backtest(options, SETTINGS)


def test_a_fingerprint_does_not_depend_on_seeds_or_places() -> None:
    tables = periods(2)
    one = partial.fingerprint(tables, SETTINGS, Options(seeds=(1,), out=Path("a.json")))
    assert one == partial.fingerprint(tables, SETTINGS, Options(seeds=(2,), resume=True))
    assert one != partial.fingerprint(tables, SETTINGS, Options(gate_every=9))
    for section, change in (
        ("events", {"weights": {"view": 2.0}}),
        ("click", {"enabled": True}),
        ("items", {"max_rows": 10}),
    ):
        changed = getattr(SETTINGS, section).model_copy(update=change)
        settings = SETTINGS.model_copy(update={section: changed})
        assert one != partial.fingerprint(tables, settings, Options()), section
    assert one != partial.fingerprint(tables[:1], SETTINGS, Options())


def with_items(folder: Path) -> tuple[Options, Settings]:
    """Options with a catalogue that knows items which no event has, and settings that read it."""
    options = prequential(folder)
    ids = sorted(set(walks(300).item_ids))
    lines = ["item_id,title", *(f"{item},red {item}" for item in ids), "unmet,green shoe"]
    items = folder / "items.csv"
    items.write_text("\n".join(lines) + "\n")
    text = TextSettings(encoder=write_encoder(folder / "encoder"))
    settings = SETTINGS.model_copy(update={"items": ItemsSettings(text=text)})
    return dataclasses.replace(options, items=items), settings


def test_a_catalogue_is_known_to_the_live_model_and_the_retrain(tmp_path: Path) -> None:
    options, settings = with_items(tmp_path)
    assert run_backtest(dataclasses.replace(options, retrain_every=100), settings) == 0
    told = json.loads(options.out.read_text())
    plain = report_of(prequential(tmp_path))
    assert told["queries"] == plain["queries"]
    assert told["models"]["transformer"] != plain["models"]["transformer"]
    assert told["models"]["memory"] == plain["models"]["memory"]


def test_vectors_are_learned_from_without_an_encoder(tmp_path: Path) -> None:
    options = prequential(tmp_path)
    ids = sorted(set(walks(300).item_ids))
    circle = [[math.cos(place), math.sin(place)] for place in range(len(ids))]
    lines = [
        json.dumps({"item_id": item, "image": vector})
        for item, vector in zip(ids, circle, strict=True)
    ]
    items = tmp_path / "items.jsonl"
    items.write_text("\n".join(lines) + "\n")
    image = VectorSettings(name="image", width=2)
    settings = SETTINGS.model_copy(update={"items": ItemsSettings(vectors=(image,))})
    assert run_backtest(dataclasses.replace(options, items=items), settings) == 0
    told = json.loads(options.out.read_text())
    plain = report_of(prequential(tmp_path))
    assert told["models"]["transformer"] != plain["models"]["transformer"]
    assert told["models"]["memory"] == plain["models"]["memory"]


def test_a_place_that_takes_no_report_is_told_before_the_run(tmp_path: Path) -> None:
    options = prequential(tmp_path)
    (tmp_path / "file").touch()
    for there in (tmp_path, tmp_path / "file" / "there"):
        for wrong in (
            dataclasses.replace(options, out=there),
            dataclasses.replace(options, html=there),
        ):
            with pytest.raises(ConfigurationError, match=f"cannot write {there}"):
                run_backtest(wrong, SETTINGS)


def test_what_was_read_is_printed_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = dataclasses.replace(prequential(tmp_path), skip_bad=True)
    (file,) = options.files
    named = file.rename(tmp_path / "events[old].csv")
    with named.open("a") as lines:
        lines.write("[/b],,\n")
    assert report_of(dataclasses.replace(options, files=(named,)))["data"]["bad_rows"] == 1
    told = capsys.readouterr().out
    assert "events[old].csv:302: 3 fields" in told
    named.write_text(named.read_text().replace("[/b],,", "[/b],"))
    assert report_of(dataclasses.replace(options, files=(named,)))["data"]["bad_rows"] == 1
    assert "item_id is no id: ''" in capsys.readouterr().out


def test_what_the_files_have_nothing_of_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = SETTINGS.model.model_copy(update={"context": (CategoryFeature(name="shop"),)})
    items = ItemsSettings(vectors=(VectorSettings(name="image", width=2),))
    settings = SETTINGS.model_copy(update={"model": model, "items": items})
    options = prequential(tmp_path)
    assert run_backtest(options, settings) == 0
    notes = json.loads(options.out.read_text())["notes"]
    told = capsys.readouterr().err
    for line in ("No event has what model.context reads: shop.", "items.vectors have nothing to"):
        assert any(line in note for note in notes)
        assert line in told


def test_what_goes_by_time_is_refused_where_there_are_no_times(tmp_path: Path) -> None:
    options = prequential(tmp_path)
    model = SETTINGS.model.model_copy(update={"context": (GapFeature(), CategoryFeature(name="a"))})
    with pytest.raises(
        ConfigurationError, match=r"have no times, and model\.context \(hour, gap\)"
    ):
        run_backtest(options, SETTINGS.model_copy(update={"model": model}))
    items = ItemsSettings(expire_after_s=60.0)
    seconds = dataclasses.replace(options.columns, time_unit=TimeUnit.SECONDS)
    with pytest.raises(ConfigurationError, match=r"--time-unit, items\.expire_after_s cannot"):
        run_backtest(
            dataclasses.replace(options, columns=seconds),
            SETTINGS.model_copy(update={"items": items}),
        )


def test_periods_have_times_all_or_none(tmp_path: Path) -> None:
    options = continual(tmp_path)
    first = options.files[0]
    rows = first.read_text().splitlines()
    timed = [f"{row},{1_700_000_000_000 + number}" for number, row in enumerate(rows[1:])]
    first.write_text("\n".join([rows[0] + ",timestamp", *timed, ""]))
    with pytest.raises(ConfigurationError, match="some files have times and others do not"):
        run_backtest(options, SETTINGS)


def test_a_stream_that_asks_nothing_is_refused(tmp_path: Path) -> None:
    options = prequential(tmp_path)
    options.files[0].write_text(
        "session_id,item_id\n" + "".join(f"u{n},i{n % 7}\n" for n in range(100))
    )
    with pytest.raises(ConfigurationError, match="no event is a query"):
        run_backtest(options, SETTINGS)
    options = continual(tmp_path)
    options.files[1].write_text("session_id,item_id\na,new-1\na,new-2\n")
    options.files[2].write_text("session_id,item_id\na,newer-1\na,newer-2\n")
    with pytest.raises(ConfigurationError, match="no event is a query"):
        run_backtest(options, SETTINGS)


def test_a_catalogue_without_an_encoder_is_told(tmp_path: Path) -> None:
    options, _ = with_items(tmp_path)
    with pytest.raises(ConfigurationError, match=r"items\.text\.encoder"):
        run_backtest(options, SETTINGS)


@pytest.mark.parametrize("protocol", list(Protocol))
def test_each_seed_draws_training_curves_where_that_is_set(
    protocol: Protocol, tmp_path: Path
) -> None:
    given = continual(tmp_path) if protocol is Protocol.CONTINUAL else prequential(tmp_path)
    options = dataclasses.replace(given, seeds=(0, 1))
    tracking = TrackingSettings(tensorboard=tmp_path / "curves")
    assert run_backtest(options, SETTINGS.model_copy(update={"tracking": tracking})) == 0
    report = json.loads(options.out.read_text())
    drawn = runs(tmp_path / "curves")
    assert [run.name.rsplit("-", 2)[0] for run in drawn] == ["backtest-seed-0", "backtest-seed-1"]
    for run, seed in zip(drawn, report["seeds"], strict=True):
        found = curves(run)
        decisions = seed["decisions"]
        assert [step for step, _ in found["gate/verdict"]] == [one["events"] for one in decisions]
        champion = [value for _, value in found["holdout/champion_ndcg_at_10"]]
        assert champion == pytest.approx([one["champion"] for one in decisions])
        assert len(found["train/loss_nats"]) >= len(decisions)
        assert found["prequential/ndcg_at_10"][-1][1] > 0
        assert found["serving/version"][-1][1] > 1
