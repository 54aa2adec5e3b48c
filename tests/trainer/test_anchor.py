"""Steps that are held near the champion."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from service.model.item_tower import Described
from service.settings import KeepSettings
from service.trainer.anchor import Anchor
from service.trainer.challenger import Challenger
from service.trainer.packing import Packed
from service.trainer.step import train_step
from tests.trainer.examples import (
    a_challenger,
    described_items,
    known,
    packed,
    small_settings,
)

SETTINGS = small_settings()
OLD = [[1, 2, 3, 4], [5, 6, 7, 8]]
NEW = [[1, 5, 2, 6], [3, 7, 4, 8]]


def a_champion(described: Described | None = None, seed: int = 0) -> Challenger:
    """One that has learned the old sequences."""
    torch.manual_seed(seed)
    challenger = a_challenger(SETTINGS, items=9, described=described)
    for _ in range(30):
        train_step(challenger, packed(*OLD), temperature=0.1, settings=SETTINGS.trainer)
    return challenger


def anchored(challenger: Challenger, **keep: float) -> Anchor:
    rows = len(challenger.vocabulary)
    return Anchor(challenger.frozen_copy(), rows, KeepSettings(**keep))


def all_replayed(batch: Packed) -> Packed:
    return replace(batch, replayed=torch.ones_like(batch.replayed))


def teach(challenger: Challenger, anchor: Anchor | None) -> None:
    """The new sequences, in the place of old ones."""
    batch = all_replayed(packed(*NEW))
    for _ in range(10):
        train_step(challenger, batch, temperature=0.1, settings=SETTINGS.trainer, anchor=anchor)


def drift(challenger: Challenger, anchor: Anchor) -> tuple[float, float]:
    """How far weights, and what is foretold, are from the champion's."""
    with torch.no_grad():
        weights = sum(
            float((weight - other).square().sum())
            for weight, other in zip(
                challenger.model.parameters(), anchor.model.parameters(), strict=True
            )
        )
        foretold = [
            functional.normalize(model.eval()(packed(*NEW).item), dim=-1)
            @ functional.normalize(model.items.weight[:10], dim=-1).T
            for model in (challenger.model, anchor.model)
        ]
    return weights, float((foretold[0] - foretold[1]).square().mean())


def test_distillation_keeps_what_is_foretold_and_l2_keeps_the_weights() -> None:
    found = {}
    for name, keep in (("free", {}), ("distil", {"distil": 5.0}), ("l2", {"l2": 1.0})):
        drifts = []
        for seed in range(1, 5):
            challenger = a_champion(seed=seed)
            anchor = anchored(challenger, **keep)
            teach(challenger, anchor if keep else None)
            drifts.append(drift(challenger, anchor))
        found[name] = np.mean(drifts, axis=0)
    assert found["distil"][1] < found["free"][1] / 2
    assert found["l2"][0] < found["free"][0] / 2


def test_only_replayed_places_are_distilled() -> None:
    challenger = a_champion()
    anchor = anchored(challenger, distil=1.0)
    drawn = torch.arange(1, 10)
    batch = packed(*NEW)
    states = torch.randn(*batch.item.shape, 16, requires_grad=True)

    def pull(batch: Packed) -> torch.Tensor:
        wrong = challenger.model.items.weight[drawn]
        return anchor.pull(challenger, batch, states, drawn, wrong, wrong, temperature=0.1)

    assert pull(batch) == 0.0
    loss = pull(all_replayed(batch))
    (gradient,) = torch.autograd.grad(loss, states)
    assert loss > 0
    assert torch.equal(gradient.abs().sum(dim=-1) > 0, batch.label != 0)


def test_nothing_pulls_at_the_champion_itself() -> None:
    challenger = a_champion()
    anchor = anchored(challenger, distil=1.0, l2=1.0)
    batch, drawn = all_replayed(packed(*OLD)), torch.arange(1, 10)
    model = challenger.model.eval()
    with torch.no_grad():
        states = model.states(model.items(batch.item), batch.position)
        own = model.items.weight[drawn]
        pull = anchor.pull(challenger, batch, states, drawn, own, own, temperature=0.1)
    assert float(pull) == pytest.approx(0.0, abs=1e-5)


def test_items_that_the_champion_does_not_know_are_left_out() -> None:
    challenger = a_champion()
    anchor = anchored(challenger, distil=1.0, l2=1.0)
    challenger.learn_items([known(number) for number in range(9, 30)])
    batch = all_replayed(packed([1, 20, 2, 25]))
    loss = train_step(challenger, batch, temperature=0.1, settings=SETTINGS.trainer, anchor=anchor)
    assert loss > 0
    assert challenger.is_finite()


def test_an_id_vector_that_a_step_leaves_out_is_no_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SETTINGS.trainer.model_copy(update={"id_dropout": 0.9, "learning_rate": 0.0})
    challenger = a_challenger(SETTINGS, described=described_items(9))
    anchor = Anchor(challenger.frozen_copy(), len(challenger.vocabulary), KeepSettings(l2=1.0))
    pulls: list[float] = []
    real = Anchor.pull

    def recorded(*given: Any, **how: Any) -> torch.Tensor:
        pulls.append(float(real(*given, **how).detach()))
        return torch.zeros(())

    monkeypatch.setattr(Anchor, "pull", recorded)
    train_step(challenger, packed(*OLD), temperature=0.1, settings=settings, anchor=anchor)
    assert pulls == [pytest.approx(0.0, abs=1e-3)]  # in bfloat16, where a CPU has it


def test_weights_are_held_beside_a_tower_too() -> None:
    """The champion has none: what it added stands in its item vectors."""
    found = {}
    for name, keep in (("free", {}), ("l2", {"l2": 10.0})):
        challenger = a_champion(described_items(9))
        anchor = anchored(challenger, **keep)
        teach(challenger, anchor if keep else None)
        with torch.no_grad():
            table = challenger.model.table(10)
            found[name] = float((table - anchor.model.table(10)).square().sum())
    assert found["l2"] < found["free"] / 2
