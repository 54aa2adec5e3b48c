"""Changed model settings over an existing registry, as `serve` refuses them at start."""

from pathlib import Path
from typing import Any

import pytest

from service.app.serving import first_servable, load_servable
from service.errors import ConfigurationError
from service.registry.manifest import Origin
from service.registry.registry import Registry
from service.settings import (
    ReadoutKind,
    Settings,
    SmallBackbone,
    TrainAdapter,
    Trained,
    TrainFull,
    TrainHead,
    TrainLora,
    TrainTop,
)
from tests.app.test_serving import small

CHANGES: dict[str, Any] = {
    "backbone": SmallBackbone(dim=8, layers=2, heads=1),
    "readout": ReadoutKind.STATES,
    "dim": 16,
    "max_length": 7,
}


def begun(root: Path) -> Settings:
    """The settings that the one version under `root` was made with."""
    settings = small(root)
    first_servable(Registry(root / "registry", settings.registry), settings)
    return settings


def changed(settings: Settings, *names: str) -> Settings:
    model = settings.model.model_copy(update={name: CHANGES[name] for name in names})
    return settings.model_copy(update={"model": model})


@pytest.mark.parametrize(
    "names", [("backbone",), ("readout",), ("dim",), ("max_length",), ("dim", "max_length")]
)
def test_one_line_names_the_settings_that_changed(names: tuple[str, ...], tmp_path: Path) -> None:
    settings = changed(begun(tmp_path), *names)
    registry = Registry(tmp_path / "registry", settings.registry)
    with pytest.raises(ConfigurationError) as refused:
        first_servable(registry, settings)
    line = str(refused.value)
    assert f"made with another {', '.join(f'model.{name}' for name in names)};" in line
    assert str(tmp_path / "registry") in line
    assert "\n" not in line
    assert registry.versions() == [1]


def test_a_version_from_before_there_were_readouts_stays_as_it_is(tmp_path: Path) -> None:
    today = small(tmp_path)
    settings = changed(today, "readout")
    registry = Registry(tmp_path / "registry", settings.registry)
    manifest, artifact = registry.load(first_servable(registry, settings).version)
    identity = {name: one for name, one in manifest.model["settings"].items() if name != "readout"}
    shape = {name: one for name, one in manifest.model.items() if name != "readout"}
    old = registry.publish(
        artifact,
        parent=manifest.version,
        origin=Origin.TRAINED,
        trained_through=manifest.trained_through,
        model={**shape, "settings": identity},
        items=manifest.items,
        gate=None,
        now_ms=0,
    ).version
    assert load_servable(registry, old, settings).model.readout is None
    with pytest.raises(ConfigurationError, match=r"made with another model\.readout;"):
        load_servable(registry, old, today)


def trained_as(settings: Settings, trained: Trained) -> Settings:
    trainer = settings.trainer.model_copy(update={"trained": trained})
    return settings.model_copy(update={"trainer": trainer})


def test_other_added_weights_than_the_versions_hold_are_one_line(tmp_path: Path) -> None:
    settings = trained_as(small(tmp_path), TrainLora(rank=2))
    registry = Registry(tmp_path / "registry", settings.registry)
    first_servable(registry, settings)
    assert first_servable(registry, settings).model.backbone.added == TrainLora(rank=2)
    for other in (TrainFull(), TrainLora(rank=3), TrainAdapter()):
        with pytest.raises(ConfigurationError) as refused:
            first_servable(registry, trained_as(settings, other))
        assert '"rank": 2' in str(refused.value)
        assert "\n" not in str(refused.value)


def test_what_is_trained_may_change_where_nothing_was_added(tmp_path: Path) -> None:
    settings = begun(tmp_path)
    registry = Registry(tmp_path / "registry", settings.registry)
    for other in (TrainHead(), TrainTop(n=1), TrainLora()):
        assert first_servable(registry, trained_as(settings, other)).version == 1
    with pytest.raises(ConfigurationError, match=r"trainer\.trained\.n = 5"):
        first_servable(registry, trained_as(settings, TrainTop(n=5)))


def test_what_may_change_is_not_refused(tmp_path: Path) -> None:
    settings = begun(tmp_path)
    model = settings.model.model_copy(update={"dropout": 0.5, "temperature": 0.1, "seed": 9})
    registry = Registry(tmp_path / "registry", settings.registry)
    servable = first_servable(registry, settings.model_copy(update={"model": model}))
    assert servable.version == 1
