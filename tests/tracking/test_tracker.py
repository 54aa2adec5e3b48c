"""Points reach their programs, and whatever these do, nobody waits for them."""

import errno
import logging
import math
import sys
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.errors import ConfigurationError
from service.settings import Settings, TrackingSettings
from service.tracking import tracker
from service.tracking.tracker import UNTRACKED, Tracker, start_tracker
from service.tracking.writers import TensorBoardWriter
from tests.tracking.examples import curves, runs

NOW = datetime(2026, 11, 26, 1, 2, 3, tzinfo=UTC)


class Kept:
    """Writes into a list, and does what it is told to first."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.points: list[tuple[int, Mapping[str, float]]] = []
        self.closed = False
        self._fails_at = fails_at
        self.may_write = threading.Event()
        self.may_write.set()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.may_write.wait()
        if step == self._fails_at:
            raise OSError(errno.ENOSPC, "no space left on device")
        self.points.append((step, values))

    def close(self) -> None:
        self.closed = True


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    settings = Settings(tracking=TrackingSettings(tensorboard=tmp_path / "curves"))
    started = start_tracker(settings, "serve", NOW)
    started.add(100, {"train/loss_nats": 2.5, "gate/gain": -math.inf})
    started.add(200, {"train/loss_nats": 1.5, "gate/gain": 0.25})
    started.close()
    (run,) = runs(tmp_path / "curves")
    assert run.name == "serve-20261126-010203"
    assert curves(run) == {"train/loss_nats": [(100, 2.5), (200, 1.5)], "gate/gain": [(200, 0.25)]}


def test_off_by_default() -> None:
    assert not start_tracker(Settings(), "serve", NOW)._thread.is_alive()
    UNTRACKED.add(1, {"train/loss_nats": 1.0})
    UNTRACKED.close()


def test_one_that_fails_is_logged_once_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    full, fine = Kept(fails_at=2), Kept()
    started = Tracker({"a full disk": lambda: full, "a fine one": lambda: fine})
    for step in range(1, 5):
        started.add(step, {"train/loss_nats": 1.0})
    started.close()
    assert [step for step, _ in full.points] == [1]
    assert [step for step, _ in fine.points] == [1, 2, 3, 4]
    assert fine.closed
    told = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert told == ["training curves for a full disk are given up until the next start"]


def test_one_that_cannot_begin_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    fine = Kept()
    started = Tracker(
        {"TensorBoard": lambda: TensorBoardWriter(tmp_path / "file" / "run"), "fine": lambda: fine}
    )
    started.add(1, {"train/loss_nats": 1.0})
    started.close()
    assert len(fine.points) == 1
    assert "TensorBoard are given up" in caplog.text


def test_nobody_waits_for_a_stuck_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracker, "_WAITING", 10)
    monkeypatch.setattr(tracker, "_CLOSE_WITHIN_S", 0.1)
    stuck = Kept()
    stuck.may_write.clear()
    started = Tracker({"stuck": lambda: stuck})
    began_s = time.monotonic()
    for step in range(100):
        started.add(step, {"train/loss_nats": 1.0})
    started.close()
    assert time.monotonic() - began_s < 5.0
    assert caplog.text.count("have gaps") == 1
    stuck.may_write.set()


@pytest.mark.parametrize(
    ("tracking", "package"),
    [
        (TrackingSettings(tensorboard=Path("curves")), "tensorboard"),
        (TrackingSettings(wandb="shop"), "wandb"),
    ],
)
def test_a_missing_package_is_told_at_start(
    tracking: TrackingSettings, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError, match=rf"needs {package}, .*pip install"):
        start_tracker(Settings(tracking=tracking), "serve", NOW)


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
@pytest.mark.filterwarnings("default")
def test_weights_and_biases_keeps_a_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    started = start_tracker(Settings(tracking=TrackingSettings(wandb="shop")), "serve", NOW)
    started.add(100, {"train/loss_nats": 2.5})
    started.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    kept = file.read_bytes()
    for told in (b"train/loss_nats", b"shop", b"serve-20261126-010203", b"learning_rate"):
        assert told in kept
    assert b"bootstrap_servers" not in kept


def test_weights_and_biases_is_told_steps_values_and_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a stand-in for the package, which is not among those that developers install."""
    given: dict[str, Any] = {}
    logged: list[tuple[dict[str, float], int]] = []

    def begin(**arguments: Any) -> SimpleNamespace:
        given.update(arguments)
        return SimpleNamespace(
            log=lambda values, step: logged.append((values, step)),
            finish=lambda: logged.append(({}, -1)),
        )

    stand_in = SimpleNamespace(init=begin, Settings=dict, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    started = start_tracker(Settings(tracking=TrackingSettings(wandb="shop")), "serve", NOW)
    started.add(100, {"train/loss_nats": 2.5})
    started.close()
    assert (given["project"], given["name"]) == ("shop", "serve-20261126-010203")
    assert given["config"]["trainer"]["learning_rate"] == 3e-3
    assert not {"kafka", "topics", "storage", "admin"} & given["config"].keys()
    assert logged == [({"train/loss_nats": 2.5}, 100), ({}, -1)]
