"""The learning loop: one round of micro-batches at a time.

A round admits new items, moves its share of events into the rolling holdout, fine-tunes the
challenger on the rest with replayed histories beside them, and keeps the best pass. The gate
is asked separately, between rounds. An event with a history before it is a new target in one
round: the one that brings it, or the one in which it leaves the holdout. What a rejected or
diverged challenger had learned is taught again, more slowly, to the one that follows.
"""

import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from service.domain import (
    Bools,
    Float32s,
    Int64s,
    ItemKey,
    MicroBatch,
    Offset,
    Offsets,
    Partition,
)
from service.errors import NonFiniteError
from service.model.item_tower import Described
from service.model.memory import Memory
from service.model.mixture import Blend
from service.registry.artifact import Artifact
from service.settings import Settings
from service.trainer.challenger import Challenger, Checkpoint
from service.trainer.early_stopping import EarlyStopping
from service.trainer.evaluation import evaluate
from service.trainer.gate import GateReport, Verdict, judge
from service.trainer.holdout import HoldoutRows, admit, is_member
from service.trainer.packing import Packed, pack
from service.trainer.replay import Replay
from service.trainer.sequences import (
    Sequences,
    Slabs,
    contexts,
    empty_sequences,
    from_lists,
    join,
    strip,
    windows_over,
)
from service.trainer.step import train_step

log = logging.getLogger(__name__)

# Rows of the holdout, newest first, that early stopping looks at; the gate looks at all.
_STOPPING_ROWS = 256
# Shares of the model that are tried on the holdout, how much the last trial counts beside those
# before it, and the NDCG that a share has to gain for each square of its distance from the setting.
_SHARES = tuple(tenth / 10 for tenth in range(11))
_NEWS = 0.3
_PULL = 0.01
_SLOWEST = 1 / 64  # of the learning rate, after rejections
# Rounds remembered in case the challenger is rejected: at 500 sequences a round about 100 MB.
# The oldest make room; if the challenger is rejected after that, they are given up.
_ROUNDS_KEPT = 500


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What a round did. Sent to the parent, which owns the metrics."""

    batches: int
    events: int
    held_out: int  # rows in the holdout now
    sequences: int
    step_s: tuple[float, ...]  # of each optimizer step; empty when the round was undone
    loss: float  # mean, nats; NaN without a step
    diverged: bool
    skipped: int  # sequences given up


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
    ) -> None:
        """`memory` has learned what is before `trained_through`, except for what is held;
        None where the model ranks alone. `blend` is the champion's."""
        self._settings = settings.trainer
        self._prior_share = settings.memory.model_share
        self._memory = memory
        self.blend = blend  # of the challenger, fitted each time the gate is asked
        self._by_share: Float32s | None = None  # [shares] mean NDCG@10, the last trials foremost
        self._temperature = settings.model.temperature
        self._exclude_seen = settings.scorer.exclude_seen
        self._shown = settings.events.codes(settings.events.shown)
        self._length = settings.model.max_length
        self._slabs = slabs
        self._challenger = challenger
        self.held = held
        self.trained_through = trained_through
        self._replay = Replay(
            slabs, self._length + 1, settings.model.seed, settings.trainer.replay.recency
        )
        self._shuffle = np.random.default_rng(settings.model.seed)
        self._latest_ms = int(held.time.max(initial=0))
        self._retry = empty_sequences(self._length + 1)
        self._rejections = 0
        self._slowdown = 1.0
        # Whether anything was learned since the gate was last asked: it would answer the same.
        self.has_news = False
        self._crown()

    def _crown(self) -> None:
        """What the challenger is now is the champion."""
        self._champion_at = self._challenger.checkpoint()
        self._champion = self._challenger.frozen_copy()
        self._champion_vocabulary = self._challenger.vocabulary
        self._champion_blend = self.blend
        self._since_champion: deque[Sequences] = deque(maxlen=_ROUNDS_KEPT)
        self._forgotten = 0  # sequences since the champion that are remembered no more

    def learn(self, batches: list[MicroBatch], *, hurry: bool = False) -> RoundReport:
        """Fine-tune on these micro-batches and move `trained_through` past them.

        In a `hurry`, because others wait, one pass has to do. Early stopping, which compares
        passes, then has no say; the gate still looks at whatever is to be published.
        """
        epochs = 1 if hurry else self._settings.max_epochs
        replayable = dict(self.trained_through)  # the round's own events are no replay
        fresh = [self._prepare(batch) for batch in batches]
        taught = join([self._retry, *fresh], self._length + 1)
        self._retry = empty_sequences(self._length + 1)
        steps, diverged, skipped = [], False, 0
        before = self._challenger.checkpoint()
        try:
            steps = self._fit(taught, replayable, epochs)
        except NonFiniteError as error:
            log.warning("round undone: %s", error)
            self._challenger.restore(before)
            diverged = True
            # `trained_through` is past events that wait to be taught again: publish nothing now.
            self.has_news = False
            skipped = self._try_again(taught)
        else:
            self._remember(taught)
            self.has_news = True
        return RoundReport(
            batches=len(batches),
            events=sum(map(len, batches)),
            held_out=len(self.held),
            sequences=len(taught),
            step_s=tuple(seconds for _, seconds in steps),
            loss=statistics.fmean(loss for loss, _ in steps) if steps else math.nan,
            diverged=diverged,
            skipped=skipped,
        )

    def describe(self, described: Described) -> None:
        """Let the challenger know items of the catalogue; the next version knows them too."""
        self._challenger.describe(described)
        self.has_news = True

    def undescribed(self, keys: Int64s, digests: Int64s) -> Int64s:
        """The places of items that have no row yet, or of which something else is known than
        `digests` [keys, sources] tell."""
        challenger = self._challenger
        same = (challenger.digests(keys) == digests).all(axis=1)
        return np.flatnonzero(~same | ~challenger.knows(keys))

    def _prepare(self, batch: MicroBatch) -> Sequences:
        """Admit a micro-batch: vocabulary, holdout, offsets; give the sequences to train on."""
        self._challenger.learn_items(list(batch.item_ids))
        for partition, offset in batch.next_offsets.items():
            # A batch that was sent again may end before what the lineage holds already.
            known = self.trained_through.get(partition, Offset(0))
            self.trained_through[partition] = max(offset, known)
        if not len(batch):
            return empty_sequences(self._length + 1)
        self._latest_ms = max(self._latest_ms, int(batch.timestamp.max()))
        batch = batch.take(np.flatnonzero(~np.isin(batch.kind, self._shown)))
        settings = self._settings.holdout
        member = is_member(batch.user, batch.item, batch.timestamp, settings.fraction)
        before, times = contexts(batch, self._slabs, batch.ordinal, self._length)
        added = HoldoutRows(before, batch.user, batch.item, batch.timestamp)
        self.held, released = admit(
            self.held, added.take(np.flatnonzero(member)), settings, self._latest_ms
        )
        owner = np.broadcast_to(batch.user[:, None], before.shape)
        # Whatever is a member may be held; a released one is missed as context, no more.
        before = np.where(is_member(owner, before, times, settings.fraction), 0, before)
        if self._memory is not None:
            self._remind(self._memory, batch, np.flatnonzero(~member), before, released)
        rows = _released(released) + self._new(batch, member, before)
        return from_lists(rows, self._length + 1)

    def _remind(
        self, memory: Memory, batch: MicroBatch, rows: Int64s, before: Int64s, freed: HoldoutRows
    ) -> None:
        """Let the memory learn `rows` of a batch, and what has left the holdout."""
        ids = dict(batch.item_ids)
        for row in rows.tolist():
            key = ItemKey(int(batch.item[row]))
            memory.learn(key, ids[key], strip(before[row]))
        vocabulary = self._challenger.vocabulary
        names = [vocabulary.ids[row] for row in vocabulary.rows(freed.item).tolist()]
        for item, name, context in zip(freed.item.tolist(), names, freed.context, strict=True):
            memory.learn(ItemKey(item), name, strip(context))

    def _new(self, batch: MicroBatch, member: Bools, before: Int64s) -> list[tuple[Int64s, int]]:
        """Windows over each user's events in a partition, without those held out."""
        order = np.lexsort((batch.ordinal, batch.user, batch.partition))
        order = order[~member[order]]
        user, partition = batch.user[order], batch.partition[order]
        # Where the next user starts, or the same one's history in another partition.
        others = 1 + np.flatnonzero((user[1:] != user[:-1]) | (partition[1:] != partition[:-1]))
        rows: list[tuple[Int64s, int]] = []
        for one in np.split(order, others) if len(order) else []:
            rows += windows_over(strip(before[one[0]]), batch.item[one], self._length + 1)
        return [row for row in rows if len(row[0]) > 1]

    def _remember(self, taught: Sequences) -> None:
        """Keep what the challenger learned, to teach it again should the gate reject it."""
        if len(self._since_champion) == self._since_champion.maxlen:
            self._forgotten += len(self._since_champion[0])
        self._since_champion.append(taught)

    def _fit(
        self, taught: Sequences, replayable: Offsets, epochs: int
    ) -> list[tuple[float, float]]:
        """Passes over the sequences until the holdout stops improving; keep the best one.

        The first pass is always made, so that every event is in the weights. Gives loss and
        seconds of each step.
        """
        self._challenger.set_learning_rates(
            self._settings.learning_rate * self._slowdown,
            self._settings.item_learning_rate * self._slowdown,
        )
        stopping = EarlyStopping(self._settings.patience)
        best: Checkpoint | None = None
        steps: list[tuple[float, float]] = []
        for _ in range(epochs if len(taught) else 0):
            steps += self._pass(taught, replayable)
            if not self._challenger.is_finite():
                raise NonFiniteError("a weight is not finite")
            if epochs == 1:
                break
            stopping = stopping.saw(self._stopping_score())
            if stopping.improved:
                best = self._challenger.checkpoint()
            if stopping.stop:
                break
        if best and not stopping.improved:
            self._challenger.restore(best)
        return steps

    def _pass(self, taught: Sequences, replayable: Offsets) -> list[tuple[float, float]]:
        """One pass: shuffled batches of new sequences, each with replayed ones beside it."""
        settings, replay = self._settings, self._settings.replay
        marks = self.held.marks()
        steps = []
        order = self._shuffle.permutation(len(taught))
        for chosen in np.split(
            order, range(settings.batch_sequences, len(order), settings.batch_sequences)
        ):
            old = max(round(replay.ratio * len(chosen)), replay.min_sequences)
            mixed = [taught.take(chosen), self._replay.draw(old, marks, replayable)]
            started_s = time.monotonic()
            batch = self._packed(join(mixed, self._length + 1))
            if not len(batch.item):
                continue
            loss = train_step(
                self._challenger, batch, temperature=self._temperature, settings=settings
            )
            steps.append((loss, time.monotonic() - started_s))
        return steps

    def _packed(self, sequences: Sequences) -> Packed:
        model = self._challenger.model
        return pack(
            self._challenger.vocabulary.rows(sequences.item),
            sequences.target,
            self._length,
            model.device,
            together=model.backbone.packs,
        )

    def _stopping_score(self) -> float:
        """Of the weights alone: the memory is the same before and after a pass."""
        newest = self.held.take(slice(-_STOPPING_ROWS, None))
        return float(self._evaluate(newest, None, (1.0,)).mean()) if len(newest) else 0.0

    def _evaluate(
        self, held: HoldoutRows, memory: Memory | None, shares: Sequence[float]
    ) -> Float32s:
        return evaluate(
            self._challenger.model,
            self._challenger.vocabulary,
            held,
            memory,
            temperature=self.blend.temperature,
            shares=shares,
            exclude_seen=self._exclude_seen,
        )

    def fit_blend(self) -> Float32s:
        """Mix as does best on the holdout; gives the NDCG@10 of each of its rows then.

        The mean over the last few times decides, since one holdout is small.
        """
        fits = self._memory is not None and len(self.held) >= self._settings.gate.min_rows
        shares = _SHARES if fits else (self.blend.share,)
        gains = self._evaluate(self.held, self._memory, shares)  # [shares, rows]
        chosen = 0
        if fits and np.isfinite(gains).all():  # the gate refuses what is not a number
            now = gains.mean(axis=1)  # [shares]
            self._by_share = (
                now if self._by_share is None else self._by_share + _NEWS * (now - self._by_share)
            )
            pull = _PULL * (np.array(_SHARES) - self._prior_share) ** 2
            chosen = int((self._by_share - pull).argmax())
            self.blend = replace(self.blend, share=_SHARES[chosen])
        mixed: Float32s = gains[chosen]
        return mixed

    def judge(self) -> tuple[GateReport, int]:
        """Ask the gate and follow it, except for publishing, after which call `promoted`.

        Gives the report and the number of sequences given up.
        """
        self.has_news = False
        champion = evaluate(
            self._champion,
            self._champion_vocabulary,
            self.held,
            self._memory,
            temperature=self._champion_blend.temperature,
            shares=(self._champion_blend.share,),
            exclude_seen=self._exclude_seen,
        )[0]
        report = judge(champion, self.fit_blend(), self._settings.gate)
        skipped = 0
        if report.verdict is Verdict.REJECT:
            taught = join(list(self._since_champion), self._length + 1)
            skipped, self._forgotten = self._forgotten, 0
            if skipped:
                log.warning("gave up on %d sequences: too many rounds since a version", skipped)
            self._since_champion.clear()
            self._challenger.restore(self._champion_at)
            skipped += self._try_again(taught)
        return report, skipped

    def promoted(self) -> None:
        """The challenger was published: it is the champion now."""
        self._crown()
        self._rejections = 0
        self._slowdown = min(self._slowdown * 2, 1.0)

    def _try_again(self, taught: Sequences) -> int:
        """Teach the same in the next round at half the rate, up to a limit of rounds."""
        self._rejections += 1
        self._slowdown = max(self._slowdown / 2, _SLOWEST)
        if self._rejections < self._settings.max_rejections:
            # A diverged round may be waiting for its second chance already.
            self._retry = join([self._retry, taught], self._length + 1)
            return 0
        log.warning("gave up on %d sequences after %d rejections", len(taught), self._rejections)
        self._rejections = 0
        return len(taught)

    @property
    def shape(self) -> dict[str, Any]:
        """What a servable is rebuilt from beside the weights."""
        return {**self._challenger.model.shape, "blend": asdict(self.blend)}

    @property
    def items(self) -> int:
        return self._challenger.items

    def artifact(self) -> Artifact:
        """The challenger as it would be published."""
        return Artifact(
            weights=self._challenger.weights(),
            frozen=self._challenger.model.frozen,
            vocabulary=self._challenger.vocabulary.ids,
            trainer={
                **self._challenger.optimizer_tensors(),
                **self.held.tensors(),
                **(self._memory.tensors() if self._memory else {}),
            },
            described=self._challenger.described(),
        )


def _released(rows: HoldoutRows) -> list[tuple[Int64s, int]]:
    """What left the holdout, as sequences whose last event is the only target."""
    return [
        (np.append(strip(context), item), 1)
        for context, item in zip(rows.context, rows.item, strict=True)
        if context[0] != 0
    ]
