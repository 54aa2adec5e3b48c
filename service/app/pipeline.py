"""The way of an event through the main process: read, decode, score, send, hand to the trainer.

One batch after the other is scored in the scoring thread; the acknowledgements of a few
batches are awaited side by side, and offsets are committed in order behind them.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator
from concurrent.futures import Executor

import numpy as np

from service.app.erasing import between_erasures
from service.app.prequential import PrequentialWindow
from service.domain import (
    Bools,
    Erasure,
    Event,
    Events,
    Offset,
    Offsets,
    Partition,
    Reached,
    advance,
    no_events,
)
from service.errors import AbandonedError, InvalidEventError
from service.metrics import Metrics
from service.scorer.scorer import Scored, Scorer
from service.settings import Settings
from service.state.duplicates import Duplicates
from service.stream.codec import (
    EventCodec,
    Header,
    RecommendationCodec,
    Record,
    encode_offsets,
)
from service.stream.once import Letter, Message, shares
from service.stream.sink import Sink
from service.stream.source import Source
from service.stream.transactions import Transactions
from service.stream.watermarks import AckTracker
from service.trainer.batcher import Batcher
from service.trainer.process import NoTrainer, TrainerProcess

log = logging.getLogger(__name__)

_READ_WAIT_S = 0.1  # also how late a micro-batch may close by age
_COMMIT_EVERY_S = 0.5
_DELIVERIES = 4  # batches whose acknowledgements are awaited at once
# Applying an event to a history costs a hundredth of scoring it: catching up takes large gulps.
_CATCH_UP_RECORDS = 5_000
# Parsed before others have a turn. 60 kB of nothing but brackets take 10 ms, all other JSON less.
_TURN_BYTES = 256 * 1024
# Events waiting for weights at which a paused source goes on, as a share of the limit.
_RESUME_AT = 0.8
# A worker that has learned everything asks the gate within one `publish_every_s`.
_PATIENCE = 3

Letters = list[Letter]


class Pipeline:
    """Owns the batches between source and sink."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        source: Source,
        sink: Sink,
        scorer: Scorer,
        trainer: TrainerProcess | NoTrainer,
        scoring_thread: Executor,
        duplicates: Duplicates,
        transactions: Transactions | None = None,
    ) -> None:
        """`duplicates` own the partitions when `own` is called. `transactions`: for exactly-once
        output; they commit offsets in the source's place."""
        self._settings = settings
        self._metrics = metrics
        self._source = source
        self._sink = sink
        self._scorer = scorer
        self._trainer = trainer
        self._scoring_thread = scoring_thread
        self._transactions = transactions
        self._events = EventCodec(settings.events, settings.model.context)
        self._duplicates = duplicates  # changes under the source's lock alone
        self._recommendations = RecommendationCodec(settings.topics.events, settings.events.kinds)
        answered = settings.events.answered if settings.scores else ()
        self._answered_kinds = np.array([kind in answered for kind in settings.events.kinds])
        self.prequential = PrequentialWindow()  # changes in the event loop alone
        self._batcher = Batcher(settings.batch)
        self._committed: dict[Partition, Offset] = {}
        self._trained: dict[Partition, Offset] = {}
        self._applied: dict[Partition, Offset] = {}
        self._tracker = AckTracker()
        self._answered: dict[Partition, Offset] = {}  # acknowledged
        self._free: dict[Partition, Offset] = {}  # of these, not yet committed
        self._deliveries: dict[asyncio.Task[None], float] = {}  # and when they began
        self._places = asyncio.Semaphore(_DELIVERIES)
        self._busy_until_s = 0.0
        self._settle_at_s = 0.0
        self._evicted = 0  # users, as far as the metrics tell

    @property
    def applied(self) -> Offsets:
        """Up to where the histories have the events; read it under the source's lock."""
        return dict(self._applied)

    @property
    def reached(self) -> dict[Partition, Reached]:
        """How far each partition has come; read it under the source's lock."""
        return {one: Reached(at, self._answered[one]) for one, at in self._applied.items()}

    @property
    def waiting_s(self) -> float:
        """How long the oldest delivery has waited for Kafka; 0 where none does."""
        begun = [at_s for task, at_s in self._deliveries.items() if not task.done()]
        return time.monotonic() - min(begun) if begun else 0.0

    def own(self, committed: Offsets, trained: Offsets, applied: Offsets) -> None:
        """Begin with these watermarks: answer from `committed` on, train from `trained` on, with
        histories of what is before `applied`."""
        self._committed = dict(committed)
        self._answered = dict(committed)
        self._trained = dict(trained)
        self._applied = dict(applied)
        self._evicted = self._scorer.evicted  # kept histories have let users go before

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set or something fails for good; `drain` then ends what is under way."""
        commit_at_s = 0.0
        while not stop.is_set():
            generation = self._source.generation
            self._apply_back_pressure()
            records = await self._source.read(self._gulp(), _READ_WAIT_S)
            async with self._source.lock:
                if generation != self._source.generation:
                    self._source.rewind()
                elif records:
                    found = [(one, self._events.erasure(one)) async for one in _in_turns(records)]
                    for events, erasures in between_erasures(found):
                        for portion in self._portions(events):
                            await self._take(portion)
                        if erasures:
                            await self._erase(erasures)
                self._close_micro_batch()
                if time.monotonic() >= commit_at_s:
                    await self._commit()
                    commit_at_s = time.monotonic() + _COMMIT_EVERY_S
            self._raise_failures()

    async def drain(self) -> None:
        """Wait for every delivery and commit what they freed; what of a transaction cannot be done
        is aborted. The caller holds the lock."""
        if self._transactions is not None:
            await self._transactions.close()
        if self._deliveries:
            await asyncio.wait(self._deliveries)
        self._raise_failures()
        await self._commit()

    def forget(self) -> None:
        """The partitions are gone: so is the open micro-batch. Kafka still has its events."""
        self._batcher.discard()
        self._tracker = AckTracker()
        self._free = {}

    def _gulp(self) -> int:
        """Records to read at once: many while only histories are brought up to date."""
        catching_up = time.monotonic() < self._busy_until_s
        return _CATCH_UP_RECORDS if catching_up else self._settings.batch.score_max_events

    def _apply_back_pressure(self) -> None:
        limit = self._settings.batch.max_untrained_events
        waiting = self._trainer.untrained_events
        if waiting >= limit:
            self._source.pause(True)
            self._settle_if_stuck()
        elif waiting < limit * _RESUME_AT:
            self._source.pause(False)

    def _settle_if_stuck(self) -> None:
        """While nothing is read nothing new is learned, and the gate is not asked again: a source
        that waits for a version which the gate has refused would wait for ever."""
        now_s = time.monotonic()
        is_idle = self._trainer.is_idle
        if is_idle and now_s < self._settle_at_s:
            return
        if is_idle:
            self._trainer.settle()
        self._settle_at_s = now_s + _PATIENCE * self._settings.trainer.publish_every_s

    def _answers(self, one: Record | Erasure) -> bool:
        """Whether what follows from it is written here: by who scores, and not a second time, since
        what was acknowledged before a restart is in its topic already."""
        committed = self._committed.get(Partition(one.partition), 0)
        return self._settings.scores and one.offset >= committed

    def _portions(self, records: list[Record]) -> Iterator[list[Record]]:
        """As many as are scored at once. Those that only bring histories up to date stay together:
        so does a read of them, until it reaches what is to be answered."""
        size = self._settings.batch.score_max_events
        if not any(self._answers(record) for record in records):
            size = max(len(records), 1)
        return (records[start : start + size] for start in range(0, len(records), size))

    async def _take(self, records: list[Record]) -> None:
        """One batch: decode, score, and start its delivery."""
        now_ms = time.time_ns() // 1_000_000
        decoded: list[tuple[Record, Event]] = []
        letters: Letters = []
        next_offsets: dict[Partition, Offset] = {}
        async for record in _in_turns(records):
            next_offsets[Partition(record.partition)] = Offset(record.offset + 1)
            try:
                decoded.append((record, self._events.decode(record, now_ms)))
            except InvalidEventError as error:
                if self._answers(record):
                    letters.append((record, error))
        events = self._without_duplicates(self._events.columns(decoded))
        answer = events.at_or_after(self._committed) & self._answered_kinds[events.kind]
        if not answer.any():
            self._busy_until_s = time.monotonic() + 1.0
        else:
            self._busy_until_s = 0.0
        loop = asyncio.get_running_loop()
        started_s = time.monotonic()
        scored, messages = await loop.run_in_executor(
            self._scoring_thread, self._score, events, answer
        )
        # What was restored may reach further than what is read again.
        advance(self._applied, next_offsets)
        self._observe(scored, letters, int(answer.sum()), time.monotonic() - started_s, now_ms)
        self._train(scored, started_s)
        ticket = self._tracker.begin(next_offsets)
        await self._places.acquire()
        sending = self._send(next_offsets, events.partition[answer].tolist(), messages, letters)
        self._begin(self._deliver(ticket, sending, events.appended[answer]))

    def _without_duplicates(self, events: Events) -> Events:
        """The events that stand for themselves: a repeated event_id is as if it were not there."""
        first = self._duplicates.is_first(events)
        if first.all():
            return events
        self._metrics.events.labels("duplicate").inc(len(events) - int(first.sum()))
        return events.take(np.flatnonzero(first))

    async def _erase(self, erasures: list[Erasure]) -> None:
        """Forget users, then say so with tombstones: behind all that was answered to them, which
        might otherwise be sent again later, and before all that follows."""
        await asyncio.get_running_loop().run_in_executor(
            self._scoring_thread, self._scorer.erase, erasures
        )
        next_offsets = {one.partition: Offset(one.offset + 1) for one in erasures}
        advance(self._applied, next_offsets)
        self._metrics.events.labels("erased").inc(len(erasures))
        self._metrics.users.set(self._scorer.users)
        self._trainer.erase(erasures)
        untrained = [one for one in erasures if one.offset >= self._trained.get(one.partition, 0)]
        if untrained and self._settings.trains:
            self._batcher.erase(untrained, time.monotonic())
        answered = [one for one in erasures if self._answers(one)]
        tombstones: list[Message] = [(one.user_id.encode(), None, []) for one in answered]
        owners = [int(one.partition) for one in answered]
        if self._deliveries:
            await asyncio.wait(self._deliveries)
            self._raise_failures()
        ticket = self._tracker.begin(next_offsets)
        await self._places.acquire()
        sending = self._send(next_offsets, owners, tombstones, [])
        self._begin(self._deliver(ticket, sending, no_events().appended))
        await asyncio.wait(self._deliveries)

    def _begin(self, delivery: Coroutine[None, None, None]) -> None:
        self._deliveries[asyncio.create_task(delivery)] = time.monotonic()

    def _score(self, events: Events, answer: Bools) -> tuple[Scored, list[Message]]:
        """In the scoring thread: rankings and the encoded recommendations."""
        scored = self._scorer.score(events, answer)
        through = encode_offsets(scored.servable.trained_through)
        now_ms = time.time_ns() // 1_000_000
        messages: list[Message] = []
        for row, ranking in enumerate(scored.rankings):
            if ranking is None:
                continue
            value = self._recommendations.encode(
                events, row, ranking, scored.servable.version, through, now_ms
            )
            messages.append((events.user_ids[row].encode(), value, _trace_headers(events, row)))
        return scored, messages

    def _train(self, scored: Scored, now_s: float) -> None:
        """Put what is not yet in the weights into the open micro-batch."""
        if not self._settings.trains:
            return
        events = scored.events
        rows = np.flatnonzero(events.at_or_after(self._trained))
        self._batcher.add(
            events.take(rows), scored.places.slot[rows], scored.places.ordinal[rows], now_s
        )
        self._close_micro_batch()

    def _close_micro_batch(self) -> None:
        batch = self._batcher.close_if_due(time.monotonic())
        if batch is not None:
            self._metrics.train_batch.observe(len(batch))
            self._trainer.offer(batch)
        self._metrics.queue_depth.set(self._trainer.untrained_events)
        self._metrics.in_flight_batches.set(self._trainer.batches_at_worker)

    async def _deliver(
        self,
        ticket: int,
        sending: Awaitable[None],
        appended: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    ) -> None:
        """Once a batch's records are acknowledged, its offsets may be committed; those of a
        transaction are by then."""
        try:
            await sending
            now_ms = time.time_ns() // 1_000_000
            for age_ms in (now_ms - appended).tolist():
                self._metrics.event_to_recommendation.observe(age_ms / 1000)
            freed = self._tracker.done(ticket)
            advance(self._answered, freed)  # also of what was answered before a start
            if self._transactions is None:
                self._free.update(freed)
        except AbandonedError as reason:
            log.info("a batch is left to the next owner: %s", reason)
        finally:
            self._places.release()

    async def _send(
        self,
        next_offsets: Offsets,
        partitions: list[int],
        messages: list[Message],
        letters: Letters,
    ) -> None:
        """Returns when all is acknowledged. `partitions[i]` is that of `messages[i]`'s event."""
        if self._transactions is not None:
            await self._transactions.deliver(shares(next_offsets, partitions, messages, letters))
            return
        # In this order: the next batch's recommendations must not overtake these while a dead
        # letter is waited for.
        await self._sink.recommend(messages)
        await self._sink.bury(letters)

    async def _commit(self) -> None:
        """What is read again after a start lies before what the group has committed, which must not
        go back."""
        free, self._free = self._free, {}
        ahead = {one: at for one, at in free.items() if at > self._committed.get(one, 0)}
        if ahead and not await self._source.commit(ahead):
            self._free = ahead | self._free

    def _raise_failures(self) -> None:
        """What cannot be delivered ends the service; nothing of it was committed."""
        for task in [task for task in self._deliveries if task.done()]:
            del self._deliveries[task]
            task.result()
        if self._source.failure is not None:
            raise self._source.failure

    def _observe(
        self, scored: Scored, letters: Letters, answered: int, seconds: float, now_ms: int
    ) -> None:
        metrics, events = self._metrics, scored.events
        metrics.events.labels("scored").inc(answered)
        metrics.unknown_items.inc(scored.unknown)
        metrics.events.labels("applied").inc(len(events) - answered)
        metrics.events.labels("dead_letter").inc(len(letters))
        for _, error in letters:
            metrics.dead_letters.labels(error.reason.value).inc()
        metrics.users.set(self._scorer.users)
        metrics.users_evicted.inc(self._scorer.evicted - self._evicted)
        self._evicted = self._scorer.evicted
        if not answered:
            return
        metrics.score_seconds.observe(seconds)
        metrics.score_batch.observe(answered)
        for age_ms in (now_ms - events.timestamp).tolist():
            metrics.event_age.observe(max(age_ms, 0) / 1000)
        if len(scored.ranks):
            self.prequential.add(scored.ranks)
            metrics.prequential_events.inc(len(scored.ranks))
            metrics.prequential_hit_rate.set(self.prequential.hit_rate())
            metrics.prequential_ndcg.set(self.prequential.ndcg())


async def _in_turns(records: list[Record]) -> AsyncIterator[Record]:
    """The records, for whoever parses them; others have a turn in between."""
    parsed = 0
    for record in records:
        yield record
        parsed += len(record.value or b"")
        if parsed >= _TURN_BYTES:
            parsed = 0
            await asyncio.sleep(0)


def _trace_headers(events: Events, row: int) -> list[Header]:
    """The event's trace context, passed on."""
    trace = events.traces[row]
    if trace is None:
        return []
    headers = [("traceparent", trace.parent.encode())]
    if trace.state is not None:
        headers.append(("tracestate", trace.state.encode()))
    return headers
