"""Dead letters keep bytes and origin; what a topic refuses is cut or stops the service."""

import asyncio
import hashlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    KafkaConnectionError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    TopicAuthorizationFailedError,
)

from service.errors import (
    ConfigurationError,
    DeadLetterReason,
    InvalidEventError,
    TransientError,
)
from service.metrics import Metrics
from service.settings import KafkaSettings, PrivacySettings, TopicsSettings
from service.stream import connection, sink
from service.stream.codec import Header
from service.stream.dead_letters import DeadLetters
from service.stream.sink import Sink
from tests.stream.examples import record

FAULT = InvalidEventError(DeadLetterReason.INVALID, "user_id: Field required")
LIMIT = 100_000  # bytes that the topics of these tests take

Sent = tuple[str, bytes | None, bytes | None, dict[str, bytes]]


class Broker:
    """Stands for the producer and what is behind it."""

    def __init__(
        self,
        *faults: Exception,
        refusal: Exception | None = None,
        full: Mapping[bytes, Exception] | None = None,
    ) -> None:
        self.sent: list[Sent] = []
        self.full = dict(full or {})  # why a record, by its key, is not queued the first time
        self._message_accumulator = SimpleNamespace()
        self._faults = list(faults)  # of the first sends
        self._refusal = refusal  # to start

    async def start(self) -> None:
        if self._refusal:
            raise self._refusal

    async def stop(self) -> None: ...

    async def send(
        self, topic: str, value: bytes | None, *, key: bytes | None, headers: list[Header]
    ) -> "asyncio.Future[object]":
        if len(value or b"") > LIMIT:
            raise MessageSizeTooLargeError("too large")
        if key in self.full:
            raise self.full.pop(key)
        acknowledged: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        if self._faults:
            acknowledged.set_exception(self._faults.pop(0))
        else:
            self.sent.append((topic, key, value, dict(headers)))
            acknowledged.set_result(None)
        return acknowledged


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_RETRY_FIRST_S", 0.0)


def a_sink(metrics: Metrics) -> Sink:
    topics = TopicsSettings()
    return Sink(KafkaSettings(), topics, metrics, DeadLetters(topics, PrivacySettings()))


def started(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> tuple[Sink, Metrics]:
    def producer(**_: Any) -> Broker:
        return broker

    monkeypatch.setattr(sink, "AIOKafkaProducer", producer)
    metrics = Metrics()
    return a_sink(metrics), metrics


def buried(value: bytes | None, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Sent:
    made, _ = started(broker, monkeypatch)

    async def bury() -> None:
        await made.start()
        await made.bury([(record(value), FAULT)])
        await made.stop()

    asyncio.run(bury())
    assert len(broker.sent) == 1
    return broker.sent[0]


def recommended(count: int, size: int, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Metrics:
    made, metrics = started(broker, monkeypatch)

    async def recommend() -> None:
        await made.start()
        await made.recommend([(b"u%d" % i, b"x" * size, []) for i in range(count)])

    asyncio.run(recommend())
    return metrics


class TestBurying:
    @pytest.mark.parametrize("value", [b"\xff{", b"", None, b"x" * LIMIT])
    def test_key_and_bytes_are_kept(
        self, value: bytes | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        topic, key, kept, headers = buried(value, Broker(), monkeypatch)
        assert (topic, key, kept) == ("events.dead-letter", b"u1", value)
        assert "headwater-truncated-from-bytes" not in headers

    def test_what_the_topic_refuses_as_too_large_is_cut_and_says_so(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        value = b"abc" * LIMIT
        _, _, kept, headers = buried(value, Broker(), monkeypatch)
        assert kept == value[: 64 * 1024]
        assert headers["headwater-truncated-from-bytes"] == str(len(value)).encode()
        assert headers["headwater-sha256"] == hashlib.sha256(value).hexdigest().encode()
        assert headers["headwater-offset"] == b"7"


class TestRecommending:
    def test_a_recommendation_is_never_cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        broker = Broker()
        with pytest.raises(ConfigurationError, match=r"'recommendations'.*max\.message\.bytes"):
            recommended(1, LIMIT + 1, broker, monkeypatch)
        assert broker.sent == []

    def test_what_failed_in_passing_is_sent_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        broker = Broker(KafkaTimeoutError(), KafkaTimeoutError())
        metrics = recommended(3, 10, broker, monkeypatch)
        assert sorted(key or b"" for _, key, _, _ in broker.sent) == [b"u0", b"u1", b"u2"]
        produced = metrics.produced.labels
        assert produced("recommendation", "retried")._value.get() == 2
        assert produced("recommendation", "acknowledged")._value.get() == 3

    def test_nothing_overtakes_a_record_that_finds_the_queue_full(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broker = Broker(full={b"u1": KafkaTimeoutError(), b"u2": KafkaConnectionError()})
        metrics = recommended(4, 10, broker, monkeypatch)
        assert [key for _, key, _, _ in broker.sent] == [b"u0", b"u1", b"u2", b"u3"]
        produced = metrics.produced.labels
        assert produced("recommendation", "retried")._value.get() == 2
        assert produced("recommendation", "acknowledged")._value.get() == 4

    def test_a_record_that_is_not_queued_for_good_is_raised(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broker = Broker(full={b"u1": TopicAuthorizationFailedError()})
        with pytest.raises(ConfigurationError, match=r"write to topic 'recommendations'.*access"):
            recommended(2, 10, broker, monkeypatch)

    def test_what_is_queued_waits_for_a_leader_however_long_it_takes(self) -> None:
        """Given up, it would be sent again behind what was queued after it."""

        async def first_is_given_up(patient: bool) -> bool:
            producer = AIOKafkaProducer(request_timeout_ms=1, enable_idempotence=True)
            producer._closed = True  # it is never started
            producer._txn_manager.set_pid_and_epoch(1, 0)
            if patient:
                sink.never_give_up(producer)
            queue = producer._message_accumulator
            first = await queue.add_message(TopicPartition("t", 0), b"k", b"v", timeout=1)
            await asyncio.sleep(0.01)
            queue.drain_by_nodes(ignore_nodes=[])
            given_up: bool = first.done()
            if given_up:
                assert isinstance(first.exception(), NotLeaderForPartitionError)
            return given_up

        assert asyncio.run(first_is_given_up(patient=False))
        assert not asyncio.run(first_is_given_up(patient=True))

    def test_what_can_never_be_sent_is_raised(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigurationError, match=r"write to topic 'recommendations'.*access"):
            recommended(1, 10, Broker(TopicAuthorizationFailedError()), monkeypatch)


class TestStarting:
    def test_a_missing_right_has_to_be_set_right(self, monkeypatch: pytest.MonkeyPatch) -> None:
        broker = Broker(refusal=ClusterAuthorizationFailedError())
        with pytest.raises(ConfigurationError, match=r"start a producer.*kafka\.sasl_username"):
            recommended(1, 10, broker, monkeypatch)

    def test_a_broker_that_went_away_may_come_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        broker = Broker(refusal=KafkaConnectionError("gone"))
        with pytest.raises(TransientError, match="gone"):
            recommended(1, 10, broker, monkeypatch)

    def test_only_the_producer_of_dead_letters_may_be_refused_a_record(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An idempotent one could not go on after it."""
        made: list[bool] = []

        def producer(*, enable_idempotence: bool, **_: Any) -> Broker:
            made.append(enable_idempotence)
            return Broker()

        monkeypatch.setattr(sink, "AIOKafkaProducer", producer)
        asyncio.run(a_sink(Metrics()).start())
        assert made == [True, False]
