"""From the items topic to the scorer, which leaves out what is withdrawn, and to the trainer."""

import asyncio
import logging

from service.errors import ConfigurationError, InvalidEventError
from service.metrics import Metrics
from service.scorer.scorer import Scorer
from service.settings import Settings
from service.state.catalogue import Catalogue
from service.stream.catalogue_reader import CatalogueReader
from service.stream.codec import CatalogueCodec, Record
from service.stream.sink import Sink
from service.trainer.process import NoTrainer, TrainerProcess

log = logging.getLogger(__name__)

_READ_WAIT_S = 0.5


def require_items_topic(settings: Settings) -> None:
    """Raises ConfigurationError for an encoder or vectors without a topic that brings them."""
    for name, is_set in (
        ("items.text.encoder", settings.items.text.encoder),
        ("items.vectors", settings.items.vectors),
    ):
        if is_set and settings.topics.items is None:
            raise ConfigurationError(
                f"{name} reads what the items topic brings: set topics.items too"
            )


class CatalogueFeed:
    """Reads the topic where the settings name one; otherwise nothing happens here."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        sink: Sink,
        trainer: TrainerProcess | NoTrainer,
    ) -> None:
        """As `require_items_topic`."""
        require_items_topic(settings)
        self._topic = settings.topics.items
        self._reader = CatalogueReader(settings.kafka, self._topic) if self._topic else None
        self._codec = CatalogueCodec(settings.items)
        self._catalogue = Catalogue()
        self._metrics = metrics
        self._sink = sink
        self._trainer = trainer
        self._buries = settings.trains
        self._scorer: Scorer | None = None

    def feed(self, scorer: Scorer) -> None:
        """Whom to tell what is withdrawn; before `start`."""
        self._scorer = scorer

    async def start(self, stop: asyncio.Event) -> None:
        """Read all that is there, unless told to `stop`, so that nothing withdrawn is recommended
        from the first event on. Bad records were dead-lettered at an earlier start, maybe: they are
        again."""
        if self._reader is None:
            return
        await self._reader.start()
        told = 0
        while not stop.is_set() and not await self._reader.has_caught_up():
            told += await self._take(self._reader, _READ_WAIT_S)
        self._tell_scorer()
        log.info("the catalogue tells of %d items", told)

    async def run(self) -> None:
        """Go on reading, for ever."""
        while self._reader is not None:
            await self._take(self._reader, _READ_WAIT_S)
            self._tell_scorer()

    async def stop(self) -> None:
        if self._reader is not None:
            await self._reader.stop()

    async def _take(self, reader: CatalogueReader, timeout_s: float) -> int:
        """The records of one read; how many tell of an item."""
        items, letters = [], list[tuple[Record, InvalidEventError]]()
        for record in await reader.read(timeout_s):
            try:
                items.append(self._codec.decode(record))
            except InvalidEventError as error:
                letters.append((record, error))
                self._metrics.dead_letters.labels(error.reason.value).inc()
        if self._buries:  # every process reads the whole topic
            await self._sink.bury(letters, self._topic)
        if items:
            self._catalogue.learn(items)
            self._trainer.describe(items)
        return len(items)

    def _tell_scorer(self) -> None:
        if self._scorer is not None:
            self._scorer.withdraw(self._catalogue.withdrawn)
