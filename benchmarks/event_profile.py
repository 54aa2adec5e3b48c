"""Where the time of one event goes in the main process, stage by stage, at batches of 256.

The stages are the calls of pipeline, scorer and sink in their order, timed one by one on full
histories; `whole` is the scorer itself on the same batches, against which the stages of
scoring are to be held. Consuming and producing are counted in CPU time of this process, the
wait for the broker left out.
"""

import asyncio
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from aiokafka import AIOKafkaConsumer

from benchmarks.rows import Row, make_row
from benchmarks.scale import Scale
from benchmarks.shoppers import ITEMS, Shoppers, item_name
from benchmarks.versions import publish_random
from service.app.serving import load_servable
from service.domain import NO_KEY, Events, Int64s, ItemId, ItemKey, Offset, Partition
from service.metrics import Metrics
from service.model.inference import compact, states_at
from service.model.memory import Memory, Recollection
from service.model.mixture import Columns, MemoryRows, best, blended, ranks, stack
from service.model.vocabulary import NO_ROW
from service.registry.registry import Registry
from service.registry.servable import Servable
from service.scorer.scorer import Scorer
from service.settings import (
    KafkaSettings,
    PrivacySettings,
    Settings,
    StorageSettings,
    TopicsSettings,
)
from service.state.histories import HistorySlab
from service.state.popularity import Popularity
from service.stream.codec import EventCodec, Header, RecommendationCodec, Record, encode_offsets
from service.stream.connection import client_arguments
from service.stream.dead_letters import DeadLetters
from service.stream.sink import Sink
from service.stream.topics import create_topics
from service.trainer.batcher import Batcher
from service.trainer.device import choose_threads

_BATCH = 256
_SMALL = 16
_FILLING_EVENTS = 60_000  # 64 a user: histories past the 50 events that the model attends to
_WARM_UP = 5
_PARTITIONS = 4
_TOPICS = TopicsSettings(
    events="profile-events", recommendations="profile-out", dead_letter="profile-dead"
)

Message = tuple[bytes, bytes, list[Header]]


@dataclass(slots=True)
class Stages:
    """Microseconds per event of each stage, one entry a batch."""

    spent: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str, events: int = _BATCH, *, cpu: bool = False) -> Iterator[None]:
        clock = time.process_time if cpu else time.perf_counter
        started_s = clock()
        yield
        self.spent.setdefault(name, []).append((clock() - started_s) / events * 1e6)


class Bench:
    """The parts of the main process, with histories that are full."""

    def __init__(self, settings: Settings, servable: Servable, stages: Stages) -> None:
        self._settings = settings
        self._servable = servable
        self._stages = stages
        self._shoppers = Shoppers()
        self._codec = EventCodec(settings.events, settings.model.context)
        self._encoder = RecommendationCodec(settings.topics.events, settings.events.kinds)
        self._popularity = Popularity(settings.scorer.popularity_half_life_events)
        self._memory = Memory(settings.memory)
        self._memory_rows = MemoryRows(servable.vocabulary)
        self._batcher = Batcher(settings.batch)
        self._metrics = Metrics()
        self._offset = 0
        self._slabs = {
            Partition(number): HistorySlab.of(Partition(number), settings)
            for number in range(_PARTITIONS)
        }
        self._scorer = Scorer.of(settings, servable, self._slabs, self._memory, self._popularity)

    def close(self) -> None:
        for slab in self._slabs.values():
            slab.close()

    def fill(self) -> None:
        no_answer = np.zeros(_BATCH, np.bool_)
        for _ in range(_FILLING_EVENTS // _BATCH):
            records = self._records(_BATCH)
            decoded = [
                (record, self._codec.decode(record, record.appended_ms)) for record in records
            ]
            for number in self._slabs:
                events = self._codec.columns(decoded)
                events.partition[:] = number
                self._scorer.score(events, no_answer)

    def stage_by_stage(self) -> list[Message]:
        """One batch of one partition; gives the messages to produce."""
        stages, records = self._stages, self._records(_BATCH)
        now_ms = time.time_ns() // 1_000_000
        with stages.timed("decode"):
            decoded = [(record, self._codec.decode(record, now_ms)) for record in records]
        with stages.timed("columns"):
            events = self._codec.columns(decoded)
        ranked = self._score(events)
        with stages.timed("popularity"):
            self._popularity.learn(events.item_ids)
        messages: list[Message] = []
        with stages.timed("encode"):
            through = encode_offsets({Partition(one): Offset(0) for one in range(_PARTITIONS)})
            for row, ranking in enumerate(ranked):
                value = self._encoder.encode(
                    events, row, ranking, self._servable.version, through, now_ms
                )
                messages.append((events.user_ids[row].encode(), value, []))
        with stages.timed("metrics"):
            for age_ms in (now_ms - events.timestamp).tolist():
                self._metrics.event_age.observe(max(age_ms, 0) / 1000)
            for age_ms in (now_ms - events.appended).tolist():
                self._metrics.event_to_recommendation.observe(age_ms / 1000)
        with stages.timed("micro_batch"):
            slot, ordinal = np.zeros(_BATCH, np.int32), np.zeros(_BATCH, np.int64)
            self._batcher.add(events.take(np.arange(_BATCH)), slot, ordinal, 0.0)
            pickle.dumps(self._batcher.close_if_due(1e9))
        return messages

    @torch.inference_mode()
    def _score(self, events: Events) -> list[list[tuple[ItemId, float]]]:
        """What the scorer does for one partition, in its order."""
        stages, slab, servable = self._stages, self._slabs[Partition(0)], self._servable
        vocabulary, settings = servable.vocabulary, self._settings
        with stages.timed("slab_append"):
            slot, ordinal = slab.append(
                events.user,
                events.item,
                events.kind,
                events.timestamp,
                events.offset,
                codes=events.codes,
            )
        with stages.timed("windows"):
            earlier = slab.windows(slot, ordinal, settings.model.max_length).item
            window = slab.windows(slot, ordinal + 1, settings.model.max_length).item
        with stages.timed("seen_items"):
            kept, kept_ordinal, _ = slab.remembered(slot, ordinal + 1)
            is_earlier = (kept_ordinal >= 0) & (kept_ordinal < ordinal[:, None])
        with stages.timed("memory"):
            recalled_before, recalled_after = self._recall(events, earlier)
        with stages.timed("known_items"):
            rows, lengths = compact(vocabulary.rows(window))  # [batch, length]
            known = np.stack([lengths - (vocabulary.rows(events.item) != NO_ROW), lengths], axis=1)
        with stages.timed("forward"):
            states = states_at(servable.model, rows, known - 1)
        with stages.timed("catalogue_scores"):
            cosines = states @ servable.table.T  # [batch, 2, items]
            cosines[torch.from_numpy(known == 0)] = -torch.inf
        with stages.timed("mixture_columns"):
            before = stack(recalled_before, self._memory_rows)
            after = stack(recalled_after, self._memory_rows)
            columns = Columns(vocabulary, before, after)
            hidden = columns.of(kept) * settings.scorer.exclude_seen
        with stages.timed("prequential_mixture"):
            tested = blended(cosines[:, 0], columns, hidden * is_earlier, before, servable.blend)
        with stages.timed("prequential_ranks"):
            ranks(tested, torch.from_numpy(columns.of(events.item)))
        with stages.timed("mixture"):
            answered = blended(cosines[:, 1], columns, hidden, after, servable.blend)
        with stages.timed("topk"):
            chance, places = best(answered, settings.scorer.top_k)  # [batch, k] each
        with stages.timed("item_names"):
            return [
                self._named(columns, chances, of)
                for chances, of in zip(chance.tolist(), places.tolist(), strict=True)
            ]

    def _recall(
        self, events: Events, earlier: Int64s
    ) -> tuple[list[Recollection], list[Recollection]]:
        """What each event's history recalls before and after the memory has learned the event."""
        before: list[Recollection] = []
        after: list[Recollection] = []
        lengths = (earlier != NO_KEY).sum(axis=1).tolist()
        for row, (item, item_id, length) in enumerate(
            zip(events.item.tolist(), events.item_ids, lengths, strict=True)
        ):
            history = earlier[row, :length]
            before.append(self._memory.recall(history))
            self._memory.learn(ItemKey(item), item_id, history)
            after.append(self._memory.recall(np.append(history, item)))
        return before, after

    def _named(
        self, columns: Columns, chances: list[float], places: list[int]
    ) -> list[tuple[ItemId, float]]:
        ids = self._servable.vocabulary.ids
        ranking = []
        for chance, place in zip(chances, places, strict=True):
            met = columns.met(place)
            name = ids[place] if met is None else self._memory.item_id(met)
            if chance > 0 and name is not None:
                ranking.append((name, chance))
        return ranking

    def whole(self, name: str, size: int, partitions: int) -> None:
        """The scorer itself on a batch that is spread over so many partitions."""
        decoded = [(one, self._codec.decode(one, one.appended_ms)) for one in self._records(size)]
        events = self._codec.columns(decoded)
        events.partition[:] = np.arange(size) * partitions // size
        with self._stages.timed(name, size):
            self._scorer.score(events, np.ones(size, np.bool_))

    def _records(self, count: int) -> list[Record]:
        now_ms = time.time_ns() // 1_000_000
        records = [
            Record(0, self._offset + place, now_ms, key, value, ())
            for place, (_, key, value) in enumerate(self._shoppers.records(count))
        ]
        self._offset += count
        return records


def profile_rows(kafka: KafkaSettings, scale: Scale) -> list[Row]:
    torch.set_num_threads(choose_threads(0))
    stages = Stages()
    with TemporaryDirectory() as folder:
        settings = Settings(storage=StorageSettings(root=Path(folder)))
        ids = [ItemId(item_name(item)) for item in range(ITEMS)]
        version = publish_random(Path(folder), ids, seed=0)
        registry = Registry(Path(folder) / "registry", settings.registry)
        bench = Bench(settings, load_servable(registry, version, settings), stages)
        try:
            bench.fill()
            batches = []
            for number in range(_WARM_UP + scale.profile_batches):
                if number == _WARM_UP:
                    stages.spent.clear()
                batches.append(bench.stage_by_stage())
                bench.whole("whole", _BATCH, 1)
                bench.whole("whole_4_partitions", _BATCH, _PARTITIONS)
                bench.whole("whole_batch_16", _SMALL, 1)
                bench.whole("whole_batch_16_4_partitions", _SMALL, _PARTITIONS)
        finally:
            bench.close()
    asyncio.run(asyncio.wait_for(_produce_and_consume(kafka, batches, stages), timeout=120.0))
    return _rows(stages)


async def _produce_and_consume(
    kafka: KafkaSettings, batches: list[list[Message]], stages: Stages
) -> None:
    await create_topics(kafka, _TOPICS)
    sink = Sink(kafka, _TOPICS, Metrics(), DeadLetters(_TOPICS, PrivacySettings()))
    await sink.start()
    try:
        for messages in batches:
            with stages.timed("produce", cpu=True), stages.timed("produce_until_acknowledged"):
                await sink.recommend(messages)
    finally:
        await sink.stop()
    consumer = AIOKafkaConsumer(
        _TOPICS.recommendations,
        **client_arguments(kafka),
        group_id=None,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        left = sum(map(len, batches))
        while left:
            started_s = time.process_time()
            fetched = await consumer.getmany(timeout_ms=1000, max_records=_BATCH)
            count = sum(map(len, fetched.values()))
            spent_s = time.process_time() - started_s
            if count == _BATCH:  # a smaller one is mostly the wait for the next fetch
                stages.spent.setdefault("consume", []).append(spent_s / count * 1e6)
            left -= count
    finally:
        await consumer.stop()


_APART = ("whole", "produce_until_acknowledged")  # they are not stages: others contain them


def _rows(stages: Stages) -> list[Row]:
    medians = {name: float(np.median(spent)) for name, spent in stages.spent.items()}
    total = sum(us for name, us in medians.items() if not name.startswith(_APART))
    rows = []
    for name, spent in stages.spent.items():
        apart = name.startswith(_APART)
        reference = "whole" if name.startswith("whole_") else None if apart else "all stages"
        against = {"whole": [medians["whole"]], "all stages": [total], None: []}[reference]
        rows.append(make_row(f"profile/{name}", spent, "us/event", reference, against))
    rows.append(make_row("profile/all_stages", [total], "us/event"))
    return rows
