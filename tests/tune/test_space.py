import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.settings import (
    GruBackbone,
    MemorySettings,
    ModelSettings,
    PretrainedBackbone,
    ScorerSettings,
    Settings,
)
from service.tune.settings_file import tree_with
from service.tune.space import SPACE, Scale, Searched, space_for, value_of, with_values, written

NOTHING: frozenset[str] = frozenset()


def names(settings: Settings, fixed: frozenset[str] = NOTHING) -> set[str]:
    return {one.name for one in space_for(settings, fixed)}


@pytest.mark.parametrize("one", SPACE, ids=lambda one: one.name)
def test_every_value_between_the_bounds_is_a_valid_setting(one: Searched) -> None:
    for value in (one.low, one.high):
        settings = Settings.model_validate(tree_with(None, {one.name: value}))
        assert settings == with_values(Settings(), {one.name: value})
        assert one.why


def test_only_what_has_an_effect_is_searched() -> None:
    assert "memory.repeat" not in names(Settings())  # seen items are left out by default
    shown_again = Settings(scorer=ScorerSettings(exclude_seen=False))
    assert names(shown_again) == {one.name for one in SPACE}
    alone = Settings(memory=MemorySettings(enabled=False))
    assert not [name for name in names(alone) if name.startswith("memory")]
    pretrained = ModelSettings(backbone=PretrainedBackbone(name="gpt2"))
    assert "model.dropout" not in names(Settings(model=pretrained))
    dropping = pretrained.model_copy(update={"dropout": 0.1})
    assert "model.dropout" in names(Settings(model=dropping))
    gru = Settings(model=ModelSettings(backbone=GruBackbone()))
    assert "model.backbone.layers" not in names(gru)


def test_what_is_fixed_is_not_searched() -> None:
    assert "model.dropout" not in names(Settings(), frozenset({"model.dropout"}))


def test_bounds_widen_to_hold_the_given_value() -> None:
    settings = Settings(model=ModelSettings(temperature=2.0))
    (one,) = [one for one in space_for(settings, NOTHING) if one.name == "model.temperature"]
    assert (one.low, one.high) == (0.03, 2.0)


def test_a_value_changes_one_setting_and_leaves_the_given_tree_alone() -> None:
    given = Settings()
    changed = with_values(given, {"model.backbone.layers": 3})
    assert (value_of(changed, "model.backbone.layers"), given) == (3, Settings())
    assert with_values(changed, {"model.backbone.layers": 1}) == given


RATE = Searched("trainer.learning_rate", 3e-4, 3e-2, Scale.LOG, "")


@given(st.floats(RATE.low, RATE.high))
def test_a_drawn_value_is_short_and_within_the_bounds(drawn: float) -> None:
    value = written(RATE, drawn, 0.00312345)
    assert RATE.low <= value <= RATE.high
    assert value == pytest.approx(drawn, rel=0.005)
    assert value == float(f"{value:.3g}")


def test_the_given_value_is_never_rounded() -> None:
    assert written(RATE, 0.00312345, 0.00312345) == 0.00312345
