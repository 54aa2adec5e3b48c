"""Dead letters keep bytes and origin; what a topic refuses is cut or stops the service."""

import asyncio
import hashlib
import logging
from typing import Any

import pytest
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    KafkaConnectionError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
)

from service.errors import (
    ConfigurationError,
    DeadLetterReason,
    InvalidEventError,
    TransientError,
)
from service.metrics import Metrics
from service.settings import KafkaSettings, TopicsSettings
from service.stream import sink
from service.stream.codec import Header
from service.stream.sink import Sink, dead_letter_headers
from tests.stream.examples import NOW_MS, record

FAULT = InvalidEventError(DeadLetterReason.INVALID, "user_id: Field required")
LIMIT = 100_000  # bytes that the topics of these tests take

Sent = tuple[str, bytes | None, bytes | None, dict[str, bytes]]


class Broker:
    """Stands for the producer and what is behind it."""

    def __init__(self, *faults: Exception, refusal: Exception | None = None) -> None:
        self.sent: list[Sent] = []
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
        acknowledged: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        if self._faults:
            acknowledged.set_exception(self._faults.pop(0))
        else:
            self.sent.append((topic, key, value, dict(headers)))
            acknowledged.set_result(None)
        return acknowledged


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "_RETRY_FIRST_S", 0.0)


def started(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> tuple[Sink, Metrics]:
    def producer(**_: Any) -> Broker:
        return broker

    monkeypatch.setattr(sink, "AIOKafkaProducer", producer)
    metrics = Metrics()
    return Sink(KafkaSettings(), TopicsSettings(), metrics), metrics


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


class TestDeadLetterHeaders:
    def test_they_name_the_user_by_a_keyed_hash(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        broker = Broker()
        _, key, _, headers = buried(b"{", broker, monkeypatch)
        assert key == b"u1"
        named = headers["headwater-user"]
        assert len(named) == 16
        assert b"u1" not in b"".join(headers.values())
        assert named.decode() in caplog.text
        assert "u1" not in caplog.text.replace(named.decode(), "")

    def test_the_key_of_an_item_names_no_user(self, monkeypatch: pytest.MonkeyPatch) -> None:
        broker = Broker()
        made, _ = started(broker, monkeypatch)

        async def bury() -> None:
            await made.start()
            await made.bury([(record(b"{"), FAULT)], "items")

        asyncio.run(bury())
        ((*_, headers),) = broker.sent
        assert headers["headwater-topic"] == b"items"
        assert "headwater-user" not in headers

    def test_they_say_why_and_whence_after_the_records_own(self) -> None:
        headers = dead_letter_headers("events", record(b"", headers=(("own", b"1"),)), FAULT)
        assert headers == [
            ("own", b"1"),
            ("headwater-reason", b"invalid"),
            ("headwater-detail", b"user_id: Field required"),
            ("headwater-topic", b"events"),
            ("headwater-partition", b"2"),
            ("headwater-offset", b"7"),
            ("headwater-timestamp", str(NOW_MS + 5).encode()),
        ]

    def test_a_long_detail_is_cut_and_any_text_can_be_told(self) -> None:
        fault = InvalidEventError(DeadLetterReason.MALFORMED, "\ud800" + "x" * 5_000)
        detail = dict(dead_letter_headers("events", record(b""), fault))["headwater-detail"]
        assert detail == b"?" + b"x" * 1_023


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
        asyncio.run(Sink(KafkaSettings(), TopicsSettings(), Metrics()).start())
        assert made == [True, False]
