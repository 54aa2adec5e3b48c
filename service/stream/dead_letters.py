"""Dead letters: what cannot become an event, with its bytes, why, and whence."""

import hashlib
import logging

from service.errors import ConfigurationError, InvalidEventError
from service.privacy import Pseudonyms
from service.settings import PrivacySettings, TopicsSettings
from service.stream.codec import Header, Record

log = logging.getLogger(__name__)

# What is kept of a record that the dead-letter topic refuses as too large.
_TRUNCATED_BYTES = 64 * 1024
_OURS = "headwater-"  # how the names of our headers begin
_TRUNCATED = f"{_OURS}truncated-from-bytes"

# Topic, key, value and headers.
Outgoing = tuple[str, bytes | None, bytes | None, list[Header]]


class DeadLetters:
    """Writes them, whichever producer sends them."""

    def __init__(self, topics: TopicsSettings, privacy: PrivacySettings) -> None:
        secret = privacy.hash_key
        self._pseudonyms = Pseudonyms(secret.get_secret_value() if secret else None)
        self._topics = topics

    def of(self, record: Record, error: InvalidEventError, topic: str | None = None) -> Outgoing:
        """The dead letter of a record of `topic`; of the events topic, keyed by user, when
        None."""
        user = None if topic or not record.key else self._pseudonyms.of(record.key)
        log.debug(
            "dead letter of partition %d, offset %d: %s, user %s",
            record.partition,
            record.offset,
            error.reason.value,
            user,
        )
        return (
            self._topics.dead_letter,
            record.key,
            # aiokafka sends nothing that has neither.
            b"" if record.key is record.value is None else record.value,
            dead_letter_headers(topic or self._topics.events, record, error, user),
        )


def dead_letter_headers(
    topic: str, record: Record, error: InvalidEventError, user: str | None = None
) -> list[Header]:
    """The record's own headers, then why, whence, and the hash that stands for its user. What has a
    name of ours is left out: a dead letter that was sent again has them from before."""
    return [
        *(header for header in record.headers if not _is_ours(header)),
        *([("headwater-user", user.encode())] if user else []),
        ("headwater-reason", error.reason.encode()),
        ("headwater-detail", error.detail.encode(errors="replace")[:1024]),
        ("headwater-topic", topic.encode()),
        ("headwater-partition", str(record.partition).encode()),
        ("headwater-offset", str(record.offset).encode()),
        ("headwater-timestamp", str(record.appended_ms).encode()),
    ]


def shortened(message: Outgoing, dead_letter: str) -> Outgoing:
    """What is kept of a dead letter that the topic refuses as too large: the beginning of its key
    and value, our own headers, and what identifies the rest. Raises ConfigurationError for what is
    none, or is still too large."""
    topic, key, value, headers = message
    if topic != dead_letter or _is_truncated(headers):
        raise _too_small(topic, value)
    value = value or b""
    return (
        topic,
        key[:_TRUNCATED_BYTES] if key else key,
        value[:_TRUNCATED_BYTES],
        [
            *filter(_is_ours, headers),
            (_TRUNCATED, str(len(value)).encode()),
            ("headwater-sha256", hashlib.sha256(value).hexdigest().encode()),
        ],
    )


def _is_ours(header: Header) -> bool:
    return header[0].startswith(_OURS)


def _is_truncated(headers: list[Header]) -> bool:
    return any(name == _TRUNCATED for name, _ in headers)


def _too_small(topic: str, value: bytes | None) -> ConfigurationError:
    return ConfigurationError(
        f"topic {topic!r} refuses a record of {len(value or b'')} bytes: "
        "raise its max.message.bytes"
    )
