"""What should be, computed from the events topic alone, held against what was found. Pure."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from service.domain import ItemId, UserId, item_key, user_key
from tests.faults.numbered import Place
from tests.faults.tail import Answer

Ends = Mapping[int, int]  # per partition, the first offset that is not covered


@dataclass(frozen=True, slots=True)
class Logged:
    """A record of the events topic. Without `event_id` it is one that cannot become an event."""

    partition: int
    offset: int
    event_id: str | None
    user_id: str = ""
    item_id: str = ""

    @property
    def place(self) -> Place:
        return self.partition, self.offset


@dataclass(frozen=True, slots=True)
class Found:
    """A user's history as the service has it."""

    offsets: tuple[int, ...]  # of the events that are remembered, oldest first
    items: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """Offsets [first, next) of a partition that a version says it was taught, and how many of
    them were events."""

    partition: int
    first: int
    next: int
    events: int


@dataclass(frozen=True, slots=True)
class Output:
    """The recommendations topic held against the log."""

    lost: int  # records with neither a recommendation nor a dead letter
    duplicates: int  # recommendations past the first of the same rec_id
    duplicates_other_rec_id: int  # events that were answered under more than one rec_id
    strangers: int  # recommendations that answer no event, or say that they answer another
    out_of_order: int  # first answers that came after one to a later event of the same user


@dataclass(frozen=True, slots=True)
class Histories:
    """The service's histories held against the log."""

    applied_twice: int  # events too many in a history, or too few
    disordered: int  # users whose events stand in another order, or with other items


@dataclass(frozen=True, slots=True)
class Teaching:
    """The ranges of a lineage held against the log."""

    trained_twice: int  # events in more than one range, or counted more often than they stand
    untaught: int  # events that are in no range


def counted(log: Iterable[Logged]) -> list[Logged]:
    """The events that count, by place: of those with the same `event_id` in a partition, which the
    service tells apart by more offsets than a run has, the first."""
    first: dict[tuple[int, str], Logged] = {}
    for one in sorted(log, key=lambda one: one.place):
        if one.event_id is not None:
            first.setdefault((one.partition, one.event_id), one)
    return list(first.values())


def histories(log: Iterable[Logged]) -> dict[int, list[Logged]]:
    """Every user's events in order, by the key that the service knows them by."""
    expected: dict[int, list[Logged]] = defaultdict(list)
    for event in counted(log):
        expected[user_key(UserId(event.user_id))].append(event)
    return expected


def judge_output(
    log: Sequence[Logged], answers: Sequence[Answer], buried: Iterable[Place]
) -> Output:
    """`answers` in the order of each output partition."""
    events = {one.place: one for one in log}
    answered = {one.of for one in answers}
    buried = set(buried)
    unanswered = {one.place for one in counted(log)} - answered
    unburied = {one.place for one in log if one.event_id is None} - buried
    ids = Counter(one.rec_id for one in answers)
    by_event: dict[str, set[str]] = defaultdict(set)
    for one in answers:
        if one.event_id is not None:
            by_event[one.event_id].add(one.rec_id)
    known = {place: event.event_id for place, event in events.items()}
    return Output(
        lost=len(unanswered) + len(unburied),
        duplicates=sum(count - 1 for count in ids.values()),
        duplicates_other_rec_id=sum(len(rec_ids) - 1 for rec_ids in by_event.values()),
        strangers=sum(known.get(one.of, "") != one.event_id for one in answers),
        out_of_order=_out_of_order(answers),
    )


def _out_of_order(answers: Iterable[Answer]) -> int:
    newest: dict[str, Place] = {}
    seen: set[str] = set()
    late = 0
    for one in sorted(answers, key=lambda one: (one.partition, one.offset)):
        if one.rec_id in seen:
            continue
        seen.add(one.rec_id)
        late += one.of < newest.get(one.user_id, one.of)
        newest[one.user_id] = max(one.of, newest.get(one.user_id, one.of))
    return late


def judge_histories(
    log: Iterable[Logged], found: Mapping[int, Found], remembered: int
) -> Histories:
    """`remembered` is how many of a user's last events the service keeps."""
    expected = histories(log)
    applied_twice = disordered = 0
    for user in expected.keys() | found.keys():
        last = expected.get(user, [])[-remembered:]
        own = Found(
            tuple(one.offset for one in last),
            tuple(item_key(ItemId(one.item_id)) for one in last),
        )
        there = found.get(user, Found((), ()))
        here, due = Counter(there.offsets), Counter(own.offsets)
        differing = (here - due).total() + (due - here).total()
        applied_twice += differing
        disordered += not differing and there != own
    return Histories(applied_twice, disordered)


def judge_teaching(log: Iterable[Logged], ranges: Iterable[Range]) -> Teaching:
    """`ranges` of the newest version and all its ancestors, which had time to hold every event."""
    events: dict[int, list[int]] = defaultdict(list)
    for event in counted(log):
        events[event.partition].append(event.offset)
    times: Counter[Place] = Counter()
    miscounted = 0
    for one in ranges:
        own = [at for at in events[one.partition] if one.first <= at < one.next]
        times.update((one.partition, at) for at in own)
        miscounted += max(one.events - len(own), 0)
    return Teaching(
        trained_twice=sum(count - 1 for count in times.values() if count > 1) + miscounted,
        untaught=sum(
            times[partition, at] == 0 for partition, offsets in events.items() for at in offsets
        ),
    )


def ends(places: Iterable[Place]) -> Ends:
    """The first offset of each partition that is past them all."""
    past: dict[int, int] = {}
    for partition, offset in places:
        past[partition] = max(past.get(partition, 0), offset + 1)
    return past


def longest_gap_s(times_s: Iterable[float]) -> float:
    """Between two records in a row."""
    return max((b - a for a, b in itertools.pairwise(sorted(times_s))), default=0.0)
