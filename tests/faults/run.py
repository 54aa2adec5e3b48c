"""One stream of numbered events that one fault strikes again and again, and the oracle after it."""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, cast

import orjson
from confluent_kafka import Message

from tests.faults import lineage, oracle
from tests.faults.cluster import Kafka, ProxiedKafka
from tests.faults.histories import read_histories
from tests.faults.numbered import Place, Producing
from tests.faults.oracle import Logged
from tests.faults.orders import FOLDER_VARIABLE, Blow, Order, Orders, Struck
from tests.faults.tail import Tail, read_whole
from tests.integration.running import Environment, Service
from tests.integration.traffic import Stream, make_stream

PER_S = 50.0  # well below what a slow machine answers: what waits does so for the fault
_POLL_S = 0.05
_START_WITHIN_S = 400.0  # a machine that does much else has taken 110 s
_WARM_WITHIN_S = 600.0
_POINT_WITHIN_S = 240.0
_RECOVER_WITHIN_S = 600.0
_STILL_S = 60.0  # longer than a worker takes to start
_READ_WITHIN_S = 120.0
# What was on its way to us when a process was killed arrives later; it was answered before.
_ON_ITS_WAY_S = 0.5
_COMPILED = Path(tempfile.gettempdir()) / f"headwater-faults-compiled-{os.getuid()}"
_REMEMBERED = 2_048  # events a user, those of two hours: more than a fault's run has

SETTINGS: Environment = {
    "HEADWATER_EVENTS__DEDUPLICATE": "100000",  # the default
    "HEADWATER_HISTORY__EVENTS": str(_REMEMBERED),
    "HEADWATER_HISTORY__USERS": "256",
    "HEADWATER_TRAINER__PUBLISH_EVERY_S": "1",
    # So that a start goes on from a snapshot that is younger than the topic.
    "HEADWATER_STORAGE__SNAPSHOT_EVERY_S": "2",
    # The oracle walks the whole lineage.
    "HEADWATER_REGISTRY__KEEP_VERSIONS": "1000000",
    "HEADWATER_TRAINER__RESTART__FIRST_DELAY_S": "0.1",
    "HEADWATER_TRAINER__RESTART__MAX_DELAY_S": "1",
    "HEADWATER_TRAINER__RESTART__HEARTBEAT_S": "0.5",
    "HEADWATER_TRAINER__RESTART__SILENT_AFTER_S": "8",
    "HEADWATER_TRAINER__RESTART__STUCK_AFTER_S": "60",
    "HEADWATER_TRAINER__RESTART__START_TIMEOUT_S": "600",
}


@dataclass(frozen=True, slots=True)
class Strike:
    """One time that the fault hit; times of the monotonic clock."""

    at_s: float
    lasted_s: float  # until the harness ended it; 0 for a kill
    under_way: int  # what was being worked on: events without an answer, or the point's batch
    recovery_s: float


@dataclass(slots=True)
class Judged:
    """What the oracle found after the last strike."""

    output: oracle.Output
    histories: oracle.Histories
    teaching: oracle.Teaching
    events: int
    versions: int
    given_up: int  # sequences that were taught and are in no weights, as the versions say
    longest_gap_s: list[float] = field(default_factory=list)  # around each strike


class Run:
    """A service, its input and its output, from the first event to the verdict."""

    def __init__(
        self,
        kafka: Kafka,
        folder: Path,
        more: Environment | None = None,
        *,
        again: bool = True,
        apart: bool = False,
    ) -> None:
        """With `again`, some events come again. With `apart`, the service scores, and another
        process trains."""
        self.cluster = kafka
        self.bootstrap = kafka.bootstrap
        self.stream: Stream = make_stream(kafka.bootstrap, replicas=kafka.replicas)
        self.orders = Orders(folder / "orders")
        # By partition, the offset before which a scenario had Kafka remove all.
        self.removed: dict[int, int] = {}
        self._folder = folder
        self._more = {
            **SETTINGS,
            "HEADWATER_KAFKA__BOOTSTRAP_SERVERS": kafka.proxied,
            FOLDER_VARIABLE: str(folder / "orders"),
            # It is started very often, also where no compiled modules may lie beside their source.
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(_COMPILED),
            **(more or {}),
        }
        self._open = ExitStack()
        self._apart = apart
        self.service = self._new_service()
        self.trainer = self._new_trainer() if apart else None
        self.start_s = 0.0  # until it was ready, the last time
        self.producing = Producing(kafka.bootstrap, self.stream.events, PER_S, again=again)
        self.tail = Tail(kafka.bootstrap, self.stream.recommendations)

    def __enter__(self) -> Self:
        try:
            self._open.enter_context(self.tail)
            self._open.callback(self._end_services)
            if self.trainer is not None:
                self.trainer.__enter__()
            self._enter_service()
            self._open.enter_context(self.producing)
            self.wait(lambda: self.newest() > 1, "version", _WARM_WITHIN_S)
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        self._open.close()

    def _new_service(self) -> Service:
        return self._new({"HEADWATER_ROLES": '["score"]'} if self._apart else {})

    def _new_trainer(self) -> Service:
        return self._new({"HEADWATER_ROLES": '["train"]'})

    def _new(self, more: Environment) -> Service:
        settings = {**self._more, **more}
        return Service(self.stream, self._folder, settings, "tests.faults.serve", _START_WITHIN_S)

    def _enter_service(self) -> None:
        started_s = time.monotonic()
        self.service.__enter__()
        self.start_s = time.monotonic() - started_s

    def _end_services(self) -> None:
        for one in self._services:
            if one.is_alive:
                one.kill()

    @property
    def _services(self) -> list[Service]:
        """Those that are there."""
        return [self.service] if self.trainer is None else [self.service, self.trainer]

    @property
    def kafka(self) -> ProxiedKafka:
        """Where there is one broker."""
        assert isinstance(self.cluster, ProxiedKafka)
        return self.cluster

    @property
    def storage(self) -> Path:
        return self.service.storage

    def restart(self) -> None:
        """Once the service has ended. Returns when it is ready."""
        self.service = self._new_service()
        self._enter_service()

    def restart_trainer(self) -> None:
        """Once the process that trains has ended. Returns when it is ready."""
        self.trainer = self._new_trainer()
        self.trainer.__enter__()

    def start(self) -> None:
        """Once the service has ended. Returns before it is ready."""
        self.service = self._new_service()
        self.service.start()

    def replica(self) -> Service:
        """Another process that scores, to be entered, for a run whose training is apart."""
        return self._new_service()

    def rebalances(self) -> int:
        """How often the service was given partitions."""
        return int(self.service.metric("headwater_rebalances_total"))

    def newest(self) -> int:
        return lineage.newest_number(self.storage)

    def wait(self, holds: Callable[[], object], what: str, within_s: float) -> None:
        """Fails with the end of the service's log, where that has ended or it takes too long."""
        deadline_s = time.monotonic() + within_s
        while not holds():
            if time.monotonic() > deadline_s:
                raise AssertionError(f"no {what} in {within_s:.0f} s:\n{self.service.words()}")
            for one in self._services:
                code = one.running.poll()
                if code is not None:
                    raise AssertionError(f"ended with {code}, no {what}:\n{one.words()}")
            time.sleep(_POLL_S)

    def strike_at(self, point: str, blow: Blow, passes: int) -> Struck | None:
        """Order it and wait until it is done; None if nobody came by."""
        self.orders.give(Order(point, blow, passes))
        return self.orders.wait(_POINT_WITHIN_S)

    def unanswered_at(self, at_s: float) -> int:
        """Events that Kafka had acknowledged by then and that were answered only later. To be
        asked when the service answers again."""
        first = self.tail.first
        return sum(
            one.acknowledged_s <= at_s and first.get(one.place, float("inf")) > at_s + _ON_ITS_WAY_S
            for one in list(self.producing.sent)
        )

    def answered_after(self, at_s: float) -> float:
        """Wait for an answer to an event that was produced after the moment; seconds from the
        moment to the first such answer."""
        places: set[Place] = set()

        def came() -> bool:
            places.update(one.place for one in list(self.producing.sent) if one.produced_s > at_s)
            return bool(places & self.tail.first.keys())

        self.wait(came, "answer after the fault", _RECOVER_WITHIN_S)
        return min(self.tail.first[place] for place in places & self.tail.first.keys()) - at_s

    def published_after(self, at_s: float, version: int) -> float:
        """Wait for a version past this one; seconds from the moment until it was there."""
        self.wait(lambda: self.newest() > version, "version after the fault", _RECOVER_WITHIN_S)
        return time.monotonic() - at_s

    def flow(self, seconds: float) -> None:
        """Let the stream go on."""
        time.sleep(seconds)

    def settle(self) -> None:
        """No more events: wait until every one is answered and in a version, or until nothing more
        comes of it, which is then the oracle's to tell."""
        places = {
            one.place
            for one in self.producing.finish()
            if one.place[1] >= self.removed.get(one.place[0], 0)
        }
        self._wait_while_it_moves(
            lambda: places <= self.tail.first.keys(), lambda: len(self.tail.first)
        )
        ends = oracle.ends(places)

        def trained() -> bool:
            through = lineage.lineage(self.storage)[0].through
            return all(through.get(one, 0) >= end for one, end in ends.items())

        self._wait_while_it_moves(trained, self.newest)

    def _wait_while_it_moves(self, holds: Callable[[], bool], progress: Callable[[], int]) -> None:
        """Until it holds, or there was no progress for a while."""
        seen, seen_s = progress(), time.monotonic()
        while not holds() and time.monotonic() < seen_s + _STILL_S:
            time.sleep(_POLL_S)
            if progress() != seen:
                seen, seen_s = progress(), time.monotonic()

    def judge(self, strikes: list[Strike]) -> Judged:
        """Read the truth from outside, stop the service, hold one against the other."""
        found = [read_histories(one) for one in self._services]
        for one in self._services:
            if one.stop() != 0:
                raise AssertionError(f"did not stop in order:\n{one.words()}")
        log = read_whole(self.bootstrap, self.stream.events, _READ_WITHIN_S, _logged)
        buried = read_whole(self.bootstrap, self.stream.dead_letter, _READ_WITHIN_S, _origin)
        line = lineage.lineage(self.storage)
        answers = list(self.tail.answers)
        # Where the beginning is gone the rest says nothing of histories and versions.
        whole = [one for one in log if one.partition not in self.removed]
        users = oracle.histories(whole).keys()
        ranges = [one for one in lineage.ranges_of(line) if one.partition not in self.removed]
        if self.removed:
            found = [{user: one[user] for user in one.keys() & users} for one in found]
        histories = [oracle.judge_histories(whole, one, _REMEMBERED) for one in found]
        return Judged(
            output=oracle.judge_output([*self._answered_and_removed(), *log], answers, buried),
            histories=oracle.Histories(
                sum(one.applied_twice for one in histories),
                sum(one.disordered for one in histories),
            ),
            teaching=oracle.judge_teaching(whole, ranges),
            events=len(log),
            versions=line[0].number,
            given_up=sum(one.given_up for one in line),
            longest_gap_s=[
                oracle.longest_gap_s(
                    one.received_s
                    for one in answers
                    if strike.at_s - 5 < one.received_s < strike.at_s + strike.recovery_s + 5
                )
                for strike in strikes
            ],
        )

    def _answered_and_removed(self) -> list[Logged]:
        """Events that the log has no more; those without an answer are told by the service."""
        return [
            Logged(*one.place, f"event-{one.number}")
            for one in self.producing.sent
            if one.place[1] < self.removed.get(one.place[0], 0) and one.place in self.tail.first
        ]


def _logged(message: Message) -> Logged:
    partition, offset = message.partition() or 0, message.offset() or 0
    try:
        event = orjson.loads(message.value() or b"")
        return Logged(partition, offset, event["event_id"], event["user_id"], event["item_id"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return Logged(partition, offset, None)


def _origin(message: Message) -> Place:
    headers = dict(cast(list[tuple[str, bytes]], message.headers()))
    return int(headers["headwater-partition"]), int(headers["headwater-offset"])
