"""Which topics must exist, what is missing, and creating it."""

from aiokafka.admin import NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code

from service.errors import ConfigurationError
from service.settings import KafkaSettings, TopicsSettings
from service.stream.connection import admin_client

# A dead letter is its record whole, uncompressed, and a few headers more.
_LARGE = {"max.message.bytes": str(16 * 1024 * 1024)}
# The last record of each item stays for ever.
_COMPACTED = {"cleanup.policy": "compact"}


def needed_topics(topics: TopicsSettings) -> list[str]:
    items = [topics.items] if topics.items else []
    return [topics.events, *items, topics.recommendations, topics.dead_letter]


def _configs(name: str, topics: TopicsSettings) -> dict[str, str]:
    if name == topics.items:
        return _COMPACTED
    return _LARGE if name == topics.dead_letter else {}


async def missing_topics(kafka: KafkaSettings, topics: TopicsSettings) -> list[str]:
    """Names of those that do not exist. Raises ConfigurationError without a broker."""
    async with admin_client(kafka) as client:
        existing = set(await client.list_topics())
    return [name for name in needed_topics(topics) if name not in existing]


async def partitions_of(kafka: KafkaSettings, topic: str) -> int:
    """How many a topic has that exists. Raises ConfigurationError without a broker."""
    async with admin_client(kafka) as client:
        (found,) = await client.describe_topics([topic])
    if found["error_code"]:
        reason = for_code(found["error_code"]).__name__
        raise ConfigurationError(f"cannot look up the partitions of {topic!r}: {reason}")
    return len(found["partitions"])


async def create_topics(kafka: KafkaSettings, topics: TopicsSettings) -> list[str]:
    """Create what is missing; give the names created."""
    missing = await missing_topics(kafka, topics)
    if not missing:
        return []
    async with admin_client(kafka) as client:
        response = await client.create_topics(
            [
                NewTopic(
                    name,
                    topics.partitions,
                    topics.replication_factor,
                    topic_configs=_configs(name, topics),
                )
                for name in missing
            ]
        )
    for name, code, *message in response.topic_errors:
        if code not in (0, TopicAlreadyExistsError.errno):
            detail = message[0] if message and message[0] else for_code(code).__name__
            raise ConfigurationError(f"cannot create topic {name!r}: {detail}")
    return missing


async def require_topics(kafka: KafkaSettings, topics: TopicsSettings) -> None:
    """Raises ConfigurationError that names what is missing."""
    missing = await missing_topics(kafka, topics)
    if missing:
        raise ConfigurationError(
            f"missing topics: {', '.join(missing)}; create them with `headwater doctor --create`"
        )
