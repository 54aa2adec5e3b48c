"""The hot swap: loads a version beside the champion, then assigns one reference."""

import asyncio
import json
import logging
import time
from collections import deque
from concurrent.futures import Executor
from dataclasses import asdict

from service.domain import Version, is_covered
from service.errors import ConfigurationError, DamagedVersionError, TransientError
from service.metrics import Metrics
from service.model.added import added_by, require_trainable
from service.model.recommender import Recommender
from service.registry.artifact import NO_ITEM, Artifact
from service.registry.manifest import Manifest, Origin
from service.registry.registry import Registry
from service.registry.servable import Servable, first_blend, make_servable, model_identity
from service.scorer.scorer import Scorer
from service.settings import ReadoutKind, Settings
from service.trainer.process import Covered

log = logging.getLogger(__name__)

_UNSERVED = 1_000  # announced versions whose delay is still to be measured; a pin may last for days


def first_servable(registry: Registry, settings: Settings) -> Servable:
    """What `chosen_servable` loads; a new model as version 1 where there is no version."""
    if not registry.versions():
        model = Recommender.new(settings.model)
        model.backbone.train_only(settings.trainer.trained)  # adds what it needs, or refuses
        registry.publish(
            Artifact(model.state_dict(), (NO_ITEM,), {}, model.frozen),
            parent=None,
            origin=Origin.INITIAL,
            trained_through={},
            topic=settings.topics.events,
            model={
                **model.shape,
                "settings": model_identity(settings.model),
                "blend": asdict(first_blend(settings)),
            },
            items=0,
            gate=None,
            now_ms=time.time_ns() // 1_000_000,
        )
        log.info("the registry was empty: its first version is a new model")
    return chosen_servable(registry, settings)


def chosen_servable(registry: Registry, settings: Settings) -> Servable:
    """The version that the policy chooses, going back past damaged ones.

    Raises ConfigurationError where none is intact, the pin cannot be read, or the settings
    describe another model.
    """
    while (version := registry.to_serve()) is not None:
        try:
            return load_servable(registry, version, settings)
        except DamagedVersionError as error:
            registry.refuse(version, str(error))
    raise ConfigurationError(
        f"no version under {settings.storage.registry} is intact; move the folder "
        "away to begin anew, or restore it from a backup"
    )


def load_servable(registry: Registry, version: Version, settings: Settings) -> Servable:
    """Read, verify, build and warm one version.

    Raises DamagedVersionError, and ConfigurationError where the settings describe another model.
    """
    manifest, artifact = registry.load(version)
    _require_same_model(manifest, settings)
    through = manifest.through(settings.topics.events)
    servable = make_servable(
        manifest.model_copy(update={"trained_through": through}),
        artifact,
        batch=settings.batch.score_max_events,
        length=settings.model.max_length,
    )
    require_trainable(servable.model.backbone.body, settings.trainer.trained)
    return servable


def _require_same_model(manifest: Manifest, settings: Settings) -> None:
    """Raises ConfigurationError where the settings describe another model than the version's:
    it would go on being served and trained, and the change be ignored in silence."""
    stored = manifest.model.get("settings")
    wanted = model_identity(settings.model)
    added, adding = manifest.model.get("added"), added_by(settings.trainer.trained)
    if added is not None and added != (adding and adding.model_dump(mode="json")):
        raise ConfigurationError(
            f"the versions under {settings.storage.registry} hold weights that were "
            f"added with trainer.trained = {json.dumps(added)}; restore the setting, or begin "
            "anew with another storage.root"
        )
    if stored is None:
        return
    stored = {"readout": ReadoutKind.STATES, **stored}  # versions from before there were others
    if stored != wanted:
        changed = ", ".join(f"model.{key}" for key in wanted if stored.get(key) != wanted[key])
        raise ConfigurationError(
            f"the versions under {settings.storage.registry} were made with another "
            f"{changed}; restore the setting, or begin anew with another storage.root"
        )


class Serving:
    """Keeps the scorer's champion what the registry says it should be."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        registry: Registry,
        scorer: Scorer,
        loading_thread: Executor,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._registry = registry
        self._scorer = scorer
        self._loading_thread = loading_thread
        self._news = asyncio.Event()
        self._covered: deque[Covered] = deque(maxlen=_UNSERVED)
        self._serves_since_s = time.monotonic()
        self._complaint: str | None = None  # already logged
        self._show()

    def announce(self, covered: Covered) -> None:
        """A version was published; called in the event loop."""
        self._covered.append(covered)
        self._measure_delays()  # the poll may have found and swapped it in already
        self._news.set()

    async def run(self) -> None:
        """Follow announcements, pins and rollbacks until cancelled."""
        while True:
            await self._follow()
            try:
                await asyncio.wait_for(self._news.wait(), self._settings.registry.poll_s)
            except TimeoutError:
                continue
            self._news.clear()

    async def _follow(self) -> None:
        """Without knowing what should serve, as with an unreadable pin or a file server that is
        away, the champion goes on: scoring does not depend on the storage."""
        try:
            await self._swap_to_wanted()
        except (ConfigurationError, TransientError, OSError) as error:
            if str(error) != self._complaint:
                log.error("version %d goes on serving: %s", self._scorer.champion.version, error)
                self._metrics.swaps.labels("refused").inc()
            self._complaint = str(error)
        else:
            self._complaint = None

    async def _swap_to_wanted(self) -> None:
        loop = asyncio.get_running_loop()
        wanted = await loop.run_in_executor(self._loading_thread, self._registry.to_serve)
        if wanted is None or wanted == self._scorer.champion.version:
            return
        started_s = time.monotonic()
        try:
            servable = await loop.run_in_executor(
                self._loading_thread, load_servable, self._registry, wanted, self._settings
            )
        except DamagedVersionError as error:
            self._registry.refuse(wanted, str(error))
            self._metrics.swaps.labels("refused").inc()
            return
        self._metrics.swap_load_seconds.observe(time.monotonic() - started_s)
        self.swap(servable)

    def swap(self, servable: Servable) -> None:
        """Put a warmed servable into service; the batch under way finishes on the old one."""
        started_s = time.perf_counter()
        self._scorer.champion = servable
        self._metrics.swap_pause_seconds.observe(time.perf_counter() - started_s)
        self._metrics.swaps.labels("swapped").inc()
        self._show()
        log.info("version %d serves (%d items)", servable.version, len(servable.vocabulary) - 1)
        self._serves_since_s = time.monotonic()
        self._measure_delays()

    def _measure_delays(self) -> None:
        """From event to served weights, for the announced versions that the champion covers."""
        through = self._scorer.champion.trained_through
        while self._covered and is_covered(self._covered[0].published.trained_through, through):
            for opened_s in self._covered.popleft().opened_s:
                self._metrics.event_to_weights.observe(self._serves_since_s - opened_s)

    def _show(self) -> None:
        champion = self._scorer.champion
        self._metrics.model_version.set(champion.version)
        self._metrics.model_published.set(champion.published_ms / 1000)
        self._metrics.model_items.set(len(champion.vocabulary) - 1)
