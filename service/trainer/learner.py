"""The learning loop: one round of micro-batches at a time.

A round admits new items, moves its share of events into the rolling holdout, and fine-tunes the
challenger on the rest with replayed histories beside them, in passes of which the last is kept
unless the holdout is plainly worse after it. The gate is asked separately, between rounds. An
event with a history before it is a new target in one round: the one that brings it, or the one in
which it leaves the holdout. What a rejected or diverged challenger had learned is taught again,
more slowly, to the one that follows.
"""

import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.domain import (
    NO_KEY,
    Bools,
    Erasure,
    Float32s,
    Int32s,
    Int64s,
    ItemKey,
    MicroBatch,
    Offset,
    Offsets,
    Partition,
    Version,
    advance,
)
from service.errors import LossSpikeError, NonFiniteError
from service.model.inference import states_after
from service.model.item_tower import Described
from service.model.memory import Memory, Recollection
from service.model.mixture import Blend
from service.model.recommender import Recommender
from service.model.temperature import temperature_for
from service.model.vocabulary import Vocabulary
from service.registry.artifact import Artifact
from service.registry.manifest import Taught
from service.registry.servable import Servable, build_servable, first_blend
from service.settings import HerdingReplay, RecencyReplay, Settings
from service.state.catalogue import CatalogueItem
from service.state.features import keys_of
from service.trainer.anchor import Anchor
from service.trainer.augmenting import Augmenter
from service.trainer.challenger import Challenger, Savepoint
from service.trainer.clicks import Clicks
from service.trainer.clock import latest_past
from service.trainer.early_stopping import EarlyStopping, Scores
from service.trainer.evaluation import evaluate, evaluate_alone
from service.trainer.expiry import kept_rows
from service.trainer.gate import GateReport, Verdict, against_older, judge
from service.trainer.herding import herd
from service.trainer.holdout import HoldoutRows, admit, capped, empty_rows, is_member, remind
from service.trainer.packing import BLOTTED, Packed, pack
from service.trainer.recollections import Recollections
from service.trainer.replay import Replay
from service.trainer.reranking import ClickReport, best_weight, reranked
from service.trainer.sequences import (
    MASKED,
    Sequences,
    Slabs,
    Stretch,
    contexts,
    empty_sequences,
    from_lists,
    join,
    stretch,
    strip,
    windows_over,
)
from service.trainer.share_fit import SHARES, ShareFit
from service.trainer.step import ClickBatch, train_step
from service.trainer.taught import joined, taught_by
from service.trainer.weighing import Weighing

log = logging.getLogger(__name__)

# Rows of the holdout, newest first, that early stopping looks at; the gate looks at all.
_STOPPING_ROWS = 128
# A loss spike is worse than this part of what a guess among all items would lose, with so much
# more: weights that know nothing do not guess evenly.
_WORSE_THAN_A_GUESS = 1.2
_UNEVEN = 1.0  # nats
_NEWS = 0.1  # how much the last round counts in what is usual
_SLOWEST = 1 / 64  # of the learning rate, after rejections
# Rounds remembered in case the challenger is rejected: at 500 sequences a round about 170 MB.
# The oldest make room; if the challenger is rejected after that, they are given up.
_ROUNDS_KEPT = 500


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What a round did. Sent to the parent, which owns the metrics."""

    batches: int
    events: int
    held_out: int  # rows in the holdout now
    sequences: int
    labels: int  # taught to the click head, which its weights did not know
    step_s: tuple[float, ...]  # of each optimizer step; empty when the round was undone
    loss: float  # mean, nats; NaN where no step foretold a next item
    diverged: bool
    skipped: int  # sequences given up


@dataclass(frozen=True, slots=True)
class _Measure:
    """A published version that challengers are measured against."""

    model: Recommender
    vocabulary: Vocabulary
    blend: Blend
    # NDCG@10 of held-out rows by their marks: it stays, so each is measured once.
    scores: dict[int, float]


class Learner:
    """Champion, challenger and holdout of one trainer worker."""

    def __init__(
        self,
        settings: Settings,
        slabs: Slabs,
        challenger: Challenger,
        held: HoldoutRows,
        trained_through: dict[Partition, Offset],
        memory: Memory | None,
        blend: Blend,
        clicks: Clicks | None = None,
        named: Iterable[ItemKey] = (),
    ) -> None:
        """`memory` has learned what is before `trained_through`, except for what is held; None
        where the model ranks alone. `blend` is the champion's. `clicks` is None where no click
        head is trained. `named` are the items that the catalogue names."""
        self._settings = settings.trainer
        self._items = settings.items
        self._named = set(named)
        self._memory = memory
        self._share_fit = ShareFit.new(settings.memory.model_share)
        self._tried: set[int] = set()  # marks of the rows on which shares were tried last
        self._temperature = settings.model.temperature  # of a large catalogue
        self._exclude_seen = settings.scorer.exclude_seen
        self._candidates = settings.click.candidates
        self._shown = settings.events.codes(settings.events.shown)
        self._negative = settings.events.codes(settings.events.negative)
        self._length = settings.model.max_length
        self._features = keys_of(settings.model.context)
        self._slabs = slabs
        self._challenger = challenger
        # Of the challenger, fitted each time the gate is asked.
        self.blend = replace(blend, temperature=self._temperature_now)
        self.held = held
        self._recollections = Recollections()
        self._recollections.ask(memory, held)  # after a restart: late, for those
        self.trained_through = trained_through
        self.taught: tuple[Taught, ...] = ()  # since the champion, rejected rounds included
        self.given_up = 0  # sequences since the champion
        self.on_step: Callable[[], None] = lambda: None  # called after each: rounds may be long
        self._clicks = clicks
        self.click_report: ClickReport | None = None  # as of when the gate was last asked
        choice = settings.trainer.replay.choice
        recency = choice.of if isinstance(choice, RecencyReplay) else 1
        self._weighing = Weighing.of(settings)
        seed = settings.model.seed
        self._replay = Replay(slabs, self._length + 1, seed, self._weighing, recency)
        self._augmenter = Augmenter(settings.trainer.augment, memory, seed)
        self._shuffle = np.random.default_rng(seed)
        self._latest_ms = max(latest_past(held.time), latest_past(challenger.met))
        self._retry = empty_sequences(self._length + 1)
        self._rejections = 0  # by the gate, since it let one pass
        self._divergences = 0  # of the last rounds
        self._slowdown = 1.0
        self._usual = math.nan  # loss, as a part of that of a guess; the last rounds foremost
        self._crowned_ndcg: float | None = None  # of the champion when it was published
        # Of the challenger when the gate was last asked, and, while it is still the same, by the
        # marks of what was held.
        self._asked_ndcg: float | None = None
        self._asked_scores: dict[int, float] = {}
        # NDCG@10 of the champion on the holdout as it is now, less that when it was published.
        self.shift: float | None = None
        self.news = False  # was anything learned or described since the gate was last asked
        self._date_unknown()
        self._crown()
        self._older = self._champion
        self._promotions = 0  # since it was the champion
        self._pinned: _Measure | None = None

    @classmethod
    def new(
        cls,
        settings: Settings,
        slabs: Slabs,
        device: torch.device,
        described: Described | None = None,
    ) -> "Learner":
        """One that has learned nothing, and of the items knows what is `described`."""
        model = settings.model
        return cls(
            settings,
            slabs,
            Challenger.new(model, settings.trainer, device, described, settings.click),
            empty_rows(model.max_length, len(model.context)),
            {},
            Memory.of(settings.memory),
            first_blend(settings),
            Clicks.of(settings, {}),
            [key for key, _ in described.items] if described else (),
        )

    def _crown(self) -> int:
        """What the challenger is now is the champion, but for items that have expired, so many.

        Only here do rows change their meaning: none of them is shared with a champion or a
        checkpoint from before.
        """
        rows, before = self._kept(), self.items
        if rows is not None:
            self._challenger.keep(rows)
        self._champion_at = self._challenger.checkpoint()
        challenger = self._challenger
        self._champion = _Measure(
            challenger.frozen_copy(),
            challenger.vocabulary,
            self.blend,
            dict(self._asked_scores) if rows is None else {},
        )
        self._champion_fit = self._share_fit, self._tried
        self._since_champion: deque[Sequences] = deque(maxlen=_ROUNDS_KEPT)
        self._forgotten = 0  # sequences since the champion that are remembered no more
        return before - self.items

    def _kept(self) -> Int64s | None:
        """The rows of items that have not expired; None where all go on."""
        settings, challenger = self._items, self._challenger
        if settings.expire_after_s is None and self.items <= settings.max_rows:
            return None
        vocabulary, met = challenger.vocabulary, challenger.met.copy()
        # These are yet to be taught.
        for waiting in (self.held.item, self._retry.item):
            met[vocabulary.rows(waiting)] = self._latest_ms
        named = np.isin(vocabulary.keys, np.fromiter(self._named, np.int64, len(self._named)))
        rows = kept_rows(met, named, settings, self._latest_ms)
        return rows if len(rows) < len(vocabulary) else None

    def learn(self, batches: list[MicroBatch], *, hurry: bool = False) -> RoundReport:
        """Fine-tune on these micro-batches and move `trained_through` past them.

        In a `hurry`, because others wait, one pass with less replay has to do. Early stopping,
        which compares passes, then has no say; the gate still looks at what is to be published.
        """
        settings = self._settings
        self._asked_scores = {}
        epochs, ratio = settings.max_epochs, settings.replay.ratio
        if hurry:
            epochs, ratio = 1, min(ratio, settings.replay.hurried_ratio)
        replayable = dict(self.trained_through)  # the round's own events are no replay
        erasures = [one for batch in batches for one in batch.erasures]
        self._erase(erasures)
        fresh = [self._prepare(batch.without(erasures)) for batch in batches]
        labels = self._clicks.begin_round() if self._clicks else 0
        # What waits may be of hundreds of rounds: it is taught in portions.
        again = np.arange(len(self._retry)) < settings.max_round_events
        taught = join([self._retry.take(np.flatnonzero(again)), *fresh], self._length + 1)
        self._retry = self._retry.take(np.flatnonzero(~again))
        done = sum(int((~np.isin(batch.kind, self._shown)).sum()) for batch in batches)
        self._set_rates(max(done, int(taught.target.sum())))
        steps, diverged, skipped = [], False, 0
        before = self._challenger.savepoint()
        try:
            # What is turned down does not belong beside what stands before it.
            self._challenger.settle(np.where(taught.weight < 0, NO_KEY, taught.item))
            rows = np.unique(self._challenger.vocabulary.rows(taught.item))
            self._challenger.about_to_teach(
                torch.from_numpy(rows).to(self._challenger.model.device)
            )
            steps = self._fit(taught, replayable, epochs, ratio, before)
        except (NonFiniteError, LossSpikeError) as error:
            log.warning("round undone: %s", error)
            self._challenger.undo(before)
            diverged = True
            self._divergences += 1
            skipped = self._try_again(taught, self._divergences)
            self.given_up += skipped
            if skipped:
                self._usual = math.nan  # the stream itself may have changed
        else:
            self._remember(taught)
            if self._clicks:
                self._clicks.end_round()
            self.news = True
            self._divergences = self._divergences if len(self._retry) else 0
        finally:
            self._challenger.release(before)
        return RoundReport(
            batches=len(batches),
            events=sum(map(len, batches)),
            held_out=len(self.held),
            sequences=len(taught),
            labels=labels,
            step_s=tuple(seconds for _, seconds in steps),
            loss=_mean_loss(steps),
            diverged=diverged,
            skipped=skipped,
        )

    def describe(self, described: Described) -> None:
        """Let the challenger know items of the catalogue; the next version knows them too."""
        self._asked_scores = {}
        self._challenger.describe(described, self._champion_at)
        self._challenger.meet(described.keys, np.full(len(described.items), self._latest_ms))
        self.blend = replace(self.blend, temperature=self._temperature_now)
        self.news = True

    def name(self, items: Iterable[CatalogueItem]) -> None:
        """The catalogue names these items, or does so no more where they are withdrawn."""
        for item in items:
            if item.available:
                self._named.add(item.key)
            else:
                self._named.discard(item.key)

    def undescribed(self, keys: Int64s, digests: Int64s) -> Int64s:
        """The places of items that have no row yet, as many as there is room for, or of which
        something else is known than `digests` [keys, sources] tell."""
        challenger = self._challenger
        known = challenger.knows(keys)
        changed = known & (challenger.digests(keys) != digests).any(axis=1)
        # More would lose their rows at the next version, and be encoded again by each worker.
        room = max(self._items.max_rows - self.items, 0)
        return np.sort(np.append(np.flatnonzero(changed), np.flatnonzero(~known)[:room]))

    def _erase(self, erasures: Sequence[Erasure]) -> None:
        """Forget what is kept of users beside the weights."""
        if not erasures:
            return
        users = np.array([one.user for one in erasures], np.int64)
        self.held = self.held.without(users)
        self._recollections.forget_others(self.held)
        self._retry = self._retry.without(users)
        self._since_champion = deque(
            (taught.without(users) for taught in self._since_champion), maxlen=_ROUNDS_KEPT
        )
        if self._clicks:
            self._clicks.erase(users)

    def _prepare(self, batch: MicroBatch) -> Sequences:
        """Admit a micro-batch: vocabulary, holdout, offsets; give the sequences to train on."""
        self._challenger.learn_items(list(batch.item_ids))
        # A batch that was sent again may end before what the lineage holds already.
        advance(self.trained_through, batch.next_offsets)
        self.taught = joined(self.taught, taught_by(batch))
        if not len(batch):
            return empty_sequences(self._length + 1)
        self._latest_ms = max(self._latest_ms, latest_past(batch.timestamp))
        self._challenger.meet(batch.item, batch.timestamp)
        self._date_unknown()
        settings = self._settings.holdout
        turned_down = np.isin(batch.kind, self._negative)
        chosen = self._is_member(batch.user, batch.item, batch.timestamp)
        # What is turned down or not to be foretold is no question to a model.
        chosen &= (self._weighing.new(batch.kind) > 0) & ~np.isin(batch.kind, self._shown)
        before, times, codes = contexts(batch, self._slabs, batch.ordinal, self._length)
        owner = np.broadcast_to(batch.user[:, None], before.shape)
        # Whatever is a member may be held; a released one is missed as context, no more.
        clean = np.where(self._is_member(owner, before, times), 0, before)
        head = self._challenger.model.click
        if self._clicks and head:
            vocabulary = self._challenger.vocabulary
            self._clicks.admit(batch, before, clean, codes, head, vocabulary, self._memory)
        member = capped(chosen, batch.user, self.held.user, settings.max_user_rows)
        done = np.flatnonzero(~np.isin(batch.kind, self._shown))
        batch, member, before, clean = batch.take(done), member[done], before[done], clean[done]
        codes, taken = codes[done], np.flatnonzero(~turned_down[done])
        added = HoldoutRows(before, codes, batch.user, batch.item, batch.timestamp, batch.kind)
        self.held, released = admit(
            self.held,
            added.take(np.flatnonzero(member)),
            settings,
            self._latest_ms,
            self._settings.gate.min_rows,
        )
        if self._clicks and head:
            taught = batch.take(np.flatnonzero(~member))
            self._clicks.sort(taught, released, self._latest_ms, head, vocabulary)
        if self._memory is not None:
            self._remind(
                self._memory,
                batch.take(taken),
                member[taken],
                clean[taken],
                added.take(taken),
                released,
            )
        rows = self._released(released) + self._new(batch, member, clean, codes)
        return from_lists(rows, self._length + 1)

    def _is_member(self, user: Int64s, item: Int64s, time: Int64s) -> Bools:
        """Which events may be held out. With a click head all of a user with an item or none, as
        their labels are: an event tells another one's label, and a label an event."""
        if self._clicks:
            return self._clicks.is_member(user, item)
        return is_member(user, item, time, self._settings.holdout.fraction)

    def _date_unknown(self) -> None:
        """Items that were described before any event, or come from a version that did not say when
        they were met, count as met now."""
        met = self._challenger.met
        met[met == 0] = self._latest_ms

    def _remind(
        self,
        memory: Memory,
        batch: MicroBatch,
        member: Bools,
        before: Int64s,
        rows: HoldoutRows,
        freed: HoldoutRows,
    ) -> None:
        """Let the memory learn the events of a batch that are no `member` of the holdout, and what
        has left it. Of those held out, keep what it recalls just then."""
        ids = dict(batch.item_ids)
        for row, is_held in enumerate(member.tolist()):
            if is_held:
                self._recollections.ask(memory, rows.take(slice(row, row + 1)))
            else:
                key = ItemKey(int(batch.item[row]))
                memory.learn(key, ids[key], strip(before[row]))
        remind(memory, freed, self._challenger.vocabulary)
        self._recollections.forget_others(self.held)

    def recalled(self) -> list[Recollection]:
        """Of each held-out row, what the memory recalled before it knew anything that came after;
        nothing where the model ranks alone."""
        return self._recollections.of(self._memory, self.held)

    def _released(self, rows: HoldoutRows) -> list[tuple[Stretch, int]]:
        """What left the holdout, as sequences whose last event is the only target."""
        # Its own codes are not needed: nothing is foretold from it.
        none = np.zeros_like(rows.codes[:, :1])
        weight = self._weighing.new(rows.kind)[:, None]
        return [
            (stretch(context, codes, user).followed_by(Stretch(*last)), 1)
            for context, codes, user, *last in zip(
                rows.context,
                rows.codes,
                rows.user.tolist(),
                rows.item[:, None],
                none,
                weight,
                strict=True,
            )
            if context[0] != 0
        ]

    def _new(
        self, batch: MicroBatch, member: Bools, before: Int64s, codes: Int32s
    ) -> list[tuple[Stretch, int]]:
        """Windows over each user's events in a partition, without those held out. What was turned
        down has each a window of its own."""
        order = np.lexsort((batch.ordinal, batch.user, batch.partition))
        order = order[~member[order]]
        user, partition = batch.user[order], batch.partition[order]
        # Where the next user starts, or the same one's history in another partition.
        others = 1 + np.flatnonzero((user[1:] != user[:-1]) | (partition[1:] != partition[:-1]))
        rows: list[tuple[Stretch, int]] = []
        for every in np.split(order, others) if len(order) else []:
            one = every[-self._settings.max_user_events :]
            whose = int(batch.user[one[0]])
            past = stretch(before[one[0]], codes[one[0]], whose)
            own = Stretch(batch.item[one], batch.codes[one], self._weighing.new(batch.kind[one]))
            down = np.isin(batch.kind[one], self._negative)
            rows += windows_over(past, own.where(~down), self._length + 1)
            rows += [
                (stretch(before[at], codes[at], whose).followed_by(own.part(place, place + 1)), 1)
                for place, at in enumerate(one.tolist())
                if down[place]
            ]
        return [row for row in rows if len(row[0]) > 1]

    def _remember(self, taught: Sequences) -> None:
        """Keep what the challenger learned, to teach it again should the gate reject it."""
        if len(self._since_champion) == self._since_champion.maxlen:
            self._forgotten += len(self._since_champion[0])
        self._since_champion.append(taught)

    def _fit(
        self,
        taught: Sequences,
        replayable: Offsets,
        epochs: int,
        ratio: float,
        before: Savepoint,
    ) -> list[tuple[float, float]]:
        """Passes over the sequences until the holdout stops improving; the last one is kept, unless
        it is plainly worse than the best.

        The first pass is always made, so that every event is in the weights. Gives loss and
        seconds of each step.
        """
        stopping = EarlyStopping(self._settings.patience)
        best: Savepoint | None = None
        steps: list[tuple[float, float]] = []
        news = len(taught) or (self._clicks and self._clicks.steps())
        for made in range(epochs if news else 0):
            if made and stopping.since_best == 0:
                if best:
                    self._challenger.release(best)
                best = self._challenger.savepoint()
            steps += self._pass(taught, replayable, ratio)
            if not self._challenger.is_finite(before):
                raise NonFiniteError("a weight is not finite")
            self._expect(_mean_loss(steps))
            if epochs == 1:
                break
            stopping = stopping.saw(self._stopping_scores())
            if stopping.stop:
                break
        if best and not stopping.keeps:
            self._challenger.undo(best)
        return steps

    def _set_rates(self, events: int) -> None:
        """Rounds of few events are as many more where a stream is slow: each takes steps that are
        as much shorter (the linear scaling rule of Goyal et al., 2017). What did not pass is
        taught again more slowly beside that."""
        part = events / self._settings.full_round_events
        part = max(part, self._clicks.filled if self._clicks else 0.0)
        rate = min(part, 1.0) * self._slowdown
        self._challenger.set_learning_rates(
            self._settings.learning_rate * rate, self._settings.item_learning_rate * rate
        )

    def _expect(self, loss: float) -> None:
        """Raise LossSpikeError where a round's mean loss is far above the usual."""
        if math.isnan(loss):
            return
        # The candidates stand for all of these.
        guess = _UNEVEN + math.log(1 + len(self._challenger.taught))
        part = loss / guess
        if part > max(self._settings.max_loss_ratio * self._usual, _WORSE_THAN_A_GUESS):
            raise LossSpikeError(
                f"its loss is {part:.2f} of that of a guess, where {self._usual:.2f} is usual"
            )
        if math.isnan(self._usual):
            self._usual = part
        self._usual += (part - self._usual) * _NEWS

    def _pass(
        self, taught: Sequences, replayable: Offsets, ratio: float
    ) -> list[tuple[float, float]]:
        """One pass: shuffled batches of new sequences, each with `ratio` times as many replayed."""
        settings, replay = self._settings, self._settings.replay
        marks, anchor = self.held.marks(), self._anchor()
        steps = []
        order = self._shuffle.permutation(len(taught))
        portions: list[Int64s] = np.split(
            order, range(settings.batch_sequences, len(order), settings.batch_sequences)
        )
        clicks = self._click_portions(len(portions))
        for chosen, labelled in zip_longest(portions, clicks, fillvalue=None):
            chosen = order[:0] if chosen is None else chosen  # more labels than sequences
            old = max(round(ratio * len(chosen)), replay.min_sequences)
            new = taught.take(chosen)
            again = self._bounded(self._replayed(old, marks, replayable))
            mixed = [new, self._augmenter.copies(new), again]
            started_s = time.monotonic()
            batch = self._packed(join(mixed, self._length + 1), replayed=len(again))
            if not len(batch.item) and labelled is None:
                continue
            loss = train_step(
                self._challenger,
                batch,
                labelled,
                temperature=self._temperature_now,
                settings=settings,
                anchor=anchor,
            )
            steps.append((loss, time.monotonic() - started_s))
            self.on_step()
        return steps

    def _anchor(self) -> Anchor | None:
        """None where the settings ask for none, or the champion knows nothing yet."""
        keep, rows = self._settings.keep, len(self._champion.vocabulary)
        wanted = rows > 1 and (keep.distil or keep.l2)
        return Anchor(self._champion.model, rows, keep) if wanted else None

    def _replayed(self, count: int, marks: Int64s, through: Offsets) -> Sequences:
        """Older sequences, drawn or chosen as the settings say."""
        choice = self._settings.replay.choice
        if not isinstance(choice, HerdingReplay):
            return self._replay.draw(count, marks, through, self._latest_ms)
        pool = self._replay.draw(choice.of * count, marks, through, self._latest_ms)
        if len(pool) <= count:
            return pool
        # Of those that the champion tells apart no better than others, the first are chosen.
        pool = pool.take(self._shuffle.permutation(len(pool)))
        rows = self._champion.vocabulary.rows(pool.item[:, : self._length])
        with torch.inference_mode():
            states, _ = states_after(self._champion.model, rows, pool.codes[:, : self._length])
        return pool.take(herd(states.cpu().numpy(), count))

    def _bounded(self, drawn: Sequences) -> Sequences:
        """As many of them, by chance or as they were chosen, as have the events that a step may
        replay; one where each alone has more."""
        events, limit = (drawn.item != NO_KEY).sum(axis=1), self._settings.replay.max_events
        if events.sum() <= limit:
            return drawn
        order = np.flatnonzero(events <= limit)
        if not len(order):
            return drawn.take(np.arange(1))
        if not isinstance(self._settings.replay.choice, HerdingReplay):
            order = self._shuffle.permutation(order)
        return drawn.take(order[np.cumsum(events[order]) <= limit])

    def _click_portions(self, steps: int) -> Sequence[ClickBatch | None]:
        """What each of so many steps, or more, teaches the click head."""
        if self._clicks is None:
            return ()
        challenger = self._challenger
        steps = max(steps, self._clicks.steps())
        return self._clicks.portions(steps, challenger.vocabulary, challenger.model.device)

    def _packed(self, sequences: Sequences, *, replayed: int) -> Packed:
        model = self._challenger.model
        rows = self._challenger.vocabulary.rows(sequences.item)
        return pack(
            np.where(sequences.item == MASKED, BLOTTED, rows),
            sequences.target,
            self._length,
            model.device,
            together=model.backbone.packs,
            replayed=replayed,
            codes=sequences.codes,
            weight=sequences.weight,
        )

    @property
    def _temperature_now(self) -> float:
        return temperature_for(self.items, self._temperature)

    def _stopping_scores(self) -> Scores:
        """Of the newest held-out rows: NDCG@10 of the weights alone, as the memory is the same
        before and after a pass; and of labels what they would lose, below 0."""
        model, vocabulary = self._challenger.model, self._challenger.vocabulary
        newest = self.held.last(_STOPPING_ROWS)
        targets = evaluate_alone(model, vocabulary, newest, exclude_seen=self._exclude_seen)
        if self._clicks is None or model.click is None:
            return (targets,)
        return targets, -self._clicks.held_losses(model, model.click, vocabulary, _STOPPING_ROWS)

    def fit_blend(self) -> Float32s:
        """Mix as does best on the holdout; gives the NDCG@10 of each of its rows then.

        The mean over the last few times decides, since one holdout is small.
        """
        self.blend = replace(self.blend, temperature=self._temperature_now)
        fits = self._memory is not None and len(self.held) >= self._settings.gate.min_rows
        shares = SHARES if fits else (self.blend.share,)
        gains = evaluate(
            self._challenger.model,
            self._challenger.vocabulary,
            self.held,
            self.recalled(),
            temperature=self.blend.temperature,
            shares=shares,
            exclude_seen=self._exclude_seen,
        )  # [shares, rows]
        chosen = 0
        if fits and np.isfinite(gains).all():  # the gate refuses what is not a number
            rows = set(self.held.row_marks().tolist())
            self._share_fit = self._share_fit.tried(gains, len(rows - self._tried))
            self._tried = rows
            chosen = self._share_fit.best
            self.blend = replace(self.blend, share=SHARES[chosen])
        mixed: Float32s = gains[chosen]
        return mixed

    def resume_fit(self, trainer: Mapping[str, Tensor]) -> None:
        """Go on from how well each share did so far, as an `artifact` has it."""
        if self._memory is not None:
            self._share_fit = ShareFit.new(self._share_fit.setting, trainer)
            if self._share_fit.trials:
                self._tried = set(self.held.row_marks().tolist())
            self._champion_fit = self._share_fit, self._tried

    def judge(self) -> tuple[GateReport, int]:
        """Ask the gate and follow it, except for publishing, after which call `promoted`.

        Gives the report and the number of sequences given up.
        """
        self.news = False
        champion, challenger = self._scores_of(self._champion), self.fit_blend()
        report = judge(champion, challenger, self._settings.gate)
        for older in self._older_versions(champion):
            report = against_older(report, judge(older, challenger, self._settings.gate))
        if self._crowned_ndcg is not None:
            self.shift = report.champion - self._crowned_ndcg
        self._asked_ndcg = report.challenger
        self._asked_scores = dict(
            zip(self.held.row_marks().tolist(), challenger.tolist(), strict=True)
        )
        self._fit_rerank()
        skipped = 0
        if report.verdict is Verdict.REJECT:
            taught = join(list(self._since_champion), self._length + 1)
            skipped, self._forgotten = self._forgotten, 0
            if skipped:
                log.warning("gave up on %d sequences: too many rounds since a version", skipped)
            self._since_champion.clear()
            self._back_to_champion()
            self._rejections += 1
            skipped += self._try_again(taught, self._rejections)
        self.given_up += skipped
        return report, skipped

    def compare_with(self, pinned: Servable | None) -> None:
        """Let no challenger fall behind the version that is pinned, either."""
        self._pinned = None
        if pinned:
            self._pinned = _Measure(pinned.model, pinned.vocabulary, pinned.blend, {})

    def _older_versions(self, champion: Float32s) -> Iterator[Float32s]:
        """The scores of those that a challenger must not fall behind, beside the champion's."""
        if self._older is not self._champion:
            yield self._scores_of(self._older)
        if self._pinned:
            scores = self._scores_of(self._pinned)
            # Whoever pinned it may have done so because the champion is worse: that has to go on.
            if judge(scores, champion, self._settings.gate).verdict is not Verdict.REJECT:
                yield scores

    def _scores_of(self, version: _Measure) -> Float32s:
        """NDCG@10 of each row of the holdout."""
        marks, scores = self.held.row_marks().tolist(), version.scores
        new = np.array([place for place, mark in enumerate(marks) if mark not in scores], np.int64)
        recalled = self.recalled()
        found = evaluate(
            version.model,
            version.vocabulary,
            self.held.take(new),
            [recalled[place] for place in new.tolist()] if recalled else [],
            temperature=version.blend.temperature,
            shares=(version.blend.share,),
            exclude_seen=self._exclude_seen,
        )[0]
        scores |= zip((marks[place] for place in new.tolist()), found.tolist(), strict=True)
        for gone in scores.keys() - set(marks):
            del scores[gone]
        return np.array([scores[mark] for mark in marks], np.float32)

    def _fit_rerank(self) -> None:
        """Measure the click head on what is held out, and let it reorder as far as that helps."""
        head = self._challenger.model.click
        if self._clicks is None or head is None:
            return
        model, vocabulary = self._challenger.model, self._challenger.vocabulary
        clicks, recollections = self._clicks.held_clicks(self._memory)
        gains = reranked(
            model,
            head,
            vocabulary,
            clicks,
            recollections,
            self.blend,
            candidates=self._candidates,
            exclude_seen=self._exclude_seen,
        )
        weight = best_weight(gains, self._settings.gate)
        self.blend = replace(self.blend, rerank=weight, candidates=self._candidates)
        scores = self._clicks.scores(model, head, vocabulary)
        self.click_report = ClickReport(scores, self.blend.rerank)

    def promoted(self) -> int:
        """What `artifact` gave was published: it is the champion now. Gives the number of items
        that have expired with it."""
        only_describes = self.only_describes
        expired = self._crown()
        self.taught, self.given_up = (), 0
        if only_describes:
            return expired  # its weights are those that the gate has let through before
        self._promotions += 1
        if self._promotions >= self._settings.gate.older_every:
            self._measure_from_now()
        self._crowned_ndcg = self._asked_ndcg
        if self._clicks:
            self._clicks.promoted()
        self._rejections = 0
        self._slowdown = min(self._slowdown * 2, 1.0)
        return expired

    def _measure_from_now(self) -> None:
        """The champion is what later challengers must not fall behind."""
        self._older, self._promotions = self._champion, 0

    def _let_older_go(self) -> None:
        """What was given up may be out of reach of what older versions knew: these must not hold up
        all to come."""
        self._measure_from_now()
        self._pinned = None

    def _back_to_champion(self) -> None:
        """Its weights and its mixture: what others were mixed with says nothing of it."""
        self._challenger.restore(self._champion_at)
        self.blend, (self._share_fit, self._tried) = self._champion.blend, self._champion_fit
        if self._clicks:
            self._clicks.undone()

    def _try_again(self, taught: Sequences, times: int) -> int:
        """Teach the same in the next round at half the rate, up to a limit of rounds that failed,
        so many `times` in a row by now."""
        self._slowdown = max(self._slowdown / 2, _SLOWEST)
        if times < self._settings.max_rejections:
            # A diverged round may be waiting for its second chance already.
            self._retry = join([self._retry, taught], self._length + 1)
            return 0
        log.warning("gave up on %d sequences: they failed %d times", len(taught), times)
        self._rejections = self._divergences = 0
        if self._clicks:
            self._clicks.give_up()
        self._let_older_go()
        return len(taught)

    def settle(self) -> int:
        """Give up what no gate has let through, and go back to the champion's weights, which may
        then be published as trained through all that was learned. Gives the sequences given up."""
        waiting = [*self._since_champion, self._retry]
        skipped = self._forgotten + sum(len(sequences) for sequences in waiting)
        self.given_up += skipped
        self._forgotten, self._rejections, self._divergences = 0, 0, 0
        self._since_champion.clear()
        self._retry = empty_sequences(self._length + 1)
        self._back_to_champion()
        if self._clicks:
            self._clicks.give_up()
        self._asked_ndcg, self._asked_scores = self._crowned_ndcg, {}
        self._let_older_go()
        self.news = False
        return skipped

    @property
    def has_news(self) -> bool:
        """Whether the gate might say something else than when it was last asked. While events wait
        to be taught again, `trained_through` is past them: nothing is published."""
        return self.news and not len(self._retry)

    @property
    def only_describes(self) -> bool:
        """Whether the challenger is the champion but for texts or vectors of items: there was no
        round since."""
        has_rounds = bool(self.taught or self._since_champion)
        return not has_rounds and self._challenger.model.tower is not None

    @property
    def is_blank(self) -> bool:
        """Whether nothing is known but what a catalogue may say of the items."""
        return self.only_describes and len(self._champion.vocabulary) <= 1

    @property
    def owes(self) -> bool:
        """Whether something has to be taught again, also where nothing new comes."""
        return bool(len(self._retry) or (self._clicks and self._clicks.steps()))

    @property
    def shape(self) -> dict[str, Any]:
        """What a servable is rebuilt from beside the weights."""
        return {**self._challenger.model.shape, "blend": asdict(self.blend)}

    @property
    def items(self) -> int:
        return self._challenger.items

    def servable(self, version: Version) -> Servable:
        """The challenger, as it would serve."""
        served = self._served(self._kept())
        return build_servable(self.shape, served, version, 0, self.trained_through)

    def _served(self, rows: Int64s | None) -> Artifact:
        """Only what serving needs, of `rows` or all."""
        vocabulary = self._challenger.vocabulary
        return Artifact(
            weights=self._challenger.weights(rows),
            frozen=self._challenger.model.frozen,
            vocabulary=(vocabulary if rows is None else vocabulary.kept(rows)).ids,
            trainer={},
            described=self._challenger.described(rows),
        )

    def artifact(self) -> Artifact:
        """The challenger as it would be published: without the items that have expired."""
        rows = self._kept()
        return replace(
            self._served(rows),
            trainer={
                **self._challenger.optimizer_tensors(rows),
                **self.held.tensors(features=self._features),
                **(self._memory.tensors() if self._memory else {}),
                **(self._clicks.tensors() if self._clicks else {}),
                **self._share_fit.tensors(),
            },
        )


def _mean_loss(steps: Sequence[tuple[float, float]]) -> float:
    """In nats; NaN where no step foretold a next item."""
    losses = [loss for loss, _ in steps if not math.isnan(loss)]
    return statistics.fmean(losses) if losses else math.nan
