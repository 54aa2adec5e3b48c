"""A service whose training curves go to TensorBoard's files."""

import time
from pathlib import Path

import pytest

from tests.integration.running import Service
from tests.integration.traffic import Stream, produce
from tests.tracking.examples import curves, runs

pytestmark = pytest.mark.integration

WITHIN_S = 90.0


def test_what_the_worker_learns_is_drawn(stream: Stream, tmp_path: Path) -> None:
    folder = tmp_path / "curves"
    more = {"HEADWATER_TRACKING__TENSORBOARD": str(folder)}
    with Service(stream, tmp_path / "service", more) as service:
        before = service.version()
        produce(stream, range(2_000))
        until_s = time.monotonic() + WITHIN_S
        while service.version() == before and time.monotonic() < until_s:
            time.sleep(0.2)
        assert service.version() > before
    (run,) = runs(folder)
    found = curves(run)
    assert {
        "train/loss_nats", "train/step_seconds", "holdout/champion_ndcg_at_10", "gate/gain",
        "gate/verdict", "prequential/ndcg_at_10", "serving/version",
    } <= found.keys()  # fmt: skip
    steps = [step for step, _ in found["train/loss_nats"]]
    assert steps == sorted(steps)
    assert 0 < steps[-1] <= 2_000
