"""Batches on their way from source to sink."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import orjson
import pytest

from service.app.pipeline import Letters, Pipeline
from service.domain import ItemId, Offset, Offsets, Partition
from service.metrics import Metrics
from service.scorer.scorer import Scorer
from service.state.histories import HistorySlab
from service.state.popularity import Popularity
from service.stream.codec import Header, Record
from service.stream.sink import Sink
from service.stream.source import Source
from service.trainer.process import TrainerProcess
from tests.app.test_serving import small
from tests.scorer.examples import a_servable
from tests.stream.examples import plain_event, record

PARTITION = Partition(0)


class Batches:
    """Stands for the source: gives these batches, then asks the pipeline to stop."""

    def __init__(self, *batches: list[Record]) -> None:
        self.generation = 1
        self.lock = asyncio.Lock()
        self.failure: BaseException | None = None
        self.stop = asyncio.Event()
        self.committed: list[Offsets] = []
        self._batches = list(batches)

    async def read(self, max_records: int, timeout_s: float) -> list[Record]:
        await asyncio.sleep(0)
        if len(self._batches) == 1:
            self.stop.set()
        return self._batches.pop(0)

    async def commit(self, offsets: Offsets) -> None:
        self.committed.append(offsets)

    def pause(self, paused: bool) -> None: ...


class Topics:
    """Stands for the sink; acknowledges dead letters only after so many recommendations."""

    def __init__(self, letters_after: int) -> None:
        self.sent: list[str] = []
        self.buried = 0
        self._letters_after = letters_after
        self._may_bury = asyncio.Event()

    async def recommend(self, messages: list[tuple[bytes, bytes, list[Header]]]) -> None:
        self.sent += [orjson.loads(value)["rec_id"] for _, value, _ in messages]
        if len(self.sent) >= self._letters_after:
            self._may_bury.set()

    async def bury(self, letters: Letters) -> None:
        if letters:
            await self._may_bury.wait()
        self.buried += len(letters)


class NoTrainer:
    untrained_events = 0
    batches_at_worker = 0


@pytest.fixture
def slab(tmp_path: Path) -> Iterator[HistorySlab]:
    slab = HistorySlab.create(PARTITION, small(tmp_path).history)
    yield slab
    slab.close()


def event(offset: int) -> Record:
    return record(plain_event(), partition=PARTITION, offset=offset)


def broken(offset: int) -> Record:
    return record(b"{", partition=PARTITION, offset=offset)


def run_to_the_end(source: Batches, topics: Topics, slab: HistorySlab, root: Path) -> None:
    settings = small(root)
    scorer = Scorer(
        a_servable([ItemId("i1")]),
        {PARTITION: slab},
        Popularity(100),
        None,
        settings.scorer,
        settings.model.max_length,
    )

    async def run(thread: ThreadPoolExecutor) -> None:
        pipeline = Pipeline(
            settings,
            Metrics(),
            cast(Source, source),
            cast(Sink, topics),
            scorer,
            cast(TrainerProcess, NoTrainer()),
            thread,
        )
        pipeline.own({PARTITION: Offset(0)}, {}, {})
        async with asyncio.timeout(10):
            await pipeline.run(source.stop)
            await pipeline.drain()

    with ThreadPoolExecutor(1) as thread:
        asyncio.run(run(thread))


def test_a_slow_dead_letter_does_not_let_later_recommendations_overtake(
    slab: HistorySlab, tmp_path: Path
) -> None:
    source = Batches([event(0), broken(1)], [event(2)], [event(3)])
    topics = Topics(letters_after=2)
    run_to_the_end(source, topics, slab, tmp_path)
    assert topics.sent == ["events/0/0", "events/0/2", "events/0/3"]
    assert topics.buried == 1
    assert source.committed[-1] == {PARTITION: 4}
