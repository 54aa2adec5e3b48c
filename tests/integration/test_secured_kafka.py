"""A Kafka with passwords and access control lists: what it refuses is told in one line."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from pydantic import SecretStr

from service.domain import Offsets
from service.errors import ConfigurationError
from service.metrics import Metrics
from service.sandbox.kafka import LocalKafka
from service.settings import KafkaSettings, SaslMechanism, SecurityProtocol, TopicsSettings
from service.stream.sink import Sink
from service.stream.source import Source
from service.stream.topics import create_topics, require_topics

pytestmark = pytest.mark.integration

PASSWORD = "open-sesame"
# Who may do what, besides seeing the topics.
STRANGER, ONLOOKER, MEMBER = "stranger", "onlooker", "member"
TOPICS = TopicsSettings(partitions=1)


@pytest.fixture(scope="module")
def secured() -> Iterator[str]:
    """Bootstrap servers for those with a password; without one, all is allowed at another port."""
    port, secured_port, controller_port = free_ports(3)
    open_at, secured_at = f"127.0.0.1:{port}", f"127.0.0.1:{secured_port}"
    users = " ".join(f'user_{name}="{PASSWORD}"' for name in (STRANGER, ONLOOKER, MEMBER))
    properties = {
        "listeners": f"PLAINTEXT://{open_at},SECURED://{secured_at},"
        f"CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{open_at},SECURED://{secured_at}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,"
        "SECURED:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.secured.plain.sasl.jaas.config": "org.apache.kafka.common.security.plain."
        f"PlainLoginModule required {users};",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    with LocalKafka(port=port, properties=properties):
        asyncio.run(create_topics(KafkaSettings(bootstrap_servers=open_at), TOPICS))
        grant(
            open_at,
            (ONLOOKER, ResourceType.TOPIC, AclOperation.DESCRIBE),
            (MEMBER, ResourceType.TOPIC, AclOperation.DESCRIBE),
            (MEMBER, ResourceType.GROUP, AclOperation.READ),
        )
        yield secured_at


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def grant(bootstrap: str, *rights: tuple[str, ResourceType, AclOperation]) -> None:
    """To everything of that type."""
    bindings = [
        AclBinding(
            kind,
            "*",
            ResourcePatternType.LITERAL,
            f"User:{user}",
            "*",
            operation,
            AclPermissionType.ALLOW,
        )
        for user, kind, operation in rights
    ]
    client = AdminClient({"bootstrap.servers": bootstrap})
    for done in client.create_acls(bindings).values():
        done.result(30)


def settings(
    secured: str,
    user: str,
    password: str = PASSWORD,
    mechanism: SaslMechanism = SaslMechanism.PLAIN,
) -> KafkaSettings:
    return KafkaSettings(
        bootstrap_servers=secured,
        security_protocol=SecurityProtocol.SASL_PLAINTEXT,
        sasl_mechanism=mechanism,
        sasl_username=user,
        sasl_password=SecretStr(password),
    )


def refusal(work: Callable[[], Awaitable[object]]) -> str:
    """The one line."""

    async def run() -> None:
        await asyncio.wait_for(work(), 60)

    with pytest.raises(ConfigurationError) as told:
        asyncio.run(run())
    line = str(told.value)
    assert "\n" not in line
    assert PASSWORD not in line
    return line


def test_a_wrong_password(secured: str) -> None:
    line = refusal(lambda: require_topics(settings(secured, MEMBER, "guessed"), TOPICS))
    assert "Authentication failed" in line
    assert "security settings" in line
    assert "guessed" not in line


def test_a_mechanism_that_the_broker_does_not_offer(secured: str) -> None:
    kafka = settings(secured, MEMBER, mechanism=SaslMechanism.SCRAM_SHA_256)
    line = refusal(lambda: require_topics(kafka, TOPICS))
    assert "UnsupportedSaslMechanism" in line
    assert "security settings" in line


def test_topics_that_we_may_not_see_are_missing(secured: str) -> None:
    line = refusal(lambda: require_topics(settings(secured, STRANGER), TOPICS))
    assert "missing topics: events, recommendations" in line


def test_a_group_that_we_may_not_join(secured: str) -> None:
    async def join() -> None:
        source = a_source(settings(secured, ONLOOKER))
        try:
            await source.start()
        finally:
            await source.stop()

    line = refusal(join)
    assert "GroupAuthorizationFailed" in line
    assert "access control lists" in line


def test_a_topic_that_we_may_not_read(secured: str) -> None:
    async def read() -> None:
        source = a_source(settings(secured, MEMBER))
        try:
            await source.start()
            while True:
                await source.read(1, 0.1)
        finally:
            await source.stop()

    line = refusal(read)
    assert "read topic 'events'" in line
    assert "TopicAuthorizationFailed" in line


def test_topics_that_we_may_not_write(secured: str) -> None:
    async def write() -> None:
        sink = Sink(settings(secured, MEMBER), TOPICS, Metrics())
        try:
            await sink.start()
            await sink.recommend([(b"ann", b"{}", [])])
        finally:
            await sink.stop()

    line = refusal(write)
    assert "AuthorizationFailed" in line
    assert "access control lists" in line


def a_source(kafka: KafkaSettings) -> Source:
    async def assigned(_: object) -> Offsets:
        return {}

    async def revoked(_: object) -> None: ...

    return Source(kafka, TOPICS, Metrics(), assigned, revoked)
