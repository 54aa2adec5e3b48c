"""A transaction that fails is sent again, once; what is not ours any more is left alone."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    TopicAuthorizationFailedError,
)

from service.domain import Offset, Partition
from service.errors import (
    AbandonedError,
    ConfigurationError,
    DeadLetterReason,
    InvalidEventError,
    TransientError,
)
from service.metrics import Metrics
from service.settings import KafkaSettings, PrivacySettings, TopicsSettings
from service.stream import connection, transactions
from service.stream.codec import Header
from service.stream.dead_letters import DeadLetters
from service.stream.once import Message, Share
from service.stream.transactions import Transactions
from tests.stream.examples import record

FAULT = InvalidEventError(DeadLetterReason.OVERSIZED, "too large")
LIMIT = 100_000  # bytes that the topics of these tests take
PARTITION = Partition(1)


class Kafka:
    """Stands for the brokers: what is committed, and who may write."""

    def __init__(self) -> None:
        self.committed: dict[int, int] = {}
        self.sent: list[bytes] = []  # values, in committed transactions alone
        self.headers: list[dict[str, bytes]] = []  # of all records that were taken
        self.transactions: list[int] = []  # records in each
        self.aborted = 0
        self.made: list[Producer] = []
        self.faults: list[tuple[str, Exception]] = []  # of the next call of that name
        self.delayed: asyncio.Event | None = None  # what a commit waits for

    def producer(self, *, transactional_id: str, **_: Any) -> "Producer":
        made = Producer(self, transactional_id)
        self.made.append(made)
        return made

    async def read(self, partition: Partition) -> Offset | None:
        found = self.committed.get(partition)
        return None if found is None else Offset(found)


class Ended:
    """Stands for what aiokafka knows of a transaction."""

    def wait_for_transaction_end(self) -> None:
        return None


class Producer:
    """As aiokafka's: a fenced one fails, and one that was refused a record is of no more use."""

    def __init__(self, kafka: Kafka, name: str) -> None:
        self.name = name
        self._txn_manager = Ended()
        self.stopped = False
        self._kafka = kafka
        self._open: list[bytes] = []
        self._offsets: dict[int, int] = {}
        self._spoilt = False

    async def start(self) -> None:
        self._fail("start")

    async def stop(self) -> None:
        self.stopped = True

    async def begin_transaction(self) -> None:
        self._fail("begin")
        self._open, self._offsets = [], {}

    async def send(
        self, topic: str, value: bytes, *, key: bytes, headers: list[Header]
    ) -> "asyncio.Future[object]":
        taken: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        try:
            self._fail("send")
            if self._spoilt:
                raise OutOfOrderSequenceNumber
            if len(value) > LIMIT:
                self._spoilt = True
                raise MessageSizeTooLargeError
        except KafkaError as error:
            taken.set_exception(error)
        else:
            self._open.append(value)
            self._kafka.headers.append(dict(headers))
            taken.set_result(None)
        return taken

    async def send_offsets_to_transaction(
        self, offsets: dict[TopicPartition, int], group: str
    ) -> None:
        self._fail("offsets")
        assert group == "headwater"
        self._offsets = {one.partition: offset for one, offset in offsets.items()}

    async def commit_transaction(self) -> None:
        if self._kafka.delayed is not None:
            await self._kafka.delayed.wait()
        self._fail("commit")
        self.end()
        self._fail("answer")

    def end(self) -> None:
        self._kafka.sent += self._open
        self._kafka.transactions.append(len(self._open))
        self._kafka.committed |= self._offsets

    async def abort_transaction(self) -> None:
        self._kafka.aborted += 1

    def _fail(self, call: str) -> None:
        if any(later.name == self.name for later in self._later()):
            raise ProducerFenced
        for place, (name, fault) in enumerate(self._kafka.faults):
            if name == call:
                del self._kafka.faults[place]
                raise fault

    def _later(self) -> list["Producer"]:
        return self._kafka.made[self._kafka.made.index(self) + 1 :]


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kafka]:
    made = Kafka()
    monkeypatch.setattr(transactions, "AIOKafkaProducer", made.producer)
    monkeypatch.setattr(connection, "_RETRY_FIRST_S", 0.0)
    monkeypatch.setattr(transactions, "_YIELD_SESSIONS", 0.001)
    yield made
    assert all(one.stopped for one in made.made)


def message(value: str) -> Message:
    return b"ann", value.encode(), []


def share(after: int, *values: str) -> Share:
    return Share(Offset(after), [message(value) for value in values], [])


def run(
    kafka: Kafka, work: Callable[[Transactions], Awaitable[None]], metrics: Metrics | None = None
) -> None:
    """With the lane of one partition open."""

    async def within() -> None:
        topics = TopicsSettings()
        letters = DeadLetters(topics, PrivacySettings())
        made = Transactions(KafkaSettings(), topics, metrics or Metrics(), letters)
        try:
            await made.open([PARTITION], kafka.read)
            async with asyncio.timeout(10):
                await work(made)
        finally:
            await made.close()

    asyncio.run(within())


def delivering(*given: Share) -> Callable[[Transactions], Awaitable[None]]:
    async def deliver(made: Transactions) -> None:
        for one in given:
            await made.deliver({PARTITION: one})

    return deliver


class TestCommitting:
    def test_records_and_offset_are_committed_together(self, kafka: Kafka) -> None:
        run(kafka, delivering(share(5, "a", "b"), share(7, "c")))
        assert kafka.sent == [b"a", b"b", b"c"]
        assert kafka.transactions == [2, 1]
        assert kafka.committed == {PARTITION: 7}

    def test_what_comes_meanwhile_is_gathered_into_one(self, kafka: Kafka) -> None:
        async def deliver(made: Transactions) -> None:
            kafka.delayed = asyncio.Event()
            tasks = []
            for after in (1, 2, 3, 4):
                given = {PARTITION: share(after, f"r{after}")}
                tasks.append(asyncio.create_task(made.deliver(given)))
                for _ in range(20):
                    await asyncio.sleep(0)
            kafka.delayed.set()
            await asyncio.gather(*tasks)

        run(kafka, deliver)
        assert kafka.transactions == [1, 3]
        assert kafka.sent == [b"r1", b"r2", b"r3", b"r4"]

    def test_bringing_histories_up_to_date_commits_nothing(self, kafka: Kafka) -> None:
        kafka.committed[PARTITION] = 10
        run(kafka, delivering(share(4), share(10), share(12, "x")))
        assert kafka.transactions == [1]
        assert kafka.committed == {PARTITION: 12}

    def test_what_took_the_place_of_records_that_a_leader_lost_is_answered(
        self, kafka: Kafka
    ) -> None:
        """The committed offset is past the partition's end then."""
        kafka.committed[PARTITION] = 10
        run(kafka, delivering(share(9, "x")))
        assert kafka.sent == [b"x"]
        assert kafka.committed == {PARTITION: 9}


class TestFailing:
    @pytest.mark.parametrize("call", ["begin", "send", "offsets", "commit", "answer"])
    def test_wherever_it_fails_in_passing_each_record_is_there_once(
        self, call: str, kafka: Kafka
    ) -> None:
        """`answer`: it was committed, and we were not told."""

        async def deliver(made: Transactions) -> None:
            kafka.faults = [
                (call, KafkaTimeoutError()),
                ("start", KafkaConnectionError()),
                (call, KafkaError("unexplained")),
            ]
            await delivering(share(5, "a", "b"), share(6, "c"))(made)

        run(kafka, deliver)
        assert kafka.sent == [b"a", b"b", b"c"]
        assert kafka.committed == {PARTITION: 6}

    def test_a_refused_dead_letter_is_shortened_and_spoils_nothing(self, kafka: Kafka) -> None:
        letter = (record(b"x" * (LIMIT + 1), partition=PARTITION), FAULT)
        run(kafka, delivering(Share(Offset(5), [message("a"), message("b")], [letter])))
        assert kafka.sent == [b"a", b"b", b"x" * 64 * 1024]
        assert len(kafka.made) == 2  # the first could send nothing more to that partition

    def test_a_dead_letter_names_its_user_by_a_hash(self, kafka: Kafka) -> None:
        run(kafka, delivering(Share(Offset(5), [], [(record(b"{", partition=PARTITION), FAULT)])))
        (headers,) = kafka.headers
        assert headers["headwater-reason"] == b"oversized"
        assert len(headers["headwater-user"]) == 16

    def test_a_recommendation_is_never_shortened(self, kafka: Kafka) -> None:
        with pytest.raises(ConfigurationError, match=r"'recommendations'.*max\.message\.bytes"):
            run(kafka, delivering(share(5, "x" * (LIMIT + 1))))
        assert kafka.sent == []

    def test_what_kafka_never_takes_is_raised(self, kafka: Kafka) -> None:
        kafka.faults = [("send", TopicAuthorizationFailedError())]
        with pytest.raises(ConfigurationError, match=r"write transactions.*access control"):
            run(kafka, delivering(share(5, "a")))
        assert kafka.committed == {}


class TestFencing:
    def test_one_that_is_still_the_owner_goes_on(self, kafka: Kafka) -> None:
        """Its transaction timed out, say."""
        kafka.faults = [("commit", ProducerFenced())]
        metrics = Metrics()
        run(kafka, delivering(share(5, "a")), metrics)
        assert kafka.sent == [b"a"]
        assert metrics.commits.labels("fenced")._value.get() == 1

    def test_one_that_another_has_overtaken_ends(self, kafka: Kafka) -> None:
        async def deliver(made: Transactions) -> None:
            other = kafka.producer(transactional_id="headwater/events/1")
            other.stopped = True
            kafka.committed[PARTITION] = 99
            await made.deliver({PARTITION: share(5, "a")})

        with pytest.raises(TransientError, match="from None to 99"):
            run(kafka, deliver)
        assert kafka.sent == []

    def test_while_it_waits_for_a_rebalance_that_comes_nothing_is_sent(
        self, kafka: Kafka, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transactions, "_YIELD_SESSIONS", 1_000.0)

        async def deliver(made: Transactions) -> None:
            kafka.faults = [("send", ProducerFenced())]
            first = asyncio.create_task(made.deliver({PARTITION: share(5, "a")}))
            await asyncio.sleep(0.05)
            made.finish()
            with pytest.raises(AbandonedError):
                await first
            with pytest.raises(AbandonedError):
                await made.deliver({PARTITION: share(6, "b")})

        run(kafka, deliver)
        assert kafka.sent == []
        assert len(kafka.made) == 1


class TestClosing:
    def test_what_is_under_way_is_committed(self, kafka: Kafka) -> None:
        async def deliver(made: Transactions) -> None:
            tasks = [
                asyncio.create_task(made.deliver({PARTITION: share(after, f"r{after}")}))
                for after in (1, 2)
            ]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await made.close()
            await asyncio.gather(*tasks)

        run(kafka, deliver)
        assert kafka.committed == {PARTITION: 2}

    def test_what_takes_too_long_is_aborted_and_left_to_the_next_owner(
        self, kafka: Kafka, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(transactions, "_FINISH_WITHIN_S", 0.05)

        async def hang(*_: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(Producer, "send_offsets_to_transaction", hang)

        async def deliver(made: Transactions) -> None:
            waiting = asyncio.create_task(made.deliver({PARTITION: share(5, "a")}))
            await asyncio.sleep(0.01)
            await made.close()
            with pytest.raises(AbandonedError):
                await waiting

        run(kafka, deliver)
        assert kafka.aborted == 1
        assert kafka.sent == []

    def test_a_partition_that_is_not_ours_is_left_alone(self, kafka: Kafka) -> None:
        async def deliver(made: Transactions) -> None:
            with pytest.raises(AbandonedError):
                await made.deliver({Partition(7): share(5, "a"), PARTITION: share(3, "b")})

        run(kafka, deliver)
        assert kafka.sent == [b"b"]
