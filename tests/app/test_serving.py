"""The hot swap: what serves, what is refused, what a batch under way sees."""

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest

from service.app.serving import Serving, first_servable, load_servable
from service.domain import ItemId, Offset, Partition, Version
from service.errors import ConfigurationError, TransientError
from service.metrics import Metrics
from service.model.mixture import Blend
from service.model.recommender import Recommender
from service.model.temperature import temperature_for
from service.registry.artifact import Artifact
from service.registry.manifest import Origin
from service.registry.registry import Registry
from service.registry.servable import first_blend
from service.scorer.scorer import Scorer
from service.settings import (
    BatchSettings,
    HistorySettings,
    MemorySettings,
    ModelSettings,
    RegistrySettings,
    Settings,
    SmallBackbone,
    StorageSettings,
)
from service.state.histories import HistorySlab
from service.trainer.messages import Published
from service.trainer.process import Covered
from tests.registry.examples import file_of, flip_a_bit, truncate
from tests.scorer.examples import events_of

PARTITION = Partition(0)
SOON_S = 10.0


class Slabs(Mapping[Partition, HistorySlab]):
    """One slab; `on_read` is called whenever the scorer reaches for it."""

    def __init__(self, slab: HistorySlab) -> None:
        self._slab = slab
        self.on_read: Callable[[], None] = lambda: None

    def __getitem__(self, _: Partition) -> HistorySlab:
        self.on_read()
        return self._slab

    def __iter__(self) -> Iterator[Partition]:
        return iter([PARTITION])

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class Service:
    settings: Settings
    registry: Registry
    metrics: Metrics
    slabs: Slabs
    scorer: Scorer
    serving: Serving

    def publish(self, through: int) -> Version:
        """A version with weights of its own, trained through this offset."""
        model = Recommender.new(self.settings.model.model_copy(update={"seed": through}))
        model.grow(2)
        weights = {
            name: each[:2] if name == "items.weight" else each
            for name, each in model.state_dict().items()
        }
        return self.registry.publish(
            Artifact(weights, (ItemId(""), ItemId("a")), {}),
            parent=self.registry.versions()[-1],
            origin=Origin.TRAINED,
            trained_through={PARTITION: Offset(through)},
            model={**model.shape, "blend": asdict(first_blend(self.settings))},
            items=1,
            gate=None,
            now_ms=through,
        ).version

    def announce(self, version: int, through: int, opened_s: float) -> None:
        published = Published(Version(version), {PARTITION: Offset(through)})
        self.serving.announce(Covered(published, (opened_s,)))

    def follow_until(self, condition: Callable[[], bool]) -> None:
        async def follow() -> None:
            task = asyncio.create_task(self.serving.run())
            async with asyncio.timeout(SOON_S):
                while not condition():  # noqa: ASYNC110  # a metric or version rings no bell
                    await asyncio.sleep(0.005)
            task.cancel()

        asyncio.run(follow())

    def swaps(self, result: str) -> float:
        return float(self.metrics.swaps.labels(result)._value.get())

    def delays(self) -> list[float]:
        """Count and sum of the measured times from event to weights."""
        [family] = self.metrics.event_to_weights.collect()
        samples = {sample.name: sample.value for sample in family.samples}
        name = "headwater_event_to_weights_seconds"
        return [samples[f"{name}_count"], samples[f"{name}_sum"]]


def small(root: Path) -> Settings:
    return Settings(
        storage=StorageSettings(root=root),
        registry=RegistrySettings(poll_s=0.02),
        batch=BatchSettings(score_max_events=4),
        history=HistorySettings(users=4, events=8),
        model=ModelSettings(
            backbone=SmallBackbone(dim=8, layers=1, heads=1), dim=8, max_length=8, dropout=0
        ),
    )


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    settings = small(tmp_path)
    registry = Registry(tmp_path / "registry", settings.registry)
    slab = HistorySlab.create(PARTITION, settings.history)
    slabs, metrics = Slabs(slab), Metrics()
    scorer = Scorer.of(settings, first_servable(registry, settings), slabs, None)
    with ThreadPoolExecutor(1) as loading:
        serving = Serving(settings, metrics, registry, scorer, loading)
        yield Service(settings, registry, metrics, slabs, scorer, serving)
    slab.close()


class TestFirstServable:
    def test_an_empty_registry_gets_a_new_model_as_version_1(self, service: Service) -> None:
        assert service.scorer.champion.version == 1
        assert service.registry.manifest(Version(1)).origin is Origin.INITIAL

    @pytest.mark.parametrize(("enabled", "share"), [(True, 0.6), (False, 1.0)])
    def test_it_is_mixed_with_the_memory_as_the_settings_say(
        self, tmp_path: Path, enabled: bool, share: float
    ) -> None:
        memory = MemorySettings(enabled=enabled, model_share=0.6)
        settings = small(tmp_path).model_copy(update={"memory": memory})
        registry = Registry(tmp_path / "registry", settings.registry)
        blend = first_servable(registry, settings).blend
        assert blend == Blend(temperature_for(0, settings.model.temperature), share)
        assert registry.manifest(Version(1)).model["blend"] == asdict(blend)

    def test_a_damaged_version_is_passed_over(self, service: Service, tmp_path: Path) -> None:
        version = service.publish(5)
        flip_a_bit(file_of(tmp_path / "registry", version, "weights.safetensors"))
        assert first_servable(service.registry, service.settings).version == 1

    def test_without_an_intact_version_the_operator_is_told(
        self, service: Service, tmp_path: Path
    ) -> None:
        flip_a_bit(file_of(tmp_path / "registry", 1, "weights.safetensors"))
        with pytest.raises(ConfigurationError, match="move the folder away"):
            first_servable(service.registry, service.settings)

    def test_an_unreadable_pin_is_for_the_operator_to_decide(
        self, service: Service, tmp_path: Path
    ) -> None:
        service.registry.pin(Version(1))
        truncate(tmp_path / "registry" / "pin.json")
        with pytest.raises(ConfigurationError, match="pin a version again"):
            first_servable(service.registry, service.settings)


class TestSwap:
    def test_the_batch_under_way_finishes_on_the_version_that_it_took(
        self, service: Service
    ) -> None:
        newer = load_servable(service.registry, service.publish(5), service.settings)
        service.slabs.on_read = lambda: service.serving.swap(newer)
        events = events_of([1, 2], [ItemId("a"), ItemId("b")])
        answer = np.ones(2, np.bool_)
        assert service.scorer.score(events, answer).servable.version == 1
        assert service.scorer.score(events, answer).servable is newer

    def test_a_published_version_comes_into_service(self, service: Service) -> None:
        version = service.publish(5)
        service.follow_until(lambda: service.scorer.champion.version == version)
        assert service.swaps("swapped") == 1
        assert service.metrics.model_version._value.get() == version
        assert service.metrics.model_items._value.get() == 1

    def test_a_damaged_version_is_refused_and_the_champion_stays(
        self, service: Service, tmp_path: Path
    ) -> None:
        damaged = service.publish(5)
        flip_a_bit(file_of(tmp_path / "registry", damaged, "weights.safetensors"))
        service.follow_until(lambda: service.swaps("refused") == 1)
        assert service.scorer.champion.version == 1
        assert service.swaps("swapped") == 0

    def test_the_version_after_a_refused_one_serves(self, service: Service, tmp_path: Path) -> None:
        flip_a_bit(file_of(tmp_path / "registry", service.publish(5), "weights.safetensors"))
        good = service.publish(6)
        service.follow_until(lambda: service.scorer.champion.version == good)

    def test_a_pin_brings_the_older_version_back(self, service: Service) -> None:
        version = service.publish(5)
        service.follow_until(lambda: service.scorer.champion.version == version)
        service.registry.pin(Version(1))
        service.follow_until(lambda: service.scorer.champion.version == 1)

    @pytest.mark.parametrize(
        "fault", [OSError(errno.EHOSTDOWN, "host is down"), TransientError("the disk is full")]
    )
    def test_a_storage_that_is_away_leaves_the_champion_until_it_is_back(
        self, service: Service, monkeypatch: pytest.MonkeyPatch, fault: Exception
    ) -> None:
        newer = service.publish(5)
        polls: list[None] = []
        to_serve = service.registry.to_serve

        def away_at_first() -> Version | None:
            polls.append(None)
            if len(polls) < 4:
                raise fault
            return to_serve()

        monkeypatch.setattr(service.registry, "to_serve", away_at_first)
        service.follow_until(lambda: service.scorer.champion.version == newer)
        assert service.swaps("refused") == 1

    def test_an_unreadable_pin_leaves_the_champion_and_is_logged_once(
        self,
        service: Service,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        service.registry.pin(Version(1))
        truncate(tmp_path / "registry" / "pin.json")
        newer = service.publish(5)
        polls: list[None] = []
        to_serve = service.registry.to_serve

        def counted() -> Version | None:
            polls.append(None)
            return to_serve()

        monkeypatch.setattr(service.registry, "to_serve", counted)
        service.follow_until(lambda: len(polls) > 3)
        assert service.scorer.champion.version == 1
        errors = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
        assert len(errors) == 1
        assert errors[0].startswith("version 1 goes on serving")
        assert "pin a version again" in errors[0]
        assert service.swaps("refused") == 1

        service.registry.pin(newer)
        service.follow_until(lambda: service.scorer.champion.version == newer)


class TestTimeToWeights:
    def test_it_ends_when_the_announced_version_serves(self, service: Service) -> None:
        version = service.publish(5)
        service.announce(version, 5, opened_s=time.monotonic() - 3)
        assert service.delays()[0] == 0
        service.follow_until(lambda: service.scorer.champion.version == version)
        count, seconds = service.delays()
        assert count == 1
        assert 3 <= seconds < 3 + SOON_S

    def test_an_announcement_after_the_swap_is_measured_to_the_swap(self, service: Service) -> None:
        opened_s = time.monotonic()
        newer = load_servable(service.registry, service.publish(5), service.settings)
        service.serving.swap(newer)
        swapped_s = time.monotonic()
        time.sleep(0.05)
        service.announce(2, 5, opened_s)
        count, seconds = service.delays()
        assert count == 1
        assert seconds <= swapped_s - opened_s

    def test_what_no_served_version_holds_is_not_measured(self, service: Service) -> None:
        service.announce(3, 9, opened_s=0.0)
        service.serving.swap(load_servable(service.registry, service.publish(5), service.settings))
        assert service.delays()[0] == 0
