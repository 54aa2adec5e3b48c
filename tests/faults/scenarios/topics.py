"""Kafka refuses what is written to it, or has removed what was not read yet."""

import contextlib
import random
import signal
import time
from collections.abc import Iterator

from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from tests.faults.fault import Fault
from tests.faults.numbered import client_settings
from tests.faults.run import Run, Strike

_ANSWER_S = 60.0
_ENDS_WITHIN_S = 90.0
_TO_SET_RIGHT = 2
_LOST = "headwater_offsets_lost_total"
_LARGE = str(16 * 1024 * 1024)
_BROKEN = b'{"user_id": "user-1", "item_id": '


def output_refuses(run: Run, chance: random.Random) -> Strike:
    """It refuses for good: the service stops and names the topic; all comes out later."""
    run.flow(chance.uniform(0.5, 3.0))
    with _refusing(run, run.stream.recommendations):
        at_s = _ended(run, run.stream.recommendations)
    run.restart()
    recovery_s = run.answered_after(at_s)
    return Strike(at_s, 0.0, run.unanswered_at(at_s), recovery_s)


def dead_letters_refuse(run: Run, chance: random.Random) -> Strike:
    """A record that cannot be buried is not passed over: the service stops before it."""
    run.flow(chance.uniform(0.5, 3.0))
    with _refusing(run, run.stream.dead_letter):
        partition, offset = _produce(run, _BROKEN)
        at_s = _ended(run, run.stream.dead_letter)
        committed = _committed(run, partition)
        if committed > offset:
            raise AssertionError(f"committed {committed}, past {offset} that is in no topic")
    run.restart()
    recovery_s = run.answered_after(at_s)
    run.wait(lambda: _committed(run, partition) > offset, "commit past the letter", _ANSWER_S)
    return Strike(at_s, 0.0, 1, recovery_s)


def _ended(run: Run, topic: str) -> float:
    """When the service ended: with the exit code of what has to be set right, and a line that says
    what."""
    code = run.service.running.wait(_ENDS_WITHIN_S)
    at_s = time.monotonic()
    last = run.service.text().splitlines()[-1]
    if code != _TO_SET_RIGHT or topic not in last:
        raise AssertionError(f"ended with {code}:\n{run.service.words()}")
    return at_s


@contextlib.contextmanager
def _refusing(run: Run, topic: str) -> Iterator[None]:
    """Every record is too large meanwhile."""
    _set(run, topic, "max.message.bytes", "10")
    try:
        yield
    finally:
        _set(run, topic, "max.message.bytes", _LARGE)


def _set(run: Run, topic: str, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient(client_settings(run.bootstrap))
    for change in admin.incremental_alter_configs([resource]).values():
        change.result(_ANSWER_S)


def _produce(run: Run, value: bytes) -> tuple[int, int]:
    """Append a record beside the numbered ones; its partition and offset."""
    placed: list[tuple[int, int]] = []
    producer = Producer(client_settings(run.bootstrap) | {"acks": "all"})
    producer.produce(
        run.stream.events,
        value,
        key=b"user-1",
        on_delivery=lambda _, message: placed.append(
            (message.partition() or 0, message.offset() or 0)
        ),
    )
    producer.flush(_ANSWER_S)
    return placed[0]


def _committed(run: Run, partition: int) -> int:
    """The offset that the service's group has committed there."""
    admin = AdminClient(client_settings(run.bootstrap))
    asked = ConsumerGroupTopicPartitions(
        run.stream.name, [TopicPartition(run.stream.events, partition)]
    )
    answer = admin.list_consumer_group_offsets([asked])[run.stream.name].result(_ANSWER_S)
    return int(answer.topic_partitions[0].offset)


def overrun(run: Run, chance: random.Random) -> Strike:
    """While the service is down retention removes events that it has not answered. It says how
    many, in its log and in a metric, and goes on with the oldest that is left."""
    run.flow(chance.uniform(0.5, 3.0))
    at_s = time.monotonic()
    run.service.kill()
    run.flow(3.0)
    partition = chance.randrange(2)  # those of the other two are still judged whole
    committed = {one: _committed(run, one) for one in (*run.removed, partition)}
    end = _remove(run, partition)
    run.restart()
    recovery_s = run.answered_after(at_s)
    told = run.service.metric(_LOST)
    # Where nothing was committed since the last time, that is told again.
    lost = sum(max(run.removed[one] - at, 0) for one, at in committed.items())
    if told != lost or "retention removed" not in run.service.text():
        raise AssertionError(f"{lost} records were removed, and it tells of {told}")
    return Strike(at_s, 0.0, end - committed[partition], recovery_s)


def overtaken(run: Run, chance: random.Random) -> Strike:
    """Retention removes what a service that runs has not read yet, since it stood still for 3 s."""
    run.flow(chance.uniform(0.5, 3.0))
    told, rebalances = run.service.metric(_LOST), run.rebalances()
    partition = chance.randrange(2)  # those of the other two are still judged whole
    gone_before = run.removed.get(partition, 0)
    at_s = time.monotonic()
    run.service.running.send_signal(signal.SIGSTOP)
    try:
        run.flow(3.0)
        end = _remove(run, partition)
    finally:
        run.service.running.send_signal(signal.SIGCONT)
    lasted_s = time.monotonic() - at_s
    recovery_s = run.answered_after(at_s + lasted_s) + lasted_s
    run.wait(lambda: run.service.metric(_LOST) > told, "word of what is lost", _ANSWER_S)
    lost = int(run.service.metric(_LOST) - told)
    places = [one.place for one in list(run.producing.sent)]
    sent = [one for one in places if one[0] == partition and gone_before <= one[1] < end]
    read = {place for place in sent if place[1] < end - lost}
    run.wait(lambda: read <= run.tail.first.keys(), "answer of what was read", _ANSWER_S)
    # Of a member that was expelled meanwhile, what it had not committed counts as lost.
    if run.rebalances() == rebalances and (set(sent) - read) & run.tail.first.keys():
        raise AssertionError(f"tells of {lost} records before {end}, some of which it answered")
    return Strike(at_s, lasted_s, lost, recovery_s)


def _remove(run: Run, partition: int) -> int:
    """As retention does: all that is in a partition now. Gives the offset that comes next."""
    end = max(one.place[1] + 1 for one in list(run.producing.sent) if one.place[0] == partition)
    gone = TopicPartition(run.stream.events, partition, end)
    admin = AdminClient(client_settings(run.bootstrap))
    for removed in admin.delete_records([gone]).values():
        removed.result(_ANSWER_S)
    run.removed[partition] = end
    return end


def clock_jumps(run: Run, chance: random.Random) -> Strike:
    """The wall clock of the service's processes goes an hour ahead, or back, for 10 s."""
    run.flow(chance.uniform(0.5, 3.0))
    at_s = time.monotonic()
    run.orders.set_clock(chance.choice([-3600.0, 3600.0]))
    run.flow(10.0)
    run.orders.set_clock(0.0)
    recovery_s = run.answered_after(at_s)
    answered = sum(at_s < one < at_s + 10.0 for one in list(run.tail.first.values()))
    version = run.newest()
    run.published_after(at_s, version)
    return Strike(at_s, 10.0, answered, recovery_s)


FAULTS = [
    Fault("output-refuses", "the recommendations topic refuses every record", output_refuses),
    Fault("dead-letter-refuses", "the dead-letter topic refuses a record", dead_letters_refuse),
    Fault(
        "retention",
        "retention removes events before they are answered",
        overrun,
        again=False,  # where the first of two is gone, the second counts
    ),
    Fault(
        "retention-running",
        "retention removes what a service that runs has not read yet",
        overtaken,
        again=False,
    ),
    Fault(
        "clock",
        "the service's wall clock is an hour off for 10 s",
        clock_jumps,
    ),
]
