"""The sandbox's broker is a real one, and its life is in the hands of its owner."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

import service
from service.errors import ConfigurationError
from service.sandbox.kafka import LocalKafka
from service.sandbox.probe import answers

pytestmark = pytest.mark.integration

RECORDS = [f"record {number}".encode() for number in range(100)]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """A broker to treat badly; every test leaves it running."""
    with LocalKafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


async def write(bootstrap: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        for record in RECORDS:
            await producer.send(topic, record, partition=0)


async def read(bootstrap: str, topic: str) -> list[bytes | None]:
    """The first records of the topic, as many as `write` writes."""
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        return [(await consumer.getone()).value for _ in RECORDS]


def written_topic(bootstrap: str) -> str:
    topic = f"local-kafka-{uuid.uuid4()}"
    asyncio.run(asyncio.wait_for(write(bootstrap, topic), 30))
    return topic


def assert_holds_the_records(bootstrap: str, topic: str) -> None:
    assert asyncio.run(asyncio.wait_for(read(bootstrap, topic), 30)) == RECORDS


def port_of(broker: LocalKafka) -> int:
    return int(broker.bootstrap.rpartition(":")[2])


def wait_until(holds: Callable[[], bool], within_s: float) -> bool:
    deadline_s = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_shared_kafka_returns_what_was_produced(kafka: str) -> None:
    assert_holds_the_records(kafka, written_topic(kafka))


def test_a_killed_broker_comes_back_on_its_port_with_its_records(broker: LocalKafka) -> None:
    address = broker.bootstrap
    topic = written_topic(address)

    broker.kill()
    assert broker.pid is None
    broker.start()

    assert broker.bootstrap == address
    assert_holds_the_records(address, topic)


def test_a_stopped_broker_comes_back_with_its_records(broker: LocalKafka) -> None:
    topic = written_topic(broker.bootstrap)

    broker.stop()
    broker.start()

    assert_holds_the_records(broker.bootstrap, topic)


def test_a_frozen_broker_answers_again_once_resumed(broker: LocalKafka) -> None:
    broker.pause()
    try:
        assert not answers(port_of(broker), 0.5)
    finally:
        broker.resume()
    assert wait_until(lambda: answers(port_of(broker), 1.0), within_s=10)


def test_a_frozen_broker_can_be_stopped(broker: LocalKafka) -> None:
    broker.pause()
    broker.stop()
    assert broker.pid is None
    broker.start()


def test_a_temporary_data_folder_is_removed_at_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with LocalKafka():
        assert any(tmp_path.glob("headwater-kafka-*"))
    assert not any(tmp_path.glob("headwater-kafka-*"))


def test_a_broker_that_cannot_start_quotes_its_log_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    broken = LocalKafka(properties={"num.io.threads": "many"})
    with pytest.raises(ConfigurationError, match="Invalid value many"), broken:
        pass
    assert broken.pid is None
    assert not any(tmp_path.glob("headwater-kafka-*"))


def test_a_second_start_is_refused(broker: LocalKafka) -> None:
    with pytest.raises(RuntimeError, match="runs already"):
        broker.start()


def test_the_terminals_interrupt_does_not_reach_the_broker(broker: LocalKafka) -> None:
    assert broker.pid is not None
    assert os.getsid(broker.pid) != os.getsid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_broker_outlives_the_thread_that_started_it(broker: LocalKafka) -> None:
    broker.stop()
    thread = threading.Thread(target=broker.start)
    thread.start()
    thread.join()
    time.sleep(0.2)  # the signal, were there one, comes at once
    assert broker.pid is not None


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_broker_dies_with_an_owner_killed_by_force(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "from service.sandbox.kafka import LocalKafka\n"
        "broker = LocalKafka(pathlib.Path(sys.argv[1]))\n"
        "broker.start()\n"
        "print(broker.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=Path(service.__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_alive(pid)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert wait_until(lambda: not is_alive(pid), within_s=5)
