"""Batches on their way from source to sink."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import orjson
import pytest

from service.app import pipeline
from service.app.pipeline import Letters, Pipeline, _in_turns
from service.domain import Erasure, ItemId, Offset, Offsets, Partition, Reached
from service.errors import AbandonedError
from service.metrics import Metrics
from service.scorer.scorer import Scorer
from service.state.duplicates import Duplicates
from service.state.histories import HistorySlab
from service.stream.codec import Record
from service.stream.once import Message, Share
from service.stream.sink import Sink
from service.stream.source import Source
from service.stream.transactions import Transactions
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
        self.refusals = 0  # of the first commits
        self._batches = list(batches)

    async def read(self, max_records: int, timeout_s: float) -> list[Record]:
        await asyncio.sleep(0)
        if len(self._batches) == 1:
            self.stop.set()
        return self._batches.pop(0)

    async def commit(self, offsets: Offsets) -> bool:
        if self.refusals:
            self.refusals -= 1
            return False
        self.committed.append(offsets)
        return True

    def pause(self, paused: bool) -> None: ...


class Topics:
    """Stands for the sink; acknowledges dead letters only after so many recommendations."""

    def __init__(self, letters_after: int) -> None:
        self.sent: list[str] = []
        self.batches: list[int] = []  # recommendations and tombstones of each
        self.delays_s: list[float] = []  # of the first calls
        self.buried = 0
        self._letters_after = letters_after
        self._may_bury = asyncio.Event()

    async def recommend(self, messages: list[Message]) -> None:
        await asyncio.sleep(self.delays_s.pop(0) if self.delays_s else 0)
        self.batches.append(len(messages))
        self.sent += [
            f"tombstone of {key.decode()}" if value is None else orjson.loads(value)["rec_id"]
            for key, value, _ in messages
        ]
        if len(self.sent) >= self._letters_after:
            self._may_bury.set()

    async def bury(self, letters: Letters) -> None:
        if letters:
            await self._may_bury.wait()
        self.buried += len(letters)


class Lanes:
    """Stands for the transactions; those of the given offset are left to the next owner."""

    def __init__(self, abandoned: int | None = None) -> None:
        self.delivered: list[tuple[int, int, int]] = []  # next offset, messages, letters
        self.closed = False
        self._abandoned = abandoned

    async def deliver(self, shares: dict[Partition, Share]) -> None:
        share = shares[PARTITION]
        if share.next_offset == self._abandoned:
            raise AbandonedError("not ours")
        self.delivered.append((share.next_offset, len(share.messages), len(share.letters)))

    async def close(self) -> None:
        self.closed = True


class NoTrainer:
    untrained_events = 0
    batches_at_worker = 0

    def erase(self, erasures: list[Erasure]) -> None: ...


@pytest.fixture
def slab(tmp_path: Path) -> Iterator[HistorySlab]:
    slab = HistorySlab.create(PARTITION, small(tmp_path).history)
    yield slab
    slab.close()


def event(offset: int) -> Record:
    return record(plain_event(), partition=PARTITION, offset=offset)


def broken(offset: int) -> Record:
    return record(b"{", partition=PARTITION, offset=offset)


def erasing(offset: int, user: str = "u1") -> Record:
    return record({"user_id": user, "event": "erase"}, partition=PARTITION, offset=offset)


def run_to_the_end(
    source: Batches,
    topics: Topics,
    slab: HistorySlab,
    root: Path,
    lanes: Lanes | None = None,
    metrics: Metrics | None = None,
    committed: int = 0,
) -> dict[Partition, Reached]:
    """How far it came."""
    settings = small(root)
    scorer = Scorer.of(settings, a_servable([ItemId("i1")]), {PARTITION: slab}, None)

    async def run(thread: ThreadPoolExecutor) -> dict[Partition, Reached]:
        duplicates = Duplicates(settings.events.deduplicate)
        duplicates.own([PARTITION])
        pipeline = Pipeline(
            settings,
            metrics or Metrics(),
            cast(Source, source),
            cast(Sink, topics),
            scorer,
            cast(TrainerProcess, NoTrainer()),
            thread,
            duplicates,
            cast(Transactions, lanes) if lanes else None,
        )
        pipeline.own({PARTITION: Offset(committed)}, {}, {})
        async with asyncio.timeout(10):
            await pipeline.run(source.stop)
            await pipeline.drain()
        return pipeline.reached

    with ThreadPoolExecutor(1) as thread:
        return asyncio.run(run(thread))


def test_a_slow_dead_letter_does_not_let_later_recommendations_overtake(
    slab: HistorySlab, tmp_path: Path
) -> None:
    source = Batches([event(0), broken(1)], [event(2)], [event(3)])
    topics = Topics(letters_after=2)
    run_to_the_end(source, topics, slab, tmp_path)
    assert topics.sent == ["events/0/0", "events/0/2", "events/0/3"]
    assert topics.buried == 1
    assert source.committed[-1] == {PARTITION: 4}


def test_what_kafka_did_not_take_is_committed_later(
    slab: HistorySlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing more comes."""
    monkeypatch.setattr(pipeline, "_COMMIT_EVERY_S", 0.0)
    source = Batches([event(0), event(1)], [], [], [])
    source.refusals = 1
    run_to_the_end(source, Topics(letters_after=0), slab, tmp_path)
    assert source.committed == [{PARTITION: 2}]


def test_with_transactions_the_source_commits_nothing(slab: HistorySlab, tmp_path: Path) -> None:
    source, topics, lanes = Batches([event(0), broken(1)], [event(2)]), Topics(0), Lanes()
    run_to_the_end(source, topics, slab, tmp_path, lanes)
    assert lanes.delivered == [(2, 1, 1), (3, 1, 0)]
    assert lanes.closed
    assert topics.sent == []
    assert source.committed == []


def test_what_is_left_to_the_next_owner_ends_nothing(slab: HistorySlab, tmp_path: Path) -> None:
    lanes = Lanes(abandoned=1)
    run_to_the_end(Batches([event(0)], [event(1)]), Topics(0), slab, tmp_path, lanes)
    assert lanes.delivered == [(2, 1, 0)]


def test_a_repeated_event_id_is_as_if_it_were_not_there(slab: HistorySlab, tmp_path: Path) -> None:
    def named(offset: int, event_id: str) -> Record:
        return record(plain_event(event_id=event_id), partition=PARTITION, offset=offset)

    source = Batches([named(0, "a"), named(1, "b")], [named(2, "a"), named(3, "c"), named(4, "c")])
    topics, metrics = Topics(letters_after=0), Metrics()
    run_to_the_end(source, topics, slab, tmp_path, metrics=metrics)
    assert topics.sent == ["events/0/0", "events/0/1", "events/0/3"]
    assert slab.counts(np.zeros(1, np.int32)).tolist() == [3]
    assert metrics.events.labels("duplicate")._value.get() == 2
    assert metrics.events.labels("scored")._value.get() == 3
    assert source.committed[-1] == {PARTITION: 5}


def test_the_committed_offset_does_not_go_back_while_histories_catch_up(
    slab: HistorySlab, tmp_path: Path
) -> None:
    source = Batches([event(0), event(1)], [event(2), event(3)])
    run_to_the_end(source, Topics(letters_after=0), slab, tmp_path, committed=3)
    assert source.committed == [{PARTITION: 4}]


def test_what_is_answered_does_not_go_back_either(slab: HistorySlab, tmp_path: Path) -> None:
    source = Batches([event(0), event(1)])
    reached = run_to_the_end(source, Topics(letters_after=0), slab, tmp_path, committed=9)
    assert reached == {PARTITION: (2, 9)}
    source = Batches([event(2), event(3)])
    reached = run_to_the_end(source, Topics(letters_after=0), slab, tmp_path, committed=3)
    assert reached == {PARTITION: (4, 4)}


def test_a_long_read_is_answered_a_few_at_a_time(slab: HistorySlab, tmp_path: Path) -> None:
    """One that begins with what only brings histories up to date may be of thousands."""
    at_once = small(tmp_path).batch.score_max_events
    source, topics = Batches([event(offset) for offset in range(5 * at_once)]), Topics(0)
    run_to_the_end(source, topics, slab, tmp_path, committed=at_once + 1)
    assert topics.sent == [f"events/0/{offset}" for offset in range(at_once + 1, 5 * at_once)]
    assert topics.batches == [0, at_once - 1, at_once, at_once, at_once]


def test_others_have_turns_while_large_records_are_parsed() -> None:
    large = record(plain_event(context={"a": "x" * 60_000}))
    turns, parsed = 0, []

    async def parse() -> None:
        async for _ in _in_turns([large] * 50):
            parsed.append(turns)

    async def run() -> None:
        nonlocal turns
        parsing = asyncio.create_task(parse())
        while not parsing.done():
            turns += 1
            await asyncio.sleep(0)

    asyncio.run(run())
    assert len(parsed) == 50
    assert len(set(parsed)) == 10  # 256 kB are five of them


class TestErasures:
    def test_the_tombstone_stands_behind_what_was_answered_before_and_before_what_follows(
        self, slab: HistorySlab, tmp_path: Path
    ) -> None:
        source = Batches([event(0)], [event(1), erasing(2), event(3)], [event(4)])
        topics = Topics(letters_after=0)
        topics.delays_s = [0.2, 0.1, 0.1]  # acknowledged late, as after a retry
        run_to_the_end(source, topics, slab, tmp_path)
        before, after = topics.sent[:2], topics.sent[3:]
        assert sorted(before) == ["events/0/0", "events/0/1"]
        assert topics.sent[2] == "tombstone of u1"
        assert after == ["events/0/3", "events/0/4"]
        assert source.committed[-1] == {PARTITION: 5}

    def test_only_what_came_later_is_in_the_history(
        self, slab: HistorySlab, tmp_path: Path
    ) -> None:
        source = Batches([event(0), event(1), erasing(2), erasing(3, "u2"), event(4)])
        run_to_the_end(source, Topics(letters_after=0), slab, tmp_path)
        slot = np.flatnonzero(slab.users(np.arange(slab.used, dtype=np.int32)))
        assert slab.counts(slot.astype(np.int32)).tolist() == [1]
        assert slab.newest(slot.astype(np.int32)).tolist() == [4]

    def test_one_that_was_answered_before_is_not_answered_again(
        self, slab: HistorySlab, tmp_path: Path
    ) -> None:
        source = Batches([event(0), erasing(1), erasing(2)])
        topics = Topics(letters_after=0)
        run_to_the_end(source, topics, slab, tmp_path, committed=2)
        assert topics.sent == ["tombstone of u1"]
        assert slab.known == 0
