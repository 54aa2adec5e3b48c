"""What the trainer keeps for the click head: labels that wait, are held out, or taught again."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from service.domain import Bools, Float32s, Int32s, Int64s, MicroBatch, earlier
from service.model.click_head import ClickHead, echoes
from service.model.click_metrics import ClickScores, click_scores, is_click
from service.model.clicks import foretold
from service.model.inference import compact_with
from service.model.memory import Memory, Recollection
from service.model.recommender import Recommender
from service.model.vocabulary import NO_ROW, Vocabulary
from service.settings import ClickLoss, ClickSettings, Settings
from service.state.features import keys_of
from service.trainer.clock import latest_past
from service.trainer.holdout import HoldoutRows, are_released, capped, is_member
from service.trainer.labels import LabelledRows, followed, labelled_from, no_rows, pairs
from service.trainer.recollections import Recollections
from service.trainer.step import ClickBatch

# Rows remembered in case a challenger is rejected; past this the oldest are given up.
_KEPT_ROWS = 100_000
# Rows that wait for an act; past this the oldest count as no click early. At a length of 50 events
# 40 MB, which are stored with every version.
_WAITING_ROWS = 100_000
_TOLD = "click.told"


class _Told:
    """Events that are taught, and tell what came of what their users were shown before."""

    def __init__(self, pair: Int64s, time: Int64s) -> None:
        order = np.argsort(time, kind="stable")
        self._pair, first = np.unique(pair[order][::-1], return_index=True)
        self._time = time[order][::-1][first]  # the latest of each pair

    def of(self, rows: LabelledRows) -> Bools:
        """Whether one of them is of the same user and item, and not before the row."""
        if not len(self._pair):
            return np.zeros(len(rows), np.bool_)
        pair = _pairs(rows)
        place = np.searchsorted(self._pair, pair).clip(max=len(self._pair) - 1)
        told: Bools = (self._pair[place] == pair) & (rows.time <= self._time[place])
        return told


class Clicks:
    """Labels of one trainer, in the order in which they came."""

    def __init__(self, settings: Settings, tensors: dict[str, Tensor]) -> None:
        """`tensors` is what `tensors` of a predecessor gave, or nothing."""
        self._settings = settings.click
        self._holdout = settings.trainer.holdout
        # Of one user: in what is held out as large a part as of the next-item targets, and in what
        # a micro-batch teaches.
        window = max(settings.click.window_rows, self._holdout.window_rows)
        self._max_user_held = window * self._holdout.max_user_rows // self._holdout.window_rows
        self._least_held = settings.trainer.gate.min_rows
        self._max_user_taught = settings.trainer.max_user_events
        self._kinds = settings.events.codes(settings.click.kinds)
        # What may tell a label: of a value nobody knows which kinds come of it.
        events = settings.events
        others = {*events.kinds} - {*settings.click.kinds, *events.not_done}
        self._acts = events.codes(settings.click.followed_by or sorted(others))
        self._negative = events.codes(events.negative)
        length = settings.model.max_length
        self._features = keys_of(settings.model.context)
        self._none = no_rows(length, len(self._features))
        self._waiting = self._none
        # Only for acts, or for more numbers: of those that waited before, the clicks came.
        if settings.click.followed_by or settings.click.loss is ClickLoss.SQUARED:
            self._waiting = labelled_from(tensors, "click.waiting", length, self._features)
        self.held = labelled_from(tensors, "click.held", length, self._features)
        self._fresh = self._none  # to be taught in the round at hand
        self._again = self._none  # these and earlier ones, which are taught beside them
        self._past = self._none
        self._since_champion = self._none  # of the past, what no version has learned
        self._recollections = Recollections()  # of what is held or may be, when it was shown
        # Marks of what waits, and may not be held out any more.
        self._told = {*tensors[_TOLD].tolist()} if _TOLD in tensors else set()
        self._random = np.random.default_rng(settings.model.seed)
        # By what was read of each partition since the start: one may be hours behind another.
        self._now: dict[int, int] = {}

    @classmethod
    def of(cls, settings: Settings, tensors: dict[str, Tensor]) -> "Clicks | None":
        """None where the settings do without."""
        return cls(settings, tensors) if settings.click.enabled else None

    def admit(
        self,
        batch: MicroBatch,
        before: Int64s,
        clean: Int64s,
        codes: Int32s,
        head: ClickHead,
        vocabulary: Vocabulary,
        memory: Memory | None,
    ) -> None:
        """Take in a micro-batch, whose events have the histories `before` [rows, length] with their
        `codes` [rows, length, features], and `clean` without what may be held out; let `head`
        count what it tells of the items, and ask `memory`, which knows nothing of it yet. Then
        call `sort`.
        """
        rows = np.flatnonzero(np.isin(batch.kind, self._kinds))
        item = vocabulary.rows(batch.item)
        shown = torch.from_numpy(item[rows]).to(head.tally.device)
        standing = head.standing(shown).cpu().numpy()  # before the batch: it holds what came of it
        # What may be held out is not counted: the head is asked about it.
        counted = ~self.is_member(batch.user, batch.item)
        head.meet(item[counted], self._settings.half_life_events)
        held = ~counted[rows]
        came = LabelledRows(
            np.where(held[:, None], before[rows], clean[rows]),
            codes[rows],
            batch.user[rows],
            batch.item[rows],
            batch.timestamp[rows],
            batch.kind[rows],
            batch.partition[rows],
            label_of(batch.value[rows], self._settings),
            standing,
        )
        if self._settings.followed_by:
            came = replace(came, label=np.full(len(came), np.nan, np.float32))
        else:
            came = came.take(np.flatnonzero(np.isfinite(came.label)))
        self._waiting = self._waiting.joined(came)
        for partition in np.unique(batch.partition).tolist():
            now_ms = latest_past(batch.timestamp[batch.partition == partition])
            self._now[partition] = max(now_ms, self._now.get(partition, 0))
        self._follow(batch)
        self._recollections.ask(memory, self._members(came))

    def _follow(self, batch: MicroBatch) -> None:
        """Let what waits know that an act has followed it."""
        if self._settings.followed_by:
            acts = batch.take(np.flatnonzero(np.isin(batch.kind, self._acts)))
            waiting = self._waiting
            within_ms = self._settings.within_s * 1000
            clicked = followed(
                (waiting.user, waiting.item, waiting.time),
                (acts.user, acts.item, acts.timestamp),
                within_ms,
            )
            waiting.label[clicked] = 1.0

    def sort(
        self,
        batch: MicroBatch,
        freed: HoldoutRows,
        now_ms: int,
        head: ClickHead,
        vocabulary: Vocabulary,
    ) -> None:
        """Find out which labels are known by now, and hold out or teach these.

        `batch` are the events of the micro-batch that are taught as targets, and `freed` those that
        are held out as targets no more. A label that these tell is held out no more either; nor
        is, once `freed` tell one, what was shown before it: else silence would stay for longer
        than clicks.
        """
        # What turns an item down is no target of the holdout.
        tell = batch.take(np.flatnonzero(np.isin(batch.kind, (*self._acts, *self._negative))))
        freed = freed.take(np.flatnonzero(np.isin(freed.kind, self._acts)))
        at_once = _Told(_pairs(tell), tell.timestamp)
        later = _Told(_pairs(freed), freed.time)
        known = self._known(head, at_once, later)
        head.begin(known.label)
        known = replace(known, label=head.within_reach(known.label))
        # Of one user no more than so many rows are held, and of what more comes the newest taught.
        member = self.is_member(known.user, known.item)
        told = np.isin(known.marks(), np.fromiter(self._told, np.int64, len(self._told)))
        member &= ~told & ~at_once.of(known) & ~later.of(known)
        self._told &= set(self._waiting.marks().tolist()) if self._told else set()
        member = capped(member, known.user, self.held.user, self._max_user_held)
        held = self.held.joined(known.take(np.flatnonzero(member)))
        out = are_released(
            held.time, self._settings.window_rows, self._holdout.max_age_s, now_ms, self._least_held
        )
        out |= at_once.of(held)
        out[: np.flatnonzero(later.of(held)).max(initial=-1) + 1] = True
        self.held = held.take(np.flatnonzero(~out))
        taught = known.take(np.flatnonzero(~member)).joined(held.take(np.flatnonzero(out)))
        newer = earlier(taught.user[::-1])[::-1]
        taught = taught.take(np.flatnonzero(newer < self._max_user_taught))
        self._fresh = self._fresh.joined(taught)
        self._recollections.forget_others(self.held, self._members(self._waiting))
        head.hear(vocabulary.rows(taught.item), taught.label)

    def is_member(self, user: Int64s, item: Int64s) -> Bools:
        """All events of a user with an item or none: their labels often come from one act."""
        return is_member(user, item, np.zeros_like(user), self._holdout.fraction)

    def _known(self, head: ClickHead, *told: "_Told") -> LabelledRows:
        """What waits no more: its label is known, or is a click that may not be held out since it
        was `told`. Numbers wait until there are enough for the `head` to begin with."""
        waiting = self._waiting
        is_told = np.any([one.of(waiting) for one in told], axis=0)
        over = np.ones(len(waiting), np.bool_)
        if self._settings.followed_by:
            partitions, place = np.unique(waiting.partition, return_inverse=True)
            now = np.array([self._now.get(one, 0) for one in partitions.tolist()], np.int64)
            over = are_released(waiting.time, _WAITING_ROWS, self._settings.within_s, now[place])
            over |= is_told & (waiting.label > 0) & self.is_member(waiting.user, waiting.item)
        elif self._settings.loss is ClickLoss.SQUARED:
            over[:] = head.begin(waiting.label)
        # A refusal does not end the waiting: a click may follow it.
        self._told |= set(waiting.take(np.flatnonzero(is_told & ~over)).marks().tolist())
        self._waiting = waiting.take(np.flatnonzero(~over))
        known = waiting.take(np.flatnonzero(over))
        return replace(known, label=np.nan_to_num(known.label))

    def _members(self, rows: LabelledRows) -> LabelledRows:
        return rows.take(np.flatnonzero(self.is_member(rows.user, rows.item)))

    def erase(self, users: Int64s) -> None:
        """Forget all labels of these users."""
        self._waiting, self.held = self._waiting.without(users), self.held.without(users)
        self._fresh, self._past = self._fresh.without(users), self._past.without(users)
        self._again = self._again.without(users)
        self._since_champion = self._since_champion.without(users)
        self._recollections.forget_others(self.held, self._members(self._waiting))

    def begin_round(self) -> int:
        """Labels that are to be taught in this round for the first time; from then on they may also
        be taught again."""
        self._again = self._past.joined(self._fresh).last(self._settings.replay_rows)
        return len(self._fresh)

    def end_round(self) -> None:
        """The weights have learned what was fresh. Where they have not, the next round does."""
        self._since_champion = self._since_champion.joined(self._fresh).last(_KEPT_ROWS)
        self._fresh, self._past = self._none, self._again

    def promoted(self) -> None:
        """A version has what was learned."""
        self._since_champion = self._none

    def undone(self) -> None:
        """The weights are the champion's again: teach in the next round what they do not know."""
        untaught, self._since_champion = self._since_champion, self._none
        self._past = self._past.take(slice(0, max(len(self._past) - len(untaught), 0)))
        self._fresh = untaught.joined(self._fresh)

    def give_up(self) -> None:
        """Teach no more what the weights do not know."""
        self._fresh = self._none

    @property
    def filled(self) -> float:
        """How many steps the new labels fill."""
        return len(self._fresh) / (self._settings.batch_rows // 2)

    def steps(self) -> int:
        """In which all new labels are taught once."""
        return math.ceil(self.filled)

    def portions(
        self, steps: int, vocabulary: Vocabulary, device: torch.device
    ) -> Sequence[ClickBatch | None]:
        """New labels, spread over so many steps, with old ones beside them."""
        order = self._random.permutation(len(self._fresh))
        return [
            self._portion(self._fresh.take(chosen), vocabulary, device)
            for chosen in np.array_split(order, max(steps, 1))
        ]

    def _portion(
        self, fresh: LabelledRows, vocabulary: Vocabulary, device: torch.device
    ) -> ClickBatch | None:
        again = min(self._settings.batch_rows - len(fresh), len(self._again))
        rows = fresh.joined(self._again.take(self._random.permutation(len(self._again))[:again]))
        # Of items that have expired since there is no vector to be taught.
        rows = rows.take(np.flatnonzero(vocabulary.rows(rows.item) != NO_ROW))
        if not len(rows):
            return None
        context, lengths, codes = compact_with(vocabulary.rows(rows.context), rows.codes)
        echo = echoes(rows.context, rows.item[:, None]).squeeze(1)
        signs = np.concatenate([echo, rows.standing], axis=1)
        columns = (context, lengths, vocabulary.rows(rows.item), signs, rows.label, codes)
        return ClickBatch(
            self._settings.weight,
            *(torch.from_numpy(np.ascontiguousarray(one)).to(device) for one in columns),
        )

    def scores(self, model: Recommender, head: ClickHead, vocabulary: Vocabulary) -> ClickScores:
        """Of the head, over the labels that are held out."""
        expected = _expected(model, head, vocabulary, self.held)
        return click_scores(expected, self.held.label, self._settings)

    def held_losses(
        self, model: Recommender, head: ClickHead, vocabulary: Vocabulary, rows: int
    ) -> Float32s:
        """What a step would count for each of the newest held-out labels, so many at most."""
        held = self.held.last(rows)
        expected = _expected(model, head, vocabulary, held)
        return self._settings.weight * head.losses_of(expected, held.label)

    def held_clicks(self, memory: Memory | None) -> tuple[LabelledRows, list[Recollection]]:
        """The held-out rows that were clicks, and what the memory recalled for each before it was
        shown; of what was held before a restart, what it recalls first after it."""
        clicks = self.held.take(np.flatnonzero(is_click(self.held.label, self._settings)))
        return clicks, self._recollections.of(memory, clicks)

    def tensors(self) -> dict[str, Tensor]:
        return {
            **self._waiting.tensors("click.waiting", self._features),
            **self.held.tensors("click.held", self._features),
            _TOLD: torch.tensor(sorted(self._told), dtype=torch.int64),
        }


def _expected(
    model: Recommender, head: ClickHead, vocabulary: Vocabulary, rows: LabelledRows
) -> Float32s:
    """As `foretold`, with how each item stood when it was shown."""
    return foretold(model, head, vocabulary, rows.context, rows.item, rows.codes, rows.standing)


def _pairs(rows: HoldoutRows | MicroBatch) -> Int64s:
    return pairs(rows.user, rows.item)


def label_of(value: Float32s, settings: ClickSettings) -> Float32s:
    """Labels from values; NaN where an event has none."""
    if settings.loss is ClickLoss.SQUARED:
        return value
    label: Float32s = np.where(np.isnan(value), np.nan, value >= settings.positive_from)
    return label.astype(np.float32)
